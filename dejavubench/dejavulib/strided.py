"""Strided DMA: a region of a CUDA cache straight into pinned host memory.

It needs no kernel and no staging on the device. It is the alternative to the gather kernel if the
extents are long enough, and lie regularly enough, for few copies of many rows. :func:`choose`
measures which of the two is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import median_low
from typing import Literal, NamedTuple

import numpy as np
import torch

from .kv_cache import BOTH, KV, KVCache, KVGeometry, Region, Rows
from .packing import Packing, pinned_buffer

PackMethod = Literal["kernel", "strided DMA"]
"""Ways from a device's cache to a contiguous chunk."""

SHORTEST_ROW_NBYTES = 64
"""Least bytes of a row to try strided DMA: rows of 16 (``ft``) took twice the kernel's time."""

MOST_PITCH_NBYTES = 2**31 - 1
"""Most bytes from one row to the next that CUDA accepts."""

ROUNDS_PER_CHOICE = 7
"""Times that each way is measured, in turns."""


class Axis(NamedTuple):
    """``number`` equal pieces, ``source`` bytes apart in the cache, ``packed`` when packed."""

    number: int
    source: int
    packed: int


class BoxCopy(NamedTuple):
    """One copy: ``slices`` of ``rows`` of ``width`` bytes each, all of K or all of V.

    ``source`` and ``packed`` are the offsets of the first byte in the K or V tensor and in the
    packed buffer. On both sides a row's pitch is at least its width, and a slice's pitch a multiple
    of a row's, as CUDA demands.
    """

    kv: KV
    source: int
    packed: int
    width: int
    rows: Axis
    slices: Axis


def box_copies(geometry: KVGeometry, region: Region) -> list[BoxCopy]:
    """Return the copies that pack a region (of each layer K, then V), as few as the layout allows.

    There is at most one per layer's K or V: one layer has at most two axes that do not merge.

    Raises:
        ValueError: the region is empty.
    """
    if not region.tokens_heads:
        raise ValueError(f"nothing to move in {region}")
    layer_nbytes = geometry.region_nbytes(region) // region.layers.size
    copies: list[BoxCopy] = []
    for kv_index, kv in enumerate(BOTH):
        rows = geometry.rows(kv, region)
        copies += _make_boxes(
            kv, rows.first_offset, kv_index * layer_nbytes // 2, *_merge_axes(rows, layer_nbytes)
        )
    return copies


def _merge_axes(rows: Rows, layer_nbytes: int) -> tuple[int, list[Axis]]:
    """Return the bytes contiguous on both sides, and the axes that count them, outermost first.

    An axis merges into the one inside it if its strides continue that one's on both sides.
    """
    layers, *inner_axes = rows.axes
    width, packed_stride = rows.nbytes, rows.nbytes
    axes = []
    for count, stride in reversed(inner_axes):
        axes.append(Axis(count, stride, packed_stride))
        packed_stride *= count
    axes.append(Axis(*layers, layer_nbytes))
    merged_axes: list[Axis] = []
    for axis in axes:
        # Before the first axis, the row itself is the innermost one: ``width`` pieces of one byte,
        # hence (width, 1, 1). Whole heads of a prompt in ``hnd``, [layers, B, H, P of S, D]: rows()
        # gives rows of P·D bytes. Heads lie P·D bytes apart when packed and S·D in the cache, so
        # for P < S they stay an axis, (H, S·D, P·D). Requests lie H·S·D and H·P·D apart, which is H
        # times that on both sides: (B·H, S·D, P·D), one axis for both.
        count, inner_source, inner_packed = merged_axes[-1] if merged_axes else (width, 1, 1)
        if axis.number == 1:
            continue  # its stride counts nothing, so it must not keep its neighbours apart
        if axis[1:] != (count * inner_source, count * inner_packed):
            merged_axes.append(axis)
        elif merged_axes:
            merged_axes[-1] = Axis(axis.number * count, inner_source, inner_packed)
        else:
            width *= axis.number
    return width, merged_axes[::-1]


def _make_boxes(
    kv: KV, source: int, packed: int, width: int, axes: list[Axis]
) -> Iterator[BoxCopy]:
    """Yield the copies: one copy counts two axes; a copy each counts the outer ones."""
    rows = axes[-1] if axes else Axis(1, width, width)
    slices = (
        axes[-2] if len(axes) > 1 else Axis(1, rows.number * rows.source, rows.number * rows.packed)
    )
    outer_axes = axes[:-2]
    for index in product(*(range(axis.number) for axis in outer_axes)):
        outer_offsets = [
            (piece_index * axis.source, piece_index * axis.packed)
            for piece_index, axis in zip(index, outer_axes, strict=True)
        ]
        yield BoxCopy(
            kv=kv,
            source=source + sum(in_source for in_source, _ in outer_offsets),
            packed=packed + sum(in_packed for _, in_packed in outer_offsets),
            width=width,
            rows=rows,
            slices=slices,
        )


def is_worth_trying(geometry: KVGeometry, region: Region) -> bool:
    """Return whether rows are long enough for strided DMA to have a chance against the kernel."""
    copies = box_copies(geometry, region)
    return (
        min(copy.width for copy in copies) >= SHORTEST_ROW_NBYTES
        and max(copy.rows.source for copy in copies) <= MOST_PITCH_NBYTES
    )


# ---- on a device ----

PITCHED = np.dtype([("begin", "u8"), ("pitch", "u8"), ("row", "u8"), ("rows", "u8")])
"""CUDA's ``cudaPitchedPtr``; ``rows`` is the number of rows from one slice to the next."""

