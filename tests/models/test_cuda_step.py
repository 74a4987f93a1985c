"""The kernels of a decode step against plain torch in fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout, Span
from dejavubench.models.backends import torch_operators
from dejavubench.models.backends.protocol import ACTIVATIONS, Activation, Angles, HeadNorms
from helpers.gpu_marks import needs_gpus

if torch.cuda.is_available():  # Triton comes with a torch for CUDA
    from dejavubench.models.backends.cuda.attention import attend
    from dejavubench.models.backends.cuda.gate import gate
    from dejavubench.models.backends.cuda.heads import norm_and_rotate
    from dejavubench.models.backends.cuda.linear import gated_linear, linear
    from dejavubench.models.backends.cuda.norms import layer_norm, rms_norm

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(1),
]

LAYOUTS = list(KVLayout)
TYPES = [torch.float16, torch.bfloat16]
BITS = {torch.float16: 10, torch.bfloat16: 7}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def require_close(actual: Tensor, expected: Tensor) -> None:
    """Assert equality but for one rounding to the type and the order of an fp32 sum."""
    unit = 2.0 ** -BITS[actual.dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=unit, atol=unit)


def random_cache(layout: KVLayout, requests: int, heads: int, positions: int, size: int) -> KVCache:
    cache = KVCache.allocate(
        KVGeometry(
            layers=2,
            requests=requests,
            heads=heads,
            positions=positions,
            head_size=size,
            itemsize=2,
            layout=layout,
        ),
        torch.float16,
        "cuda",
    )
    cache.k.normal_()
    cache.v.normal_()
    return cache


def on_device(position: int) -> Tensor:
    return torch.tensor([position], device="cuda")


# ---- linear  ----


SHAPES = [
    (4800, 1600),
    (1600, 6400),
    (50257, 1600),
    (15360, 5120),
    (5120, 5120),
    (64, 8),
    (2304, 768),
    (100, 80),
]


@pytest.mark.parametrize("rows", [1, 3, 8, 16])
@pytest.mark.parametrize(
    ("outs", "ins", "dtype"),
    [
        *((*shape, torch.float16) for shape in SHAPES),
        (1600, 6400, torch.bfloat16),
        (15360, 5120, torch.bfloat16),
    ],
)
def test_a_linear_is_that_of_torch(outs: int, ins: int, rows: int, dtype: torch.dtype) -> None:
    inputs, weight = random(rows, ins, dtype=dtype), random(outs, ins, dtype=dtype, scale=ins**-0.5)
    bias, residual = random(outs, dtype=dtype), random(rows, outs, dtype=dtype)
    product = inputs.float() @ weight.float().T
    require_close(linear(inputs, weight), product)
    require_close(linear(inputs, weight, bias, "relu"), F.relu(product + bias))
    require_close(linear(inputs, weight, bias, "silu"), F.silu(product + bias))
    require_close(linear(inputs, weight, bias, "gelu"), F.gelu(product + bias, approximate="tanh"))
    residual_copy = residual.clone()
    require_close(linear(inputs, weight, bias, residual=residual), product + bias + residual)
    assert torch.equal(residual, residual_copy)


def test_a_linear_takes_rows_with_a_stride() -> None:
    wider_tensor, weight = random(4, 3 * 256), random(640, 256, scale=1 / 16)
    inputs, residual = wider_tensor[:, 256:512], random(4, 1280)[:, 640:]
    require_close(
        linear(inputs, weight, residual=residual), inputs.float() @ weight.float().T + residual
    )


@pytest.mark.parametrize(
    ("rows", "ins", "dtype"), [(17, 64, torch.float16), (1, 64, torch.float32), (1, 12, torch.half)]
)
def test_a_linear_without_a_decode_kernel_is_refused(
    rows: int, ins: int, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="no decode kernel"):
        linear(random(rows, ins, dtype=dtype), random(64, ins, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 8, 16])
@pytest.mark.parametrize(("outs", "ins"), [(28672, 4096), (216, 80), (64, 8)])
def test_a_gated_linear_is_that_of_torch(
    outs: int, ins: int, rows: int, dtype: torch.dtype
) -> None:
    inputs, weight = random(rows, ins, dtype=dtype), random(outs, ins, dtype=dtype, scale=ins**-0.5)
    bias = random(outs, dtype=dtype)
    gates, inner = (inputs.float() @ weight.float().T).chunk(2, dim=-1)
    require_close(gated_linear(inputs, weight, None, "silu"), F.silu(gates) * inner)
    gate_bias, inner_bias = bias.float().chunk(2)
    expected = F.gelu(gates + gate_bias, approximate="tanh") * (inner + inner_bias)
    require_close(gated_linear(inputs, weight, bias, "gelu"), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_a_gate_of_many_rows_is_that_of_torch(activation: Activation, dtype: torch.dtype) -> None:
    inputs = random(70, 2 * 1111, dtype=dtype)
    gates, inner = inputs.float().chunk(2, dim=-1)
    require_close(gate(inputs, activation), ACTIVATIONS[activation](gates) * inner)


# ---- norms and heads  ----


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [64, 768, 1600, 5120, 14336])
def test_a_layer_norm_is_that_of_torch(width: int, dtype: torch.dtype) -> None:
    inputs = random(5, width, dtype=dtype) + 3
    weight, bias = random(width, dtype=dtype), random(width, dtype=dtype)
    expected = F.layer_norm(inputs.float(), (width,), weight.float(), bias.float(), 1e-5)
    require_close(layer_norm(inputs, weight, bias, 1e-5), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [64, 4096, 14336])
def test_an_rms_norm_is_that_of_torch(width: int, dtype: torch.dtype) -> None:
    inputs, weight = random(5, width, dtype=dtype), random(width, dtype=dtype)
    expected = F.rms_norm(inputs.float(), (width,), weight.float(), 1e-5)
    require_close(rms_norm(inputs, weight, 1e-5), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("positions", "heads", "kv_heads", "size"), [(1, 32, 8, 128), (17, 5, 5, 80), (300, 6, 2, 64)]
)
def test_heads_are_normed_and_rotated_as_by_torch(
    positions: int, heads: int, kv_heads: int, size: int, normed: bool, dtype: torch.dtype
) -> None:
    rows = random(3, positions, heads + 2 * kv_heads, size, dtype=dtype).transpose(1, 2)
    q, k, _ = rows.split((heads, kv_heads, kv_heads), dim=1)
    table = random(2, 400, size // 2, dtype=dtype).repeat(1, 1, 2)
    norms, exact_norms = None, None
    if normed:
        norms = HeadNorms(random(size, dtype=dtype), random(size, dtype=dtype), 1e-6)
        exact_norms = HeadNorms(norms.query_weight.float(), norms.key_weight.float(), 1e-6)
    starts: list[int | Tensor] = [5]
    if positions == 1:
        starts.append(on_device(7))
    for start in starts:
        rotated = norm_and_rotate(q, k, norms, Angles(table, start))
        exact_angles = Angles(table.float(), start)
        expected = torch_operators.norm_and_rotate(q.float(), k.float(), exact_norms, exact_angles)
        for heads_rotated, heads_expected in zip(rotated, expected, strict=True):
            require_close(heads_rotated, heads_expected)


# ---- cache and attention  ----


def random_qkv(requests: int, heads: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as views of one product."""
    q, k, v = random(requests, 3 * heads * size).view(requests, 3, heads, size).unbind(1)
    return q, k, v


