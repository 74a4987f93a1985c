"""Attention of one position in Triton, which also puts its keys and values in the cache.

Positions are read on the device, so that a captured step serves any position. See :mod:`.launch`.

Letters in shapes: B requests, H heads of queries, G of keys and values, D elements of a head,
S positions that the cache holds, x elements of a vector of ``ft``.

Names in the kernels. A stride is counted in elements and named ``<tensor>_<axis>``: ``_b`` leads
to the next request, ``_h`` to the next head, ``_s`` to the next position, and ``_x`` to the next
vector of an ``ft`` key::

    tensor           shape                           strides                       type
    q                [B, H, D]                       q_b, q_h                      fp16 or bf16
    k_new, v_new     [B, G, D]                       k_b, k_h, v_b, v_h            as q
    keys             [B, G, S, D] in some order,     keys_b, keys_h, keys_s        as q
                     ft: [B, G, D/x, S, x]           and keys_x, between vectors
    values           [B, G, S, D] in some order      values_b, values_h, values_s  as q
    position_at      [1], the new position                                         int64
    slopes           [H], ALiBi's                                                  fp32
    out              [B · H, D], contiguous                                        as q
    partial          [B · H, splits, padded + 2], contiguous                       fp32
    arrived          [B · H], parts that have ended; 0 between launches            int32

``size`` is D, and ``padded`` the next power of two, as Triton's ranges need one. ``within`` counts
a head's elements, ``spots`` positions. ``vector`` is x, or 0 where a key lies in one piece. A block
of threads serves one *pair* of request and query's head, and one *split* of the positions. It reads
``block`` positions at once. ``group`` is H / G.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.backends.cuda.launch import (
    TYPES,
    ask_for,
    overlaps,
    processors,
    workspace,
)


@dataclass(frozen=True)
class PositionSplit:
    """How positions are cut: ``splits`` parts, a power of two, read ``positions`` at once."""

    positions: int
    splits: int
    warps: int
    stages: int


MOST_SPLITS = 32
"""Most parts of one pair's positions. The block that merges them loads the sums of all at once.

Untuned: no comparison with other bounds is committed.
"""


@functools.cache
def cut_positions(pairs: int, positions: int, multiprocessors: int, vectors: bool) -> PositionSplit:
    """Return how positions are cut: enough blocks for all processors, none too small.

    Args:
        pairs: number of pairs of request and head.
        positions: number of positions that the cache holds.
        vectors: keys lie in vectors, as in ``ft``.
    """
    # Blocks per processor that hide each other's loads, and positions that repay a part's merge.
    # Untuned: these and the sizes below were chosen by hand, and no comparison with other values is
    # committed. They set speed and the order of sums alone; _run_attend takes others to measure.
    blocks_per_processor, least = (16, 32) if vectors else (8, 64)
    enough = blocks_per_processor * multiprocessors
    splits = 1
    while splits < MOST_SPLITS and pairs * splits < enough and positions > least * splits:
        splits *= 2
    # With one warp, sums over a head's elements need no exchange between warps.
    return PositionSplit(16, splits, 1, 2) if vectors else PositionSplit(32, splits, 1, 1)


@dataclass(frozen=True)
class _Axes:
    """Strides of one layer's K or V, in elements; ``vector`` is that of an ``ft`` key's vectors."""

    request: int
    head: int
    position: int
    vector: int = 0

    @classmethod
    def of_cache(cls, cache: KVCache, kv: Literal["k", "v"]) -> _Axes:
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
    """Return the elements of ``ft``'s vectors; 0 if a key lies in one piece."""
    return cache.geometry.vector if cache.geometry.layout is KVLayout.FT else 0


