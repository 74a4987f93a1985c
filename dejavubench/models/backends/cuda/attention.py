"""Attention of one position in Triton, which also puts its keys and values in the cache.

See :mod:`.launch`. The tensor cores multiply, so that all queries of a group read its keys and
values once. The position is read on the device, so that a captured step serves any position.

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
    partial_sums     [B · G, splits, group, padded + 2], contiguous                fp32
    arrivals         [B · G], parts that have ended; 0 between launches            int32

``size`` is D, and ``padded`` the next power of two, as Triton's ranges need one. ``vector`` is x,
or 0 where a key lies in one piece. ``group`` is H / G. A block of threads serves one *pair* of
request and KV head, with all queries of its group, and one *split* of the positions. It reads
``block`` positions at once. The tensor cores take ``rows`` queries, 16 at least: those beyond the
group are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.backends.cuda.launch import (
    KERNEL_TYPES,
    allocate_workspace,
    can_overlap,
    count_processors,
    prefetch,
)
from dejavubench.models.backends.cuda.position_split import PositionSplit, cut_positions

LEAST_ROWS = 16
"""Least rows of a factor of the tensor cores."""


@dataclass(frozen=True)
class _Strides:
    """Strides of one layer's K or V, in elements; ``vector`` is that of an ``ft`` key's vectors."""

    request: int
    head: int
    position: int
    vector: int = 0

    @classmethod
    def of_cache(cls, cache: KVCache, kv: Literal["k", "v"]) -> _Strides:
        strides = cache.tensor(kv).stride()[1:]
        if cache.geometry.layout is KVLayout.NHD:
            return cls(strides[0], strides[2], strides[1])
        if cache.geometry.layout is KVLayout.FT and kv == "k":
            return cls(strides[0], strides[1], strides[3], strides[2])
        return cls(strides[0], strides[1], strides[2])

    @property
    def as_tuple(self) -> tuple[int, ...]:
        return self.request, self.head, self.position, self.vector


def _vector_size(cache: KVCache) -> int:
    """Return the elements of ``ft``'s vectors; 0 if a key lies in one piece."""
    return cache.geometry.vector if cache.geometry.layout is KVLayout.FT else 0


@triton.jit
def _key_offsets(elements, vector: tl.constexpr, keys_x):  # type: ignore[no-untyped-def]
    """Return the offsets of the elements of one key of the cache."""
    return elements // vector * keys_x + elements % vector if vector else elements


@triton.jit
def _store_newest(  # type: ignore[no-untyped-def]
    query, key_source, value_source, key_target, value_target, scale, elements, element_mask,
    vector: tl.constexpr, keys_x,
):  # fmt: skip
    """Put the newest position in the cache; return its score for each query, and its value."""
    key = tl.load(key_source + elements, mask=element_mask, other=0.0)
    value = tl.load(value_source + elements, mask=element_mask, other=0.0)
    tl.store(key_target + _key_offsets(elements, vector, keys_x), key, mask=element_mask)
    tl.store(value_target + elements, value, mask=element_mask)
    products = query.to(tl.float32) * key.to(tl.float32)[None, :]
    return tl.sum(products, 1) * scale, value.to(tl.float32)


