"""Boxes: a region as few strided copies of many rows, into a packed buffer or into another cache.

Pure: offsets and strides in bytes, no tensors. A *box* is what one ``cudaMemcpy3D`` moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from .geometry import BOTH, KV, KVGeometry, Rows
from .regions import Region

SHORTEST_ROW_NBYTES = 64
"""Least bytes of a row to try strided DMA: rows of 16 (``ft``) took twice the kernel's time."""

MOST_PITCH_NBYTES = 2**31 - 1
"""Most bytes from one row to the next that CUDA accepts."""


class Axis(NamedTuple):
    """``number`` equal pieces, ``source`` bytes apart in the cache, ``target`` where they go."""

    number: int
    source: int
    target: int


class BoxCopy(NamedTuple):
    """One copy: ``slices`` of ``rows`` of ``width`` bytes each, all of K or all of V.

    ``source`` is the offset of the first byte in the K or V tensor, and ``target`` the one in the
    packed buffer or in the other cache's tensor. On both sides a row's pitch is at least its width,
    and a slice's pitch a multiple of a row's, as CUDA demands.
    """

    kv: KV
    source: int
    target: int
    width: int
    rows: Axis
    slices: Axis


def plan_packing_copies(geometry: KVGeometry, region: Region) -> list[BoxCopy]:
    """Return the copies that pack a region (of each layer K, then V), as few as the layout allows.

    There is at most one per layer's K or V: one layer has at most two axes that do not merge.

    Raises:
        ValueError: the region is empty.
    """
    _refuse_empty(region)
    layer_nbytes = geometry.region_nbytes(region) // region.layers.size
    copies: list[BoxCopy] = []
    for kv_index, kv in enumerate(BOTH):
        rows = geometry.rows(kv, region)
        axes = _list_packed_axes(rows, layer_nbytes)
        copies += _make_boxes(
            kv, rows.first_offset, kv_index * layer_nbytes // 2, *_merge_axes(rows.nbytes, axes)
        )
    return copies


def plan_cache_copies(
    geometry: KVGeometry, region: Region, other_geometry: KVGeometry, other_region: Region
) -> list[BoxCopy]:
    """Return the copies that bring a region straight to its place in another cache, K before V.

    Args:
        other_geometry, other_region: of the other cache, of the same layout and the same sizes.

    Raises:
        ValueError: the region is empty, or the two caches do not hold the same piece.
    """
    _refuse_empty(region)
    copies: list[BoxCopy] = []
    for kv in BOTH:
        if geometry.piece_shape(kv, region) != other_geometry.piece_shape(kv, other_region):
            raise ValueError(
                f"{region} of a cache of {geometry} does not fit {other_region} of {other_geometry}"
            )
        rows = geometry.rows(kv, region, other_geometry)
        other_rows = other_geometry.rows(kv, other_region, geometry)
        axes = [
            Axis(count, stride, other_stride)
            for (count, stride), (_, other_stride) in zip(rows.axes, other_rows.axes, strict=True)
        ]
        copies += _make_boxes(
            kv, rows.first_offset, other_rows.first_offset, *_merge_axes(rows.nbytes, axes[::-1])
        )
    return copies


def suits_strided_dma(copies: Sequence[BoxCopy]) -> bool:
    """Return whether rows are long enough for strided DMA to have a chance against the kernel."""
    return (
        min(copy.width for copy in copies) >= SHORTEST_ROW_NBYTES
        and max(max(copy.rows.source, copy.rows.target) for copy in copies) <= MOST_PITCH_NBYTES
    )


def _refuse_empty(region: Region) -> None:
    if not region.tokens_heads:
        raise ValueError(f"nothing to move in {region}")


def _list_packed_axes(rows: Rows, layer_nbytes: int) -> list[Axis]:
    """Return the axes that count rows, innermost first; the target is the packed buffer."""
    layers, *inner_axes = rows.axes
    packed_stride = rows.nbytes
    axes = []
    for count, stride in reversed(inner_axes):
        axes.append(Axis(count, stride, packed_stride))
        packed_stride *= count
    axes.append(Axis(*layers, layer_nbytes))
    return axes


def _merge_axes(width: int, axes: Sequence[Axis]) -> tuple[int, list[Axis]]:
    """Return the bytes contiguous on both sides, and the axes that count them, outermost first.

    An axis merges into the one inside it if its strides continue that one's on both sides.

    Args:
        width: bytes of a row.
        axes: axes that count rows, innermost first.
    """
    merged_axes: list[Axis] = []
    for axis in axes:
        # Before the first axis, the row itself is the innermost one: ``width`` pieces of one byte,
        # hence (width, 1, 1). Whole heads of a prompt in ``hnd``, [layers, B, H, P of S, D]: rows()
        # gives rows of P·D bytes. Heads lie P·D bytes apart when packed and S·D in the cache, so
        # for P < S they stay an axis, (H, S·D, P·D). Requests lie H·S·D and H·P·D apart, which is H
        # times that on both sides: (B·H, S·D, P·D), one axis for both.
        count, inner_source, inner_target = merged_axes[-1] if merged_axes else (width, 1, 1)
        if axis.number == 1:
            continue  # its stride counts nothing, so it must not keep its neighbours apart
        if axis[1:] != (count * inner_source, count * inner_target):
            merged_axes.append(axis)
        elif merged_axes:
            merged_axes[-1] = Axis(axis.number * count, inner_source, inner_target)
        else:
            width *= axis.number
    return width, merged_axes[::-1]


def _make_boxes(
    kv: KV, source: int, target: int, width: int, axes: list[Axis]
) -> Iterator[BoxCopy]:
    """Yield the copies: one copy counts two axes; a copy each counts the outer ones."""
    rows = axes[-1] if axes else Axis(1, width, width)
    slices = (
        axes[-2] if len(axes) > 1 else Axis(1, rows.number * rows.source, rows.number * rows.target)
    )
    outer_axes = axes[:-2]
    for index in product(*(range(axis.number) for axis in outer_axes)):
        outer_offsets = [
            (piece_index * axis.source, piece_index * axis.target)
            for piece_index, axis in zip(index, outer_axes, strict=True)
        ]
        yield BoxCopy(
            kv=kv,
            source=source + sum(in_source for in_source, _ in outer_offsets),
            target=target + sum(in_target for _, in_target in outer_offsets),
            width=width,
            rows=rows,
            slices=slices,
        )