@triton.jit
def _within(offsets, vector: tl.constexpr, step):  # type: ignore[no-untyped-def]
    """Return the offset of the elements ``offsets`` of one key."""
    return offsets // vector * step + offsets % vector if vector else offsets


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    query,
    base,
    spots,
    real,
    keys_s,
    keys_x,
    size: tl.constexpr,
    padded: tl.constexpr,
    vector: tl.constexpr,
):
    """Return query · key of the positions ``spots``; ``base`` points at the head's keys."""
    if vector:
        pieces = tl.arange(0, padded // vector)[:, None, None]
        lanes = tl.arange(0, vector)[None, None, :]
        inside = pieces * vector < size
        q = tl.load(query + pieces * vector + lanes, mask=inside, other=0.0).to(tl.float32)
        places = base + pieces * keys_x + (spots * keys_s)[None, :, None] + lanes
        k = tl.load(places, mask=inside & real[None, :, None], other=0.0).to(tl.float32)
        return tl.sum(tl.sum(q * k, 2), 0)
    else:
        within = tl.arange(0, padded)[None, :]
        q = tl.load(query + within, mask=within < size, other=0.0).to(tl.float32)
        places = base + (spots * keys_s)[:, None] + within
        k = tl.load(places, mask=(within < size) & real[:, None], other=0.0).to(tl.float32)
        return tl.sum(q * k, 1)


@triton.jit
def _store_newest(  # type: ignore[no-untyped-def]
    query, key_at, value_at, key_to, value_to, stores, scale, within, inside,
    vector: tl.constexpr, step,
):  # fmt: skip
    """Return the newest position's score and value; put it in the cache if ``stores``."""
    key = tl.load(key_at + within, mask=inside, other=0.0)
    value = tl.load(value_at + within, mask=inside, other=0.0)
    if stores:
        tl.store(key_to + _within(within, vector, step), key, mask=inside)
        tl.store(value_to + within, value, mask=inside)
    q = tl.load(query + within, mask=inside, other=0.0).to(tl.float32)
    return tl.sum(q * key.to(tl.float32), 0) * scale, value.to(tl.float32)


@triton.jit
def _add_block(most, weight, total, scores, value):  # type: ignore[no-untyped-def]
    """Return a softmax's maximum, weight and sums with some more positions (online softmax)."""
    higher = tl.maximum(most, tl.max(scores, 0))
    shrink = tl.exp(most - higher)  # of what was summed under a lower maximum
    shares = tl.exp(scores - higher)
    weight = weight * shrink + tl.sum(shares, 0)
    total = total * shrink + tl.sum(shares[:, None] * value.to(tl.float32), 0)
    return higher, weight, total


@triton.jit
def _merge_parts(  # type: ignore[no-untyped-def]
    mine, arrived, result, split, parts, most, weight, total, within, inside,
    splits: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Leave this part's sums; the block that arrives last merges all parts, in their order."""
    row: tl.constexpr = padded + 2  # the sums, their maximum and their weight
    tl.store(mine + split * row + within, total)
    tl.store(mine + split * row + padded, most)
    tl.store(mine + split * row + padded + 1, weight)
    tl.debug_barrier()  # all of the block has written before one of its threads says so
    if tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == parts - 1:
        # Other blocks' parts lie in L2, where their stores went; .cg bypasses a stale L1 line.
        others = tl.arange(0, splits)
        is_part = others < parts
        ends = mine + others * row + padded
        mosts = tl.load(ends, mask=is_part, other=float("-inf"), cache_modifier=".cg")
        weights = tl.load(ends + 1, mask=is_part, other=0.0, cache_modifier=".cg")
        places = mine + others[:, None] * row + within[None, :]
        totals = tl.load(places, mask=is_part[:, None], other=0.0, cache_modifier=".cg")
        shares = tl.exp(mosts - tl.max(mosts, 0))
        final = tl.sum(totals * shares[:, None], 0) / tl.sum(weights * shares, 0)
        tl.store(result, final.to(result.dtype.element_ty), mask=inside)
        tl.store(arrived, 0)  # 0 again for the next launch or replay: nothing else resets it


@triton.jit
def _ask_for_first(  # type: ignore[no-untyped-def]
    base_k, base_v, first, stop, keys_s, values_s, position,
    block: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr,
):  # fmt: skip
    """Bring the first block of positions to the L2 cache, before the previous kernel has ended."""
    # Before gdc_wait() only ``position`` and old cache lines may be read: no running kernel writes
    # them. q and the newest k and v come from the previous kernel.
    spots = first + tl.arange(0, block)
    real = spots < stop
    lines = tl.arange(0, (padded + 63) // 64) * 64
    safe = tl.where(real, spots, tl.maximum(position - 1, 0))
    if not vector:
        ask_for(base_k + (safe * keys_s)[:, None] + lines[None, :])
    ask_for(base_v + (safe * values_s)[:, None] + lines[None, :])


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k_new, v_new, keys, values, position_at, slopes, out, partial, arrived, heads, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, keys_b, keys_h, keys_s, keys_x, values_b, values_h, values_s,
    size: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr, block: tl.constexpr,
    splits: tl.constexpr, stages: tl.constexpr, alibi: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Attend one pair and split; strides: _b of requests, _h heads, _s positions, _x vectors."""
    pair, split = tl.program_id(0), tl.program_id(1)
    request, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    kv_head = head // group
    within = tl.arange(0, padded)
    inside = within < size
    base_k = keys + request * keys_b + kv_head * keys_h
    base_v = values + request * values_b + kv_head * values_h
    # Released first: the next kernel's blocks prefetch from now on, and wait for this one later.
    gdc_launch_dependents()
    position = tl.load(position_at).to(tl.int32)
    # Positions [0, position) are cut evenly; the newest one is its own piece of the last part.
    share = tl.cdiv(tl.cdiv(position, block), splits) * block
    parts = tl.maximum(tl.cdiv(position, tl.maximum(share, 1)), 1)
    if split >= parts:  # the grid is for the longest cache
        return
    first = split * share
    stop = tl.minimum(first + share, position)
    _ask_for_first(base_k, base_v, first, stop, keys_s, values_s, position, block, padded, vector)
    gdc_wait()

    query = q + request * q_b + head * q_h
    slope = tl.load(slopes + head) if alibi else 0.0
    most = float("-inf")
    weight = 0.0
    total = tl.zeros((padded,), tl.float32)
    if split == parts - 1:  # the newest position, whose distance is 0
        most, newest = _store_newest(
            query, k_new + request * k_b + kv_head * k_h, v_new + request * v_b + kv_head * v_h,
            base_k + position * keys_s, base_v + position * values_s,
            head % group == 0,  # the group's other heads never read it from the cache
            scale, within, inside, vector, keys_x,
        )  # fmt: skip
        weight = 1.0
        total += newest
    for start in tl.range(first, stop, block, num_stages=stages):
        spots = start + tl.arange(0, block)
        real = spots < stop
        places = base_v + (spots * values_s)[:, None] + within[None, :]
        value = tl.load(places, mask=real[:, None] & inside[None, :], other=0.0)
        scores = _scores(query, base_k, spots, real, keys_s, keys_x, size, padded, vector) * scale
        if alibi:
            scores += slope * (spots - position)
        scores = tl.where(real, scores, float("-inf"))
        most, weight, total = _add_block(most, weight, total, scores, value)

    result = out + pair * size + within
    if splits == 1:
        tl.store(result, (total / weight).to(out.dtype.element_ty), mask=inside)
        return
    _merge_parts(
        partial + pair * splits * (padded + 2), arrived + pair, result, split, parts,
        most, weight, total, within, inside, splits, padded)  # fmt: skip


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    layer: int,
    position: Tensor,
    slopes: Tensor | None = None,
) -> Tensor:
    """Put the keys and values of one position in the cache and attend to [0, position], [B, H·D].

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
    cut = cut_positions(
        requests * heads, cache.geometry.positions, processors(q.device), _vector(cache) > 0
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
    cut: PositionSplit,
) -> Tensor:
    """Launch the kernel with any cut, so that other cuts can be measured."""
    requests, heads, size = q.shape
    out = q.new_empty(requests, heads * size)
    partial, arrived = workspace(q.device)
    _attend[(requests * heads, cut.splits)](
        q, k, v, cache.k[layer], cache.v[layer], position, slopes, out, partial, arrived,
        heads, size**-0.5, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *_Axes.of_cache(cache, "k").numbers, *_Axes.of_cache(cache, "v").numbers[:3],
        size, triton.next_power_of_2(size), _vector(cache), cut.positions, cut.splits,
        cut.stages, slopes is not None, heads // k.shape[1],
        num_warps=cut.warps, launch_pdl=overlaps(q.device),
    )  # fmt: skip
    return out