@triton.jit
def _merge_parts(  # type: ignore[no-untyped-def]
    parts_base, arrival, results, split, parts, row_max, row_sum, weighted, row, row_mask,
    elements, element_mask, splits: tl.constexpr, padded: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Leave this part's sums; the block that arrives last merges all parts, in their order."""
    row_size: tl.constexpr = padded + 2  # the weighted values, their maximum and their sum
    part_size: tl.constexpr = group * row_size
    rows_of_part = row * row_size
    mask = row_mask[:, None] & (elements < padded)[None, :]
    own_part = parts_base + split * part_size + rows_of_part
    tl.store(own_part[:, None] + elements[None, :], weighted, mask=mask)
    tl.store(own_part + padded, row_max, mask=row_mask)
    tl.store(own_part + padded + 1, row_sum, mask=row_mask)
    tl.debug_barrier()  # all of the block has written before one of its threads says so
    if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == parts - 1:
        # Other blocks' parts lie in L2, where their stores went; .cg bypasses a stale L1 line.
        part = tl.arange(0, splits)
        part_mask = (part < parts)[:, None] & row_mask[None, :]
        max_pointers = parts_base + part[:, None] * part_size + rows_of_part[None, :] + padded
        maxima = tl.load(max_pointers, mask=part_mask, other=float("-inf"), cache_modifier=".cg")
        part_sums = tl.load(max_pointers + 1, mask=part_mask, other=0.0, cache_modifier=".cg")
        # Rows beyond the group have no maximum: 0 keeps their shares free of NaN.
        overall_max = tl.where(row_mask, tl.max(maxima, 0), 0.0)
        overall_sum = tl.sum(part_sums * tl.exp(maxima - overall_max[None, :]), 0)
        merged = tl.zeros_like(weighted)
        for part_index in tl.static_range(splits):
            has_part = row_mask & (part_index < parts)
            pointers = parts_base + part_index * part_size + rows_of_part
            part_max = tl.load(
                pointers + padded, mask=has_part, other=float("-inf"), cache_modifier=".cg"
            )
            part_values = tl.load(
                pointers[:, None] + elements[None, :], mask=mask & (part_index < parts), other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            merged += part_values * tl.exp(part_max - overall_max)[:, None]
        attended = merged / tl.where(row_mask, overall_sum, 1.0)[:, None]
        tl.store(results, attended.to(results.dtype.element_ty), mask=mask & element_mask[None, :])
        tl.store(arrival, 0)  # 0 again for the next launch or replay: nothing else resets it


@triton.jit
def _prefetch_first(  # type: ignore[no-untyped-def]
    key_base, value_base, first, stop, keys_s, values_s, position,
    block: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr,
):  # fmt: skip
    """Bring the first block of positions to the L2 cache, before the previous kernel has ended."""
    # Before gdc_wait() only ``position`` and old cache lines may be read: no running kernel writes
    # them. q and the newest k and v come from the previous kernel.
    positions = first + tl.arange(0, block)
    old_positions = tl.where(positions < stop, positions, tl.maximum(position - 1, 0))
    line_offsets = tl.arange(0, (padded + 63) // 64) * 64
    if not vector:
        prefetch(key_base + (old_positions * keys_s)[:, None] + line_offsets[None, :])
    prefetch(value_base + (old_positions * values_s)[:, None] + line_offsets[None, :])


@triton.jit
def _load_keys(  # type: ignore[no-untyped-def]
    key_base, positions, position_mask, keys_s, keys_x,
    size: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr,
):  # fmt: skip
    """Return the keys of these positions, transposed: [padded, block]."""
    block: tl.constexpr = positions.shape[0]
    if vector:
        vector_index = tl.arange(0, padded // vector)[:, None, None]
        lane = tl.arange(0, vector)[None, :, None]
        pointers = key_base + vector_index * keys_x + (positions * keys_s)[None, None, :] + lane
        mask = (vector_index * vector < size) & position_mask[None, None, :]
        return tl.reshape(tl.load(pointers, mask=mask, other=0.0), (padded, block))
    else:
        elements = tl.arange(0, padded)
        pointers = key_base + (positions * keys_s)[None, :] + elements[:, None]
        mask = (elements < size)[:, None] & position_mask[None, :]
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _cut_evenly(position, block: tl.constexpr, splits: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the positions of each part of [0, position), and the number of parts.

    The newest position is a piece of its own of the last part.
    """
    part_positions = tl.cdiv(tl.cdiv(position, block), splits) * block
    return part_positions, tl.maximum(tl.cdiv(position, tl.maximum(part_positions, 1)), 1)


@triton.jit
def _load_queries(  # type: ignore[no-untyped-def]
    q, slopes, head, row_mask, q_h, elements, element_mask, alibi: tl.constexpr
):  # fmt: skip
    """Return the queries of some heads, [rows, padded], and their ALiBi slopes."""
    pointers = q + (head * q_h)[:, None] + elements[None, :]
    query = tl.load(pointers, mask=row_mask[:, None] & element_mask[None, :], other=0.0)
    slope = tl.zeros(head.shape, tl.float32)
    if alibi:
        slope = tl.load(slopes + head, mask=row_mask, other=0.0)
    return query, slope


@triton.jit
def _add_positions(  # type: ignore[no-untyped-def]
    query, key_base, value_base, positions, stop, position, slope, row_max, row_sum, weighted,
    scale, keys_s, keys_x, values_s,
    size: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr, alibi: tl.constexpr,
):  # fmt: skip
    """Return each query's maximum, sum and weighted values with some more positions."""
    position_mask = positions < stop
    key = _load_keys(key_base, positions, position_mask, keys_s, keys_x, size, padded, vector)
    scores = tl.dot(query, key) * scale
    if alibi:
        scores += slope[:, None] * (positions - position)[None, :]
    scores = tl.where(position_mask[None, :], scores, float("-inf"))
    # Online softmax: what was summed under a lower maximum shrinks.
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shrink = tl.exp(row_max - new_max)
    weights = tl.exp(scores - new_max[:, None])
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    elements = tl.arange(0, padded)
    value = tl.load(
        value_base + (positions * values_s)[:, None] + elements[None, :],
        mask=position_mask[:, None] & (elements < size)[None, :], other=0.0,
    )  # fmt: skip
    weighted = tl.dot(weights.to(value.dtype), value, weighted * shrink[:, None])
    return new_max, row_sum, weighted


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k_new, v_new, keys, values, position_at, slopes, out, partial_sums, arrivals, kv_heads,
    scale,
    q_b, q_h, k_b, k_h, v_b, v_h, keys_b, keys_h, keys_s, keys_x, values_b, values_h, values_s,
    size: tl.constexpr, padded: tl.constexpr, vector: tl.constexpr, block: tl.constexpr,
    splits: tl.constexpr, stages: tl.constexpr, alibi: tl.constexpr, group: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    """Attend one pair and split; strides: _b of requests, _h heads, _s positions, _x vectors."""
    pair, split = tl.program_id(0), tl.program_id(1)
    request, kv_head = (pair // kv_heads).to(tl.int64), (pair % kv_heads).to(tl.int64)
    elements = tl.arange(0, padded)
    element_mask = elements < size
    row = tl.arange(0, rows)
    row_mask = row < group
    key_base = keys + request * keys_b + kv_head * keys_h
    value_base = values + request * values_b + kv_head * values_h
    # Released first: the next kernel's blocks prefetch from now on, and wait for this one later.
    gdc_launch_dependents()
    position = tl.load(position_at).to(tl.int32)
    part_positions, parts = _cut_evenly(position, block, splits)
    if split >= parts:  # the grid is for the longest cache
        return
    first = split * part_positions
    stop = tl.minimum(first + part_positions, position)
    _prefetch_first(
        key_base, value_base, first, stop, keys_s, values_s, position, block, padded, vector
    )
    gdc_wait()

    query, slope = _load_queries(
        q + request * q_b, slopes, kv_head * group + row, row_mask, q_h, elements, element_mask,
        alibi)  # fmt: skip
    row_max = tl.full((rows,), float("-inf"), tl.float32)
    row_sum = tl.zeros((rows,), tl.float32)
    weighted = tl.zeros((rows, padded), tl.float32)
    if split == parts - 1:  # the newest position, whose distance is 0
        row_max, newest = _store_newest(
            query, k_new + request * k_b + kv_head * k_h, v_new + request * v_b + kv_head * v_h,
            key_base + position * keys_s, value_base + position * values_s,
            scale, elements, element_mask, vector, keys_x,
        )  # fmt: skip
        row_sum += 1.0
        weighted += newest[None, :]
    for start in tl.range(first, stop, block, num_stages=stages):
        row_max, row_sum, weighted = _add_positions(
            query, key_base, value_base, start + tl.arange(0, block), stop, position, slope,
            row_max, row_sum, weighted, scale, keys_s, keys_x, values_s,
            size, padded, vector, alibi)  # fmt: skip

    results = out + ((pair * group + row) * size)[:, None] + elements[None, :]
    if splits == 1:
        mask = row_mask[:, None] & element_mask[None, :]
        tl.store(results, (weighted / row_sum[:, None]).to(out.dtype.element_ty), mask=mask)
        return
    _merge_parts(
        partial_sums + pair * splits * group * (padded + 2), arrivals + pair, results, split, parts,
        row_max, row_sum, weighted, row, row_mask, elements, element_mask, splits, padded,
        group)  # fmt: skip


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
    if q.dtype not in KERNEL_TYPES:
        raise ValueError(f"no decode kernel for attention in {q.dtype}")
    requests, kv_heads, head_size = k.shape
    multiprocessors = count_processors(q.device)
    grouped_vectors = _vector_size(cache) > 0 and q.shape[1] > kv_heads
    position_split = cut_positions(
        requests * kv_heads, head_size, cache.geometry.positions, multiprocessors, grouped_vectors
    )
    return run_attend(q, k, v, cache, layer, position, slopes, position_split)


def run_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    layer: int,
    position: Tensor,
    slopes: Tensor | None,
    split: PositionSplit,
) -> Tensor:
    """Launch the kernel with any cut, so that other cuts can be measured."""
    requests, heads, size = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = q.new_empty(requests, heads * size)
    partial_sums, arrivals = allocate_workspace(q.device)
    _attend[(requests * kv_heads, split.split_count)](
        q, k, v, cache.k[layer], cache.v[layer], position, slopes, out, partial_sums, arrivals,
        kv_heads, size**-0.5, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *_Strides.of_cache(cache, "k").as_tuple, *_Strides.of_cache(cache, "v").as_tuple[:3],
        size, triton.next_power_of_2(size), _vector_size(cache), split.block, split.split_count,
        split.stage_count, slopes is not None, group,
        max(LEAST_ROWS, triton.next_power_of_2(group)),
        num_warps=split.warp_count, launch_pdl=can_overlap(q.device),
    )  # fmt: skip
    return out
