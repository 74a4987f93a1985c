"""The kernels of a CPU's decode steps and the ways of its linears, against torch's in fp32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from math import prod

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dejavubench.kvcache import KVCache, KVGeometry, KVLayout
from dejavubench.models import cpu_linear, cpu_step
from dejavubench.models.parts import ACTIVATIONS, Activation

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever a test sets is taken back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + prod(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def close(ours: Tensor, exact: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """To fp32's rounding, or to two roundings of ``dtype`` beside it."""
    assert ours.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2.0**-6
    torch.testing.assert_close(ours.float(), exact, rtol=tolerance, atol=tolerance)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None) -> Tensor:
    out = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    out = ACTIVATIONS[activation](out)
    return out if residual is None else out + residual.float()


# ---- linear ----


@settings(max_examples=200, deadline=None)
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
    x, weight = drawn(rows, ins, dtype=dtype), drawn(outs, ins, dtype=weights, seed=1) * ins**-0.5
    bias = drawn(outs, dtype=dtype, seed=2) if with_bias else None
    residual = drawn(rows, outs, dtype=dtype, seed=3) if with_residual else None
    before = None if residual is None else residual.clone()
    ours = cpu_step.linear(x, weight, bias, activation, residual)
    close(ours, expected(x, weight, bias, activation, residual), dtype)
    assert residual is None or torch.equal(residual, before)


def test_activations_are_those_of_torch_far_from_zero() -> None:
    x, one = torch.linspace(-100, 100, 4001)[:, None], torch.ones(1, 1)
    for activation in ACTIVATIONS:
        close(cpu_step.linear(x, one, None, activation, None), ACTIVATIONS[activation](x))


def test_leading_axes_stay() -> None:
    x, weight = drawn(2, 3, 8), drawn(5, 8)
    close(cpu_step.linear(x, weight, None, "none", None), F.linear(x, weight))


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 33, 130])
def test_every_way_of_a_linear_is_that_of_torch(rows: int, activation: Activation, weights: torch.dtype) -> None:
    kinds = [torch.float32]
    if weights == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # else nothing is asked in bf16
        kinds.append(torch.bfloat16)
    for dtype in kinds:
        x, weight = drawn(2, rows, 48, dtype=dtype), drawn(40, 48, dtype=weights) * 0.15
        for bias, residual in ((None, None), (drawn(40, dtype=dtype), drawn(2, rows, 40, dtype=dtype))):
            before = None if residual is None else residual.clone()
            ours = cpu_linear.linear(x, weight, bias, activation, residual)
            close(ours, expected(x, weight, bias, activation, residual), dtype)
            assert residual is None or torch.equal(residual, before)


def test_a_weight_that_is_widened_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "WIDENED", 4 * 48 * 7)  # seven rows at a time
    cpu_linear._room.cache_clear()
    x, weight, bias = drawn(40, 48), drawn(40, 48, dtype=torch.float16), drawn(40)
    close(cpu_linear.linear(x, weight, bias, "relu", None), expected(x, weight, bias, "relu", None))
    cpu_linear._room.cache_clear()


# ---- attention ----


@settings(max_examples=200, deadline=None)
@given(
    layout=st.sampled_from(list(KVLayout)),
    dtype=st.sampled_from(TYPES),
    requests=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    vectors=st.integers(1, 17),
    stop=st.integers(1, 40),
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
    stop: int,
    with_slopes: bool,
    with_padding: bool,
    threads: int,
) -> None:
    """Over a cache that is no number wherever nothing was stored, and before a request's own first position."""
    torch.set_num_threads(threads)
    size = vectors * 8
    cache = KVCache.allocate(KVGeometry(2, requests, heads, stop + 3, size, dtype.itemsize, layout), dtype)
    cache.fill(0xFF)
    k, v = (drawn(requests, heads, stop, size, dtype=dtype, seed=seed) for seed in (1, 2))
    first = torch.arange(requests) * (stop - 1) // requests if with_padding else None
    positions = torch.arange(stop)
    hidden = torch.zeros(requests, 1, 1, stop, dtype=torch.bool)
    if first is not None:
        hidden = (positions < first[:, None])[:, None, None]
    cache.store(1, 0, k.masked_fill(hidden.mT, torch.nan), v.masked_fill(hidden.mT, torch.nan))
    slopes = torch.rand(heads * group) if with_slopes else None
    q = drawn(requests, 1, 2 * heads * group * size).unflatten(-1, (-1, size))[:, 0, : heads * group]  # not contiguous

    bias = torch.zeros(requests, heads * group, 1, stop)
    if slopes is not None:
        bias += slopes[:, None, None] * (positions + 1 - stop)
    exact = F.scaled_dot_product_attention(
        q.unsqueeze(2), k.float(), v.float(), attn_mask=bias.masked_fill(hidden, -torch.inf), enable_gqa=True
    ).squeeze(2)
    close(cpu_step.attend(q, cache, 1, stop, slopes, first), exact)


def test_scores_far_apart_are_no_trouble() -> None:
    cache = KVCache.allocate(KVGeometry(1, 1, 1, 20, 8, 4), torch.float32)
    k, v = drawn(1, 1, 20, 8) * 1000, drawn(1, 1, 20, 8, seed=1)
    cache.store(0, 0, k, v)
    q = drawn(1, 1, 8) * 1000
    close(cpu_step.attend(q, cache, 0, 20), F.scaled_dot_product_attention(q.unsqueeze(2), k, v).squeeze(2))


# ---- threads ----


def test_every_thread_of_torchs_pool_has_its_share() -> None:
    """Were there a second pool, each kernel would wait for cores on which the first one spins."""
    torch.set_num_threads(3)
    torch.ones(1 << 20).sum()
    before = _thread_count()
    for rows in (1, 2, 5):
        cpu_step.linear(drawn(rows, 64), drawn(301, 64), None, "none", None)
    assert _thread_count() == before


def _thread_count() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def test_kernels_run_beside_another_thread_that_does() -> None:
    torch.set_num_threads(2)
    x, weight = drawn(4, 256), drawn(512, 256)
    exact, wrong = F.linear(x, weight), []

    def work() -> None:
        results = (cpu_step.linear(x, weight, None, "none", None) for _ in range(200))
        wrong.extend(result for result in results if not torch.allclose(result, exact, atol=1e-4))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
