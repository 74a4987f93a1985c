"""The kernels of a CPU's decode steps and the ways of its linears, against torch's in fp32."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout
from dejavubench.machine.cpu import WITHOUT_VARIABLE
from dejavubench.models.backends.cpu import (
    amx,
    attention_kernel,
    code_folder,
    dot_kernels,
    elementwise,
    linear_kernel,
)
from dejavubench.models.backends.cpu import linear as linear_ways
from dejavubench.models.backends.cpu.backend import CpuBackend
from dejavubench.models.backends.protocol import ACTIVATIONS, QKV, Activation
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.hub.specs import make_custom_spec
from dejavubench.models.weights import make_random_weights
from helpers.paths import ROOT, TESTS

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Take back the number of threads that a test sets."""
    own_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(own_threads)


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + prod(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def require_close(ours: Tensor, exact: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Assert equality to fp32's rounding, or to two roundings of ``dtype`` beside it."""
    assert ours.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2.0**-6
    torch.testing.assert_close(ours.float(), exact, rtol=tolerance, atol=tolerance)


def expected_linear(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
) -> Tensor:
    out = F.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
    out = ACTIVATIONS[activation](out)
    return out if residual is None else out + residual.float()


@pytest.fixture
def no_kernels() -> Iterator[None]:
    """Forget the kernels from before, and those of the test after it."""
    own_functions = (
        linear_kernel._make_kernel,
        linear_kernel._make_product,
        linear_kernel.CpuTiling.choose,
    )
    for tensor in own_functions:
        tensor.cache_clear()
    yield
    for tensor in own_functions:
        tensor.cache_clear()


# ---- linear ----


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 34),
    outs=st.integers(1, 70),
    ins=st.integers(1, 150),
    weights=st.sampled_from(TYPES),
    half_x=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
    threads=st.integers(1, 3),
)
def test_a_linear_of_few_rows_is_that_of_torch(
    rows: int,
    outs: int,
    ins: int,
    weights: torch.dtype,
    half_x: bool,
    activation: Activation,
    with_bias: bool,
    with_residual: bool,
    threads: int,
) -> None:
    """Whatever is left over of vectors, tiles and threads."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if half_x and weights == torch.bfloat16 else torch.float32
    inputs = random_tensor(rows, ins, dtype=dtype)
    weight = random_tensor(outs, ins, dtype=weights, seed=1) * ins**-0.5
    bias = random_tensor(outs, dtype=dtype, seed=2) if with_bias else None
    residual = random_tensor(rows, outs, dtype=dtype, seed=3) if with_residual else None
    residual_copy = residual.clone() if residual is not None else torch.empty(0)
    ours = linear_kernel.linear(inputs, weight, bias, activation, residual)
    require_close(ours, expected_linear(inputs, weight, bias, activation, residual), dtype)
    assert residual is None or torch.equal(residual, residual_copy)


@pytest.mark.skipif(not dot_kernels.AVX512_BF16, reason="this CPU does not multiply pairs of bf16")
@pytest.mark.parametrize("pairs", [False, True])
def test_bf16_is_right_whether_it_is_multiplied_in_pairs_or_widened(
    pairs: bool, monkeypatch: pytest.MonkeyPatch, no_kernels: None
) -> None:
    # The code of one way must not be found for the other: a real CPU has one way alone.
    folder = os.environ.get(code_folder.FOLDER_VARIABLE)
    if folder:
        monkeypatch.setenv(
            code_folder.FOLDER_VARIABLE, f"{folder}-{'pairs' if pairs else 'widened'}"
        )
    monkeypatch.setattr(dot_kernels, "MULTIPLIES_BF16_PAIRS", pairs)
    monkeypatch.setattr(amx, "can_multiply", lambda rows, ins: False)
    for rows, ins in product((1, 2, 3, 4, 5, 8, 9), (1, 16, 31, 32, 48, 150)):
        inputs, weight = (
            random_tensor(count, ins, dtype=torch.bfloat16, seed=count) for count in (rows, 37)
        )
        ours = linear_kernel.linear(inputs, weight, None, "none", None)
        require_close(ours, expected_linear(inputs, weight, None, "none", None), torch.bfloat16)


@pytest.mark.skipif(not amx.is_usable(), reason="this CPU has no AMX")
def test_tiles_of_amx_multiply_what_they_are_given() -> None:
    bf16 = torch.bfloat16
    sizes = product((1, 2, 3), (5, 8, 16), (1, 15, 16, 17, 64, 70, 140), (32, 96))
    for threads, rows, outs, ins in sizes:
        torch.set_num_threads(threads)
        inputs = random_tensor(rows, ins, dtype=bf16)
        weight = random_tensor(outs, ins, dtype=bf16, seed=1) * ins**-0.5
        bias = random_tensor(outs, dtype=bf16, seed=2)
        residual = random_tensor(rows, outs, dtype=bf16, seed=3)
        assert linear_kernel.CpuTiling.choose(rows, ins, bf16, bf16).uses_amx
        require_close(
            linear_kernel.linear(inputs, weight, None),
            expected_linear(inputs, weight, None, "none", None),
            bf16,
        )
        ours = linear_kernel.linear(inputs, weight, bias, "gelu", residual)
        require_close(ours, expected_linear(inputs, weight, bias, "gelu", residual), bf16)


def test_activations_equal_torchs_far_from_zero() -> None:
    inputs, weight = torch.linspace(-100, 100, 4001)[:, None], torch.ones(1, 1)
    for activation in ACTIVATIONS:
        require_close(
            linear_kernel.linear(inputs, weight, None, activation, None),
            ACTIVATIONS[activation](inputs),
        )


def test_a_linear_keeps_leading_axes() -> None:
    inputs, weight = random_tensor(2, 3, 8), random_tensor(5, 8)
    require_close(
        linear_kernel.linear(inputs, weight, None, "none", None), F.linear(inputs, weight)
    )


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("rows", [4, 5, 16, 17, 32, 33, 127, 128])
def test_every_way_of_a_linear_is_that_of_torch(
    rows: int, activation: Activation, weights: torch.dtype
) -> None:
    """On either side of each number of rows at which the way changes, and in bf16 if it is slow."""
    for dtype in (torch.float32, torch.bfloat16) if weights == torch.bfloat16 else (torch.float32,):
        inputs = random_tensor(rows, 64, dtype=dtype)
        weight = random_tensor(40, 64, dtype=weights) * 0.12
        for bias, residual in (
            (None, None),
            (random_tensor(40, dtype=dtype), random_tensor(rows, 40, dtype=dtype)),
        ):
            residual_copy = residual.clone() if residual is not None else torch.empty(0)
            ours = linear_ways.linear(inputs, weight, bias, activation, residual)
            require_close(ours, expected_linear(inputs, weight, bias, activation, residual), dtype)
            assert residual is None or torch.equal(residual, residual_copy)


def test_a_model_in_fp16_goes_through_torch() -> None:
    inputs, weight = (
        random_tensor(3, 8, dtype=torch.float16),
        random_tensor(5, 8, dtype=torch.float16),
    )
    require_close(
        linear_ways.linear(inputs, weight, None, "none", None),
        F.linear(inputs.float(), weight.float()),
        torch.float16,
    )


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ("float16", "float16", "float16"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_types_that_a_kernel_would_misread_are_refused(x: str, weight: str, bias: str) -> None:
    tensors = [
        random_tensor(*shape, dtype=getattr(torch, name))
        for shape, name in (((2, 8), x), ((3, 8), weight), ((3,), bias))
    ]
    with pytest.raises(TypeError, match="must be of x's type"):
        linear_kernel.linear(tensors[0], tensors[1], tensors[2], "none", None)


def test_no_step_waits_for_its_kernels() -> None:
    spec = make_custom_spec(layer_num=2, head_num=4, size_per_head=16, vocab_size=100, context=64)
    model = GPT(spec, Shard(), torch.bfloat16, torch.float32)
    model.load(make_random_weights(spec, 0))
    for requests, new in ((1, 3), (3, 9), (2, 20)):
        model.compile(KVLayout.HND, requests, requests * new)
        compiled = (
            linear_kernel._make_kernel.cache_info().misses,
            attention_kernel._make_kernel.cache_info().misses,
        )
        cache = KVCache.allocate(model.kv_geometry(requests, new + 1, KVLayout.HND), model.dtype)
        tokens = torch.zeros(requests, new, dtype=torch.int64)
        model.forward(tokens, cache, 0)
        model.forward(tokens[:, :1], cache, new)
        assert compiled == (
            linear_kernel._make_kernel.cache_info().misses,
            attention_kernel._make_kernel.cache_info().misses,
        )


def test_a_weight_that_is_widened_in_blocks_gives_the_same_linear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_ways, "WIDENED_NBYTES", 4 * 48 * 7)  # seven rows at a time
    inputs = random_tensor(40, 48)
    weight = random_tensor(40, 48, dtype=torch.float16)
    bias = random_tensor(40)
    require_close(
        linear_ways.linear(inputs, weight, bias, "relu", None),
        expected_linear(inputs, weight, bias, "relu", None),
    )


# ---- numbers ----


def test_exp_is_within_two_units_in_the_last_place() -> None:
    numbers = np.linspace(-87, 87, 20_001, dtype=np.float32)
    exact = np.exp(numbers.astype(np.float64))
    ours = np.array([elementwise.exp(number) for number in numbers])
    assert np.max(np.abs(ours - exact) / np.spacing(exact.astype(np.float32))) < 2


def test_narrowing_is_that_of_torch() -> None:
    """Also of halfway cases, the infinite and what is no number."""
    bits = torch.arange(0, 1 << 32, 0x7FFF).to(torch.int64).to(torch.int32)
    numbers = torch.cat(
        [
            bits.view(torch.float32),
            torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.00390625]),
        ]
    )
    narrowed = np.zeros(len(numbers), np.uint16)
    elementwise.narrow(numbers.numpy(), narrowed)
    torch.testing.assert_close(
        torch.from_numpy(narrowed).view(torch.bfloat16),
        numbers.bfloat16(),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


# ---- attention ----


@settings(max_examples=200, deadline=None)
@given(
    layout=st.sampled_from(list(KVLayout)),
    dtype=st.sampled_from(TYPES),
    requests=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    vectors=st.integers(1, 17),
    more=st.integers(0, 7),
    stop=st.integers(1, 40)
    | st.sampled_from([301]),  # so long that the last ones are fetched from elsewhere
    with_slopes=st.booleans(),
    with_padding=st.booleans(),
    threads=st.integers(1, 3),
)
def test_attention_of_one_query_is_that_of_torch(
    layout: KVLayout,
    dtype: torch.dtype,
    requests: int,
    heads: int,
    group: int,
    vectors: int,
    more: int,
    stop: int,
    with_slopes: bool,
    with_padding: bool,
    threads: int,
) -> None:
    """The cache is NaN wherever nothing was stored, and before a request's own first position."""
    torch.set_num_threads(threads)
    size = vectors * 8 + (more if layout is not KVLayout.FT else 0)
    cache = KVCache.allocate(
        KVGeometry(
            layers=2,
            requests=requests,
            heads=heads,
            positions=stop + 3,
            head_size=size,
            itemsize=dtype.itemsize,
            layout=layout,
        ),
        dtype,
    )
    cache.fill(0xFF)
    k, v = (random_tensor(requests, heads, stop, size, dtype=dtype, seed=seed) for seed in (1, 2))
    first_positions = torch.arange(requests) * (stop - 1) // requests if with_padding else None
    positions = torch.arange(stop)
    hidden = torch.zeros(requests, 1, 1, stop, dtype=torch.bool)
    if first_positions is not None:
        hidden = (positions < first_positions[:, None])[:, None, None]
    cache.store(
        layer=1,
        position=0,
        k=k.masked_fill(hidden.mT, torch.nan),
        v=v.masked_fill(hidden.mT, torch.nan),
    )
    slopes = torch.rand(heads * group) if with_slopes else None
    # A slice of a wider tensor, so that q is not contiguous.
    q = random_tensor(requests, 1, 2 * heads * group * size).unflatten(-1, (-1, size))[
        :, 0, : heads * group
    ]
    exact = attention_of_torch(q, k, v, slopes, hidden)
    require_close(
        attention_kernel.attend(
            q, cache, layer=1, stop=stop, slopes=slopes, prompt_start=first_positions
        ),
        exact,
    )