def expected_attention(
    q: Tensor, cache: KVCache, layer: int, position: int, slopes: Tensor | None
) -> Tensor:
    k, v = cache.keys(layer, position + 1).float(), cache.values(layer, position + 1).float()
    scores = torch.einsum("bhd,bhsd->bhs", q.float(), k) * q.shape[-1] ** -0.5
    if slopes is not None:
        scores += slopes[:, None] * (torch.arange(position + 1, device="cuda") - position)
    return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v).flatten(1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize(
    ("requests", "heads", "size"), [(1, 3, 64), (3, 5, 96), (5, 40, 80), (2, 40, 128), (8, 72, 128)]
)
def test_attention_stores_what_the_cache_stores_and_is_that_of_torch(
    layout: KVLayout, alibi: bool, requests: int, heads: int, size: int
) -> None:
    cache = random_cache(layout, requests=requests, heads=heads, positions=700, size=size)
    slopes = torch.rand(heads, device="cuda") if alibi else None
    for position in (0, 1, 31, 32, 33, 64, 511, 699):
        q, k, v = random_qkv(requests, heads, size)
        expected_cache = KVCache(cache.geometry, cache.k.clone(), cache.v.clone())
        expected_cache.store(layer=1, position=position, k=k[:, :, None], v=v[:, :, None])
        attended = attend(q, k, v, cache, 1, on_device(position), slopes)
        assert torch.equal(cache.k, expected_cache.k)
        assert torch.equal(cache.v, expected_cache.v)
        require_close(attended, expected_attention(q, cache, 1, position, slopes))
        assert torch.equal(attended, attend(q, k, v, cache, 1, on_device(position), slopes))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [2, 5])
