"""Kernels for the few rows of a decode step on a CUDA device, in Triton: what is read is the weights and the cache.

Every kernel is launched with programmatic stream serialisation: its blocks may start while the kernel before it still
runs, ask for the weights or the cache they will read (which that kernel does not write) and only then wait for its
results. So the memory is busy where one kernel ends and the next begins. The wait is for the whole kernel before, and
each of ours waits, so what any earlier kernel wrote is in place after it. Before it only parameters and ``position``
are read, which no kernel of this module writes; others are never overlapped.

Nothing is left to chance: sums over parts are made in a fixed order by the block that arrives last, so equal inputs
give equal bits. All functions may be captured in a graph once they have run outside one; positions are read on the
device. The working memory is one for each device: two streams must not run these kernels at the same time.

Letters in shapes: M rows (at most 16), B requests, H heads of queries, G of keys and values, D elements of a head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from dejavubench.dejavulib.kvcache import KVCache, KVLayout
from dejavubench.models.parts import FEW_ROWS, Activation

ROWS = FEW_ROWS
"""Rows of the tensor cores' smallest product; fewer are padded, more are not for these kernels."""

TYPES = (torch.float16, torch.bfloat16)
PARTIAL = 1 << 22
"""Floats for sums over parts: 16 MiB."""

TILE = 64
"""Rows of the weight that a block reads: the least that the tensor cores of Hopper take."""

MOST_PARTS, SHORTEST = 8, 512
"""Parts of a weight's columns at most, and columns of one at least."""

COUNTERS = 1 << 16
"""Counters of the parts that have arrived; each is back at 0 when its kernel ends."""


@functools.cache
def _workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(PARTIAL, dtype=torch.float32, device=device),
        torch.zeros(COUNTERS, dtype=torch.int32, device=device),
    )


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _overlaps(device: torch.device) -> bool:
    """Whether kernels can start before the one before them ends (from Hopper on)."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


# ---- x · weightᵀ ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: a block reads ``outs`` rows of the weight, ``ins`` columns at a time."""

    outs: int
    ins: int
    splits: int
    """Parts that the columns are cut into."""
    warps: int
    stages: int
    """Pieces of the weight that are under way at once."""
    ahead: int
    """Columns of each row that are asked for before the kernel before has ended."""