def attention_of_torch(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, hidden: Tensor
) -> Tensor:
    """Return the attention of one query per head [N, H, D], in fp32.

    Args:
        slopes: ALiBi's slope of each query head; None for no bias.
        hidden: positions that no query may see [N, 1, 1, S].
    """
    requests, heads, _ = q.shape
    stop = k.shape[2]
    bias = torch.zeros(requests, heads, 1, stop)
    if slopes is not None:
        bias += slopes[:, None, None] * (torch.arange(stop) + 1 - stop)
    mask = bias.masked_fill(hidden, -torch.inf)
    return F.scaled_dot_product_attention(
        q.unsqueeze(2), k.float(), v.float(), attn_mask=mask, enable_gqa=True
    ).squeeze(2)


def test_attention_to_scores_far_apart_is_that_of_torch() -> None:
    cache = KVCache.allocate(
        KVGeometry(layers=1, requests=1, heads=1, positions=20, head_size=8, itemsize=4),
        torch.float32,
    )
    k, v = random_tensor(1, 1, 20, 8) * 1000, random_tensor(1, 1, 20, 8, seed=1)
    cache.store(layer=0, position=0, k=k, v=v)
    q = random_tensor(1, 1, 8) * 1000
    require_close(
        attention_kernel.attend(q, cache, layer=0, stop=20),
        F.scaled_dot_product_attention(q.unsqueeze(2), k, v).squeeze(2),
    )