MEMCPY3D = np.dtype(
    [
        ("source_array", "u8"),
        ("source_at", "u8", 3),
        ("source", PITCHED),
        ("packed_array", "u8"),
        ("packed_at", "u8", 3),
        ("packed", PITCHED),
        ("extent", "u8", 3),
        ("kind", "i4"),
        ("_", "u4"),
    ]
)
"""CUDA's ``cudaMemcpy3DParms``, byte for byte."""


class StridedCopy:
    """Brings one region of a CUDA cache to the host; CUDA's arguments are prepared beforehand.

    One copy takes the K of all layers and one takes their V: issuing a copy per layer would cost
    more time per token than moving the bytes.
    """

    def __init__(self, cache: KVCache, region: Region) -> None:
        self._nbytes = cache.geometry.region_nbytes(region)
        copies = box_copies(cache.geometry, region)
        self._packed_offsets = np.array([copy.packed for copy in copies], np.uint64)
        self._arguments = np.array(
            [_make_arguments(copy, cache.tensor(copy.kv).data_ptr()) for copy in copies]
        )
        # The array is kept, so the addresses of its rows stay valid; `to_host` writes into them.
        first_address = self._arguments.ctypes.data
        self._addresses = range(
            first_address, first_address + self._arguments.nbytes, MEMCPY3D.itemsize
        )

    def to_host(self, packed: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Issue the copies on ``stream``.

        Args:
            packed: pinned buffer, uint8.

        Raises:
            ValueError: ``packed`` does not have the region's bytes.
        """
        from cupy.cuda import runtime

        if packed.numel() != self._nbytes:
            raise ValueError(f"a buffer of {packed.numel()} bytes for a region of {self._nbytes}")
        self._arguments["packed"]["begin"] = self._packed_offsets + np.uint64(packed.data_ptr())
        stream_handle = stream.cuda_stream
        for address in self._addresses:
            runtime.memcpy3DAsync(address, stream_handle)


DEVICE_TO_HOST = 2
"""CUDA's ``cudaMemcpyDeviceToHost``."""


def _make_arguments(copy: BoxCopy, tensor: int) -> np.ndarray:
    """Return the arguments of a copy, without the packed buffer's address.

    Args:
        tensor: address of K or V.
    """
    rows, slices = copy.rows, copy.slices
    arguments = np.zeros((), MEMCPY3D)
    arguments["source"] = (
        tensor + copy.source,
        rows.source,
        copy.width,
        slices.source // rows.source,
    )
    # CUDA wants a slice's distance as a number of rows; `box_copies` made it a whole number.
    arguments["packed"] = (0, rows.packed, copy.width, slices.packed // rows.packed)
    arguments["extent"] = (copy.width, rows.number, slices.number)
    arguments["kind"] = DEVICE_TO_HOST
    return arguments


# ---- which one ----


@dataclass(frozen=True)
class WayChoice:
    """The way in which chunks of one kind come to the host, and its measurement.

    Attributes:
        kernel_s, dma_s: seconds of one chunk, from the first call to the last byte; None if that
            way was not measured.
    """

    way: PackMethod
    kernel_s: float | None = None
    dma_s: float | None = None

    def __str__(self) -> str:
        if self.kernel_s is None:
            return f"{self.way} (not measured)"
        if self.dma_s is None:
            return f"{self.way} (rows too short for strided DMA)"
        if self.way == "kernel":
            return f"kernel ({self.kernel_s / self.dma_s:.2f} of strided DMA's time)"
        return f"strided DMA ({self.dma_s / self.kernel_s:.2f} of the kernel's time)"


def choose(
    cache: KVCache,
    region: Region,
    tie: float = 0.0,
    slot: torch.Tensor | None = None,
    rounds: int = ROUNDS_PER_CHOICE,
) -> WayChoice:
    """Measure both ways in turns on an idle device, and choose the one with the lower median.

    Args:
        tie: share of the kernel's time by which strided DMA may be slower and is still chosen.
        slot: staging on the device for the kernel; without it, some is allocated.
        rounds: measurements of each way.
    """
    nbytes = cache.geometry.region_nbytes(region)
    staged = (
        torch.empty(nbytes, dtype=torch.uint8, device=cache.k.device) if slot is None else slot
    )[:nbytes]
    packed = pinned_buffer(nbytes)
    packing = Packing(cache, region)
    stream = torch.cuda.Stream(cache.k.device)

    def kernel() -> None:
        packing.gather(staged)
        packed.copy_(staged, non_blocking=True)

    if not is_worth_trying(cache.geometry, region):
        return WayChoice("kernel", _time_ways([kernel], stream, rounds)[0])
    strided_copy = StridedCopy(cache, region)
    kernel_s, dma_s = _time_ways(
        [kernel, lambda: strided_copy.to_host(packed, stream)], stream, rounds
    )
    return WayChoice("strided DMA" if dma_s <= kernel_s * (1 + tie) else "kernel", kernel_s, dma_s)


def _time_ways(
    ways: list[Callable[[], None]], stream: torch.cuda.Stream, rounds: int
) -> list[float]:
    """Return the median seconds of each way, issuing from Python included. Round 0 warms up."""
    torch.cuda.synchronize(stream.device)
    seconds: list[list[float]] = [[] for _ in ways]
    with torch.cuda.stream(stream):
        for _ in range(rounds + 1):
            for way, times in zip(ways, seconds, strict=True):
                begin_event = torch.cuda.Event(enable_timing=True)
                end_event = torch.cuda.Event(enable_timing=True)
                began_s = time.perf_counter()
                begin_event.record()
                way()
                end_event.record()
                issue_s = time.perf_counter() - began_s
                end_event.synchronize()
                # Issuing from Python may take longer than the copy: then it is the cost.
                times.append(max(issue_s, begin_event.elapsed_time(end_event) / 1e3))
    return [median_low(times[1:]) for times in seconds]