@functools.cache
def tiling(outs: int, ins: int, processors: int) -> Tiling:
    """The tiling of a weight [outs, ins], from what was measured on Hopper.

    Two blocks fit on a processor. Tiles that fill most of these places are left whole. Others are cut so that the
    blocks come near a multiple of the processors: each processor then reads equally much. A further part costs its
    share of the sum, and one that is too short is not worth it.
    """
    tiles = triton.cdiv(outs, TILE)
    splits = 1
    if tiles < 1.4 * processors:

        def worth(splits: int) -> float:
            blocks = tiles * splits
            return blocks / (triton.cdiv(blocks, processors) * processors) - 0.06 * splits

        splits = max(range(1, max(1, min(MOST_PARTS, ins // SHORTEST)) + 1), key=worth)
    if splits == 1 and ins >= 4096:
        return Tiling(TILE, 256, 1, 4, 4, 256)
    return Tiling(TILE, 128, splits, 4, 5, 256)


@triton.jit
def _ask_for(addresses):  # type: ignore[no-untyped-def]
    """Bring the lines at these addresses to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [addresses],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _finish(total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation):  # type: ignore[no-untyped-def]
    """Bias, activation and residual of one tile of sums [outs, rows], rounded once."""
    real = (outs < out_count)[:, None] & (rows < row_count)[None, :]
    if bias is not None:
        total += tl.load(bias + outs, mask=outs < out_count, other=0.0).to(tl.float32)[:, None]
    if activation == "gelu":
        total *= tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total))
    elif activation == "relu":
        total = tl.maximum(total, 0.0)
    if residual is not None:
        at = residual + rows[None, :] * residual_row + outs[:, None]
        total += tl.load(at, mask=real, other=0.0).to(tl.float32)
    tl.store(
        out + rows[None, :] * out_count + outs[:, None], total.to(out.dtype.element_ty), mask=real
    )


@triton.jit(do_not_specialize=["row_count"])
def _linear(  # type: ignore[no-untyped-def]
    x, weight, tiles, bias, residual, out, partial, arrived, row_count, x_row, residual_row, out_count, width, steps,
    activation: tl.constexpr, even: tl.constexpr, splits: tl.constexpr, block_outs: tl.constexpr,
    block_ins: tl.constexpr, block_rows: tl.constexpr, stages: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    outs = tile * block_outs + tl.arange(0, block_outs)
    rows = tl.arange(0, block_rows)
    first = split * steps * block_ins
    gdc_launch_dependents()
    if ahead > 0:
        lines = first + tl.arange(0, ahead // 64) * 64
        weight_rows = weight + tl.minimum(outs, out_count - 1).to(tl.int64)[:, None] * width
        _ask_for(weight_rows + tl.minimum(lines, width - 1)[None, :])
    gdc_wait()

    x_rows = x + rows[:, None] * x_row
    present = (rows < row_count)[:, None]
    total = tl.zeros((block_outs, block_rows), tl.float32)
    for start in tl.range(
        first, tl.minimum(first + steps * block_ins, width), block_ins, num_stages=stages
    ):
        ins = start + tl.arange(0, block_ins)[None, :]
        part = tiles.load([tile * block_outs, start])  # zeros beyond the weight's edges
        inputs = tl.load(x_rows + ins, mask=present if even else present & (ins < width), other=0.0)
        total = tl.dot(part, tl.trans(inputs), total)

    if splits == 1:
        _finish(
            total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation
        )
        return
    size: tl.constexpr = block_outs * block_rows
    places = (
        partial
        + tile * splits * size
        + rows[None, :] * block_outs
        + tl.arange(0, block_outs)[:, None]
    )
    kept = (rows < row_count)[None, :]
    tl.store(places + split * size, total, mask=kept)
    tl.debug_barrier()  # all of the block has written before one of its threads says so
    if tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
        total = tl.zeros((block_outs, block_rows), tl.float32)
        for other in tl.static_range(splits):
            total += tl.load(places + other * size, mask=kept, other=0.0, cache_modifier=".cg")
        _finish(
            total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation
        )
        tl.store(arrived + tile, 0)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x · weightᵀ + bias) + residual, summed in fp32 and rounded once.

    Args:
        x: [M, K], its rows contiguous.
        weight: [N, K], contiguous.
        bias: [N].
        activation: "gelu" is the tanh approximation.
        residual: [M, N], its rows contiguous; left as it is.

    Raises:
        ValueError: more than 16 rows, a type that is neither fp16 nor bf16, or K no multiple of 8.
    """
    rows, width, outs = *x.shape, weight.shape[0]
    if rows > ROWS or x.dtype not in TYPES or width % 8:
        raise ValueError(f"no decode kernel for {rows} rows of {width} elements of {x.dtype}")
    cut = tiling(outs, width, _processors(x.device))
    return _run_linear(x, weight, bias, activation, residual, cut)


def _run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
    cut: Tiling,
) -> Tensor:
    rows, width, outs = x.shape[0], x.shape[1], weight.shape[0]
    out = x.new_empty(rows, outs)
    tiles, steps = triton.cdiv(outs, cut.outs), triton.cdiv(width, cut.ins * cut.splits)
    partial, arrived = _workspace(x.device)
    _linear[(tiles, cut.splits)](
        x, weight, TensorDescriptor.from_tensor(weight, [cut.outs, cut.ins]), bias, residual, out, partial, arrived,
        rows, x.stride(0), 0 if residual is None else residual.stride(0), outs, width, steps,
        activation, width % cut.ins == 0, cut.splits, cut.outs, cut.ins, ROWS, cut.stages, cut.ahead,
        num_warps=cut.warps, launch_pdl=_overlaps(x.device),
    )  # fmt: skip
    return out


# ---- layer norm -----------------------------------------------------------------------------------------------


@triton.jit
def _layer_norm(x, weight, bias, out, x_row, width, eps, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    at = tl.arange(0, block)
    real = at < width
    gdc_launch_dependents()
    scale = tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=real, other=0.0).to(tl.float32)
    gdc_wait()
    values = tl.load(x + row * x_row + at, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / width
    centred = tl.where(real, values - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / width
    result = centred * tl.rsqrt(variance + eps) * scale + shift
    tl.store(out + row * width + at, result.to(out.dtype.element_ty), mask=real)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of the rows of ``x`` [M, W], with statistics in fp32."""
    rows, width = x.shape
    out = x.new_empty(rows, width)
    _layer_norm[(rows,)](
        x, weight, bias, out, x.stride(0), width, eps, triton.next_power_of_2(width),
        num_warps=8, launch_pdl=_overlaps(x.device),
    )  # fmt: skip
    return out


# ---- attention ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """How the positions are cut: into ``splits`` parts, a power of two; a block reads ``positions`` at a time."""

    positions: int
    splits: int
    warps: int
    stages: int


MOST_SPLITS = 32


@functools.cache
def parts(pairs: int, positions: int, processors: int, vectors: bool) -> Parts:
    """The parts for so many pairs of request and head: enough blocks for all processors, none too small.

    Args:
        positions: that the cache has room for.
        vectors: whether keys lie in vectors, as in ``ft``.
    """
    enough, least = (16, 32) if vectors else (8, 64)
    splits = 1
    while (
        splits < MOST_SPLITS and pairs * splits < enough * processors and positions > least * splits
    ):
        splits *= 2
    return Parts(16, splits, 1, 2) if vectors else Parts(32, splits, 1, 1)


@dataclass(frozen=True)
class _Axes:
    """Strides of one layer's K or V, in elements; of ``ft``'s keys also that from vector to vector."""

    request: int
    head: int
    position: int
    vector: int = 0

    @classmethod
    def of(cls, cache: KVCache, kv: Literal["k", "v"]) -> _Axes:
        strides = cache.tensor(kv).stride()[1:]
        if cache.geometry.layout is KVLayout.NHD:
            return cls(strides[0], strides[2], strides[1])
        if cache.geometry.layout is KVLayout.FT and kv == "k":
            return cls(strides[0], strides[1], strides[3], strides[2])
        return cls(strides[0], strides[1], strides[2])

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.request, self.head, self.position, self.vector


def _vector(cache: KVCache) -> int:
    """Elements of ``ft``'s vectors; 0 where a key lies in one piece."""
    return cache.geometry.vector if cache.geometry.layout is KVLayout.FT else 0


@triton.jit
def _within(at, vector: tl.constexpr, step):  # type: ignore[no-untyped-def]
    """Offset of the elements ``at`` of one key."""
    return at // vector * step + at % vector if vector else at


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    query,
    base,
    spots,
    real,
    ks,
    kv,
    size: tl.constexpr,
    padded: tl.constexpr,
    vector: tl.constexpr,
):
    """query · key of the positions ``spots``; ``query`` points at D elements, ``base`` at the head's keys."""
    if vector:
        pieces = tl.arange(0, padded // vector)[:, None, None]
        each = tl.arange(0, vector)[None, None, :]
        there = pieces * vector < size
        q = tl.load(query + pieces * vector + each, mask=there, other=0.0).to(tl.float32)
        at = base + pieces * kv + (spots * ks)[None, :, None] + each
        k = tl.load(at, mask=there & real[None, :, None], other=0.0).to(tl.float32)
        return tl.sum(tl.sum(q * k, 2), 0)
    else:
        within = tl.arange(0, padded)[None, :]
        q = tl.load(query + within, mask=within < size, other=0.0).to(tl.float32)
        at = base + (spots * ks)[:, None] + within
        k = tl.load(at, mask=(within < size) & real[:, None], other=0.0).to(tl.float32)
        return tl.sum(q * k, 1)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k_new, v_new, keys, values, position_at, slopes, out, partial, arrived, heads, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, kb, kh, ks, kv, vb, vh, vs,
    size: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr, block: tl.constexpr, splits: tl.constexpr,
    stages: tl.constexpr, alibi: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    pair, split = tl.program_id(0), tl.program_id(1)
    request, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    kv_head = head // group
    within = tl.arange(0, padded)
    inside = within < size
    base_k = keys + request * kb + kv_head * kh
    base_v = values + request * vb + kv_head * vh
    gdc_launch_dependents()
    position = tl.load(position_at).to(tl.int32)
    # positions [0, position) are cut evenly; the newest one is its own piece of the last part
    each = tl.cdiv(tl.cdiv(position, block), splits) * block
    parts = tl.maximum(tl.cdiv(position, tl.maximum(each, 1)), 1)
    if split >= parts:
        return
    first = split * each
    stop = tl.minimum(first + each, position)
    spots = first + tl.arange(0, block)
    real = spots < stop
    lines = tl.arange(0, (padded + 63) // 64) * 64
    safe = tl.where(real, spots, tl.maximum(position - 1, 0))
    if not vector:
        _ask_for(base_k + (safe * ks)[:, None] + lines[None, :])
    _ask_for(base_v + (safe * vs)[:, None] + lines[None, :])
    gdc_wait()

    query = q + request * q_b + head * q_h
    slope = tl.load(slopes + head) if alibi else 0.0
    most = float("-inf")
    weight = 0.0
    total = tl.zeros((padded,), tl.float32)
    if split == parts - 1:  # the newest position, whose distance is 0
        key = tl.load(k_new + request * k_b + kv_head * k_h + within, mask=inside, other=0.0)
        value = tl.load(v_new + request * v_b + kv_head * v_h + within, mask=inside, other=0.0)
        if head % group == 0:  # none of the others reads it from the cache
            tl.store(base_k + position * ks + _within(within, vector, kv), key, mask=inside)
            tl.store(base_v + position * vs + within, value, mask=inside)
        most = (
            tl.sum(
                tl.load(query + within, mask=inside, other=0.0).to(tl.float32) * key.to(tl.float32),
                0,
            )
            * scale
        )
        weight = 1.0
        total += value.to(tl.float32)
    for start in tl.range(first, stop, block, num_stages=stages):
        spots = start + tl.arange(0, block)
        real = spots < stop
        at = base_v + (spots * vs)[:, None] + within[None, :]
        value = tl.load(at, mask=real[:, None] & inside[None, :], other=0.0)
        scores = _scores(query, base_k, spots, real, ks, kv, size, padded, vector) * scale
        if alibi:
            scores += slope * (spots - position)
        scores = tl.where(real, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 0))
        shrink = tl.exp(most - higher)
        shares = tl.exp(scores - higher)
        weight = weight * shrink + tl.sum(shares, 0)
        total = total * shrink + tl.sum(shares[:, None] * value.to(tl.float32), 0)
        most = higher

    result = out + pair * size + within
    if splits == 1:
        tl.store(result, (total / weight).to(out.dtype.element_ty), mask=inside)
        return
    row: tl.constexpr = padded + 2  # the sums, their maximum and their weight
    mine = partial + pair * splits * row
    tl.store(mine + split * row + within, total)
    tl.store(mine + split * row + padded, most)
    tl.store(mine + split * row + padded + 1, weight)
    tl.debug_barrier()
    if tl.atomic_add(arrived + pair, 1, sem="acq_rel", scope="gpu") == parts - 1:
        others = tl.arange(0, splits)
        done = others < parts
        mosts = tl.load(
            mine + others * row + padded, mask=done, other=float("-inf"), cache_modifier=".cg"
        )
        weights = tl.load(
            mine + others * row + padded + 1, mask=done, other=0.0, cache_modifier=".cg"
        )
        at = mine + others[:, None] * row + within[None, :]
        totals = tl.load(at, mask=done[:, None], other=0.0, cache_modifier=".cg")
        shares = tl.exp(mosts - tl.max(mosts, 0))
        final = tl.sum(totals * shares[:, None], 0) / tl.sum(weights * shares, 0)
        tl.store(result, final.to(out.dtype.element_ty), mask=inside)
        tl.store(arrived + pair, 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    layer: int,
    position: Tensor,
    slopes: Tensor | None = None,
) -> Tensor:
    """Put the keys and values of one position in place; attention of its queries over [0, position], [B, H·D].

    Args:
        q: [B, H, D], like ``k`` and ``v`` any view whose heads are contiguous.
        k, v: [B, G, D]; each is that of H / G of the queries' heads in a row.
        position: an integer on the device, [1]; written by no function of this module.
        slopes: ALiBi's, [H] in fp32; a score gets slope · (key − query).

    Raises:
        ValueError: the type is neither fp16 nor bf16.
    """
    requests, heads = q.shape[:2]
    if q.dtype not in TYPES:
        raise ValueError(f"no decode kernel for attention in {q.dtype}")
    cut = parts(
        requests * heads, cache.geometry.positions, _processors(q.device), _vector(cache) > 0
    )
    return _run_attend(q, k, v, cache, layer, position, slopes, cut)


def _run_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    layer: int,
    position: Tensor,
    slopes: Tensor | None,
    cut: Parts,
) -> Tensor:
    requests, heads, size = q.shape
    out = q.new_empty(requests, heads * size)
    partial, arrived = _workspace(q.device)
    _attend[(requests * heads, cut.splits)](
        q, k, v, cache.k[layer], cache.v[layer], position, slopes, out, partial, arrived, heads, size**-0.5,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *_Axes.of(cache, "k").numbers, *_Axes.of(cache, "v").numbers[:3],
        size, triton.next_power_of_2(size), _vector(cache), cut.positions, cut.splits,
        cut.stages, slopes is not None, heads // k.shape[1],
        num_warps=cut.warps, launch_pdl=_overlaps(q.device),
    )  # fmt: skip
    return out