def test_a_position_on_the_device_is_stored_and_attended_to_like_a_number() -> None:
    cache = KVCache.allocate(
        KVGeometry(layers=1, requests=2, heads=3, positions=20, head_size=8, itemsize=4),
        torch.float32,
    )
    k, v = random_tensor(2, 3, 20, 8), random_tensor(2, 3, 20, 8, seed=1)
    q = random_tensor(2, 3, 1, 8, seed=2)
    cache.store(layer=0, position=0, k=k, v=v)
    exact = CpuBackend().attend_one(q, cache, layer=0, stop=8)
    cache.store(
        layer=0,
        position=7,
        k=random_tensor(2, 3, 1, 8, seed=3),
        v=random_tensor(2, 3, 1, 8, seed=4),
    )
    newest = k[:, :, 7:8], v[:, :, 7:8]
    ours = CpuBackend().store_and_attend(QKV(q, *newest), cache, 0, torch.tensor([7]))
    assert torch.equal(ours, exact)
    assert torch.equal(cache.keys(layer=0, stop=20), k)


# ---- threads ----


def test_every_thread_of_torchs_pool_has_its_share() -> None:
    """A second pool would make kernels wait for cores on which the first one spins."""
    script = """
import torch
import dejavubench.models.backends.cpu.backend
torch.set_num_threads(3)
torch.ones(1 << 20).sum()
def threads():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
where = torch.zeros(3, dtype=torch.int64)
from dejavubench.models.backends.cpu import threads as kernel_threads
from dejavubench.models.backends.cpu.elementwise import as_integers
from numba import carray
Job = kernel_threads.make_job_type("Job", "where")
thread_number = kernel_threads.thread_number
@kernel_threads.compiled_kernel(Job)
def work(job):
    carray(as_integers(carray(job, 1)[0].where), 3)[thread_number()] += 1
before = threads()  # compiling may have started those of other libraries
kernel_threads.run_on_all_threads(work, Job(where.data_ptr()))
print(where.tolist(), threads() - before)
"""
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert completed.stdout.strip() == "[1, 1, 1] 0", completed.stderr


def test_kernels_run_beside_another_thread_that_does() -> None:
    torch.set_num_threads(2)
    inputs, weight = random_tensor(4, 256), random_tensor(512, 256, dtype=torch.bfloat16)
    exact = F.linear(inputs, weight.float())
    outputs: list[torch.Tensor] = []

    def work() -> None:
        outputs.extend(linear_kernel.linear(inputs, weight, None, "none", None) for _ in range(100))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outputs) == 200
    for output in outputs:
        torch.testing.assert_close(output, exact, rtol=1e-4, atol=1e-4)


# ---- other CPUs ----


@pytest.mark.drill
@pytest.mark.parametrize("left_out", ["amx,bf16", "avx512"])
def test_the_tests_of_models_hold_with_fewer_features_of_the_cpu(left_out: str) -> None:
    """This file and the model's pass in a process without these features."""
    if WITHOUT_VARIABLE in os.environ:
        pytest.skip("features are left out already")
    files = [str(TESTS / "models" / name) for name in ("test_cpu_step.py", "test_gpt.py")]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not drill", *files],
        env={**os.environ, WITHOUT_VARIABLE: left_out, **LESS.get(left_out, {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout[-4000:]


LESS = {"avx512": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
"""Variables that hold torch and oneDNN to the same features."""