def test_queries_of_a_group_share_keys_and_values(layout: KVLayout, group: int) -> None:
    requests, heads, size = 3, 4, 64
    cache = random_cache(layout, requests=requests, heads=heads, positions=300, size=size)
    wide_cache = random_cache(
        layout, requests=requests, heads=heads * group, positions=300, size=size
    )
    for kv in ("k", "v"):
        axis = 3 if layout is KVLayout.NHD else 2
        wide_cache.tensor(kv).copy_(cache.tensor(kv).repeat_interleave(group, axis))
    _, k, v = random_qkv(requests, heads, size)
    q, _, _ = random_qkv(requests, heads * group, size)
    attended = attend(q, k, v, cache, 1, on_device(250))
    keys, values = (tensor.repeat_interleave(group, 1) for tensor in (k, v))
    require_close(attended, attend(q, keys, values, wide_cache, 1, on_device(250)).float())
    expected = KVCache(cache.geometry, cache.k.clone(), cache.v.clone())
    expected.store(layer=1, position=250, k=k[:, :, None], v=v[:, :, None])
    assert torch.equal(cache.k, expected.k)
    assert torch.equal(cache.v, expected.v)


def test_attention_never_reads_beyond_its_position() -> None:
    for layout in LAYOUTS:
        cache = random_cache(layout, requests=2, heads=4, positions=300, size=64)
        beyond = cache.geometry.region(positions=Span(100, 300))
        cache.piece("k", beyond).fill_(float("nan"))
        cache.piece("v", beyond).fill_(float("nan"))
        q, k, v = random_qkv(requests=2, heads=4, size=64)
        assert not attend(q, k, v, cache, 0, on_device(99)).isnan().any()


# ---- a step  ----


def test_a_captured_step_reads_its_position_and_repeats_bit_for_bit() -> None:
    hidden, heads, requests = 1600, 25, 2
    cache = random_cache(KVLayout.HND, requests=requests, heads=heads, positions=256, size=64)
    inputs, position = random(requests, hidden), on_device(0)
    qkv_weight = random(3 * hidden, hidden, scale=1 / 40)
    out_weight = random(hidden, hidden, scale=1 / 40)
    ones, zeros = torch.ones_like(inputs[0]), torch.zeros_like(inputs[0])

    def step() -> Tensor:
        qkv = linear(layer_norm(inputs, ones, zeros, 1e-5), qkv_weight)
        q, k, v = qkv.view(requests, 3, heads, 64).unbind(1)
        return linear(attend(q, k, v, cache, 0, position), out_weight, residual=inputs)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for place in (5, 200, 255):
        position.fill_(place)
        expected = step()
        for _ in range(20):
            captured.zero_()
            graph.replay()
            assert torch.equal(captured, expected)
