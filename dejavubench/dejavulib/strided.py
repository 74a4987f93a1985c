"""Strided DMA: a region of a CUDA cache straight into pinned host memory, or into another cache.

It needs no kernel and no staging on the device. It is the alternative to the gather kernel if the
extents are long enough, and lie regularly enough, for few copies of many rows. :func:`choose`
measures which of the two brings a chunk to the host faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

import numpy as np
import torch

from .boxes import BoxCopy, plan_packing_copies, suits_strided_dma
from .extents import BaseAddresses
from .kv_cache import KVCache, KVGeometry, Region
from .packing import Packing, pinned_buffer

PackMethod = Literal["kernel", "strided DMA"]
"""Ways from a device's cache to a contiguous chunk."""

ROUNDS_PER_CHOICE = 7
"""Times that each way is measured, in turns."""


def is_worth_trying(geometry: KVGeometry, region: Region) -> bool:
    """Return whether strided DMA of a region to the host has a chance against the kernel."""
    return suits_strided_dma(plan_packing_copies(geometry, region))


# ---- on a device ----

PITCHED = np.dtype([("begin", "u8"), ("pitch", "u8"), ("row", "u8"), ("rows", "u8")])
"""CUDA's ``cudaPitchedPtr``; ``rows`` is the number of rows from one slice to the next."""

MEMCPY3D = np.dtype(
    [
        ("source_array", "u8"),
        ("source_at", "u8", 3),
        ("source", PITCHED),
        ("target_array", "u8"),
        ("target_at", "u8", 3),
        ("target", PITCHED),
        ("extent", "u8", 3),
        ("kind", "i4"),
        ("_", "u4"),
    ]
)
"""CUDA's ``cudaMemcpy3DParms``, byte for byte."""


class _Arguments:
    """Prepared arguments of copies of boxes. They stay where they are as long as this object.

    Attributes:
        rows: one :data:`MEMCPY3D` per copy.
        addresses: the address of each.
    """

    def __init__(self, copies: Sequence[BoxCopy], cache: KVCache, kind: int) -> None:
        self.rows = np.array(
            [_make_arguments(copy, cache.tensor(copy.kv).data_ptr(), kind) for copy in copies]
        )
        first_address = self.rows.ctypes.data
        self.addresses = range(first_address, first_address + self.rows.nbytes, MEMCPY3D.itemsize)

    def place_targets(self, begins: np.ndarray) -> None:
        """Set the address that each copy writes to first, uint64."""
        self.rows["target"]["begin"] = begins


class StridedCopy:
    """Brings one region of a CUDA cache to the host; CUDA's arguments are prepared beforehand.

    One copy takes the K of all layers and one takes their V: issuing a copy per layer would cost
    more time per token than moving the bytes.
    """

    def __init__(self, cache: KVCache, region: Region) -> None:
        self._nbytes = cache.geometry.region_nbytes(region)
        copies = plan_packing_copies(cache.geometry, region)
        self._packed_offsets = np.array([copy.target for copy in copies], np.uint64)
        self._arguments = _Arguments(copies, cache, DEVICE_TO_HOST)

    def to_host(self, packed: torch.Tensor, cuda_stream: torch.cuda.Stream) -> None:
        """Issue the copies on ``cuda_stream``.

        Args:
            packed: pinned buffer, uint8.

        Raises:
            ValueError: ``packed`` does not have the region's bytes.
        """
        from cupy.cuda import runtime

        if packed.numel() != self._nbytes:
            raise ValueError(f"a buffer of {packed.numel()} bytes for a region of {self._nbytes}")
        self._arguments.place_targets(self._packed_offsets + np.uint64(packed.data_ptr()))
        cuda_stream_handle = cuda_stream.cuda_stream
        for address in self._arguments.addresses:
            runtime.memcpy3DAsync(address, cuda_stream_handle)


class CacheCopy:
    """Brings one region of a CUDA cache straight to its place in another one, packing nothing.

    The other cache may be that of another process or device whose memory is mapped here.

    Args:
        copies: from :func:`.boxes.plan_cache_copies`.
        bases: addresses of the other cache's K and V in this process.
    """

    def __init__(self, cache: KVCache, copies: Sequence[BoxCopy], bases: BaseAddresses) -> None:
        from cupy.cuda import runtime

        self._copy = runtime.memcpy3DAsync
        self._arguments = _Arguments(copies, cache, ANY_TO_ANY)
        begins = [copy.target + (bases.k if copy.kv == "k" else bases.v) for copy in copies]
        self._arguments.place_targets(np.array(begins, np.uint64))

    def issue(self, cuda_stream_handle: int) -> None:
        """Issue the copies on the CUDA stream with this handle."""
        copy = self._copy
        for address in self._arguments.addresses:
            copy(address, cuda_stream_handle)


DEVICE_TO_HOST, ANY_TO_ANY = 2, 4
"""CUDA's ``cudaMemcpyDeviceToHost``, and ``cudaMemcpyDefault``: the addresses say what they are."""


def _make_arguments(copy: BoxCopy, tensor_address: int, kind: int) -> np.ndarray:
    """Return the arguments of a copy, without the address that it writes to.

    Args:
        tensor_address: address of K or V.
    """
    rows, slices = copy.rows, copy.slices
    arguments = np.zeros((), MEMCPY3D)
    arguments["source"] = (
        tensor_address + copy.source,
        rows.source,
        copy.width,
        slices.source // rows.source,
    )
    # CUDA wants a slice's distance as a number of rows; boxes are planned so that it is whole.
    arguments["target"] = (0, rows.target, copy.width, slices.target // rows.target)
    arguments["extent"] = (copy.width, rows.number, slices.number)
    arguments["kind"] = kind
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
    round_count: int = ROUNDS_PER_CHOICE,
) -> WayChoice:
    """Measure both ways in turns on an idle device, and choose the one with the lower median.

    Args:
        tie: share of the kernel's time by which strided DMA may be slower and is still chosen.
        slot: staging on the device for the kernel; without it, some is allocated.
        round_count: measurements of each way.
    """
    nbytes = cache.geometry.region_nbytes(region)
    staged = (
        torch.empty(nbytes, dtype=torch.uint8, device=cache.k.device) if slot is None else slot
    )[:nbytes]
    packed = pinned_buffer(nbytes)
    packing = Packing(cache, region)
    cuda_stream = torch.cuda.Stream(cache.k.device)

    def kernel() -> None:
        packing.gather(staged)
        packed.copy_(staged, non_blocking=True)

    if not is_worth_trying(cache.geometry, region):
        return WayChoice("kernel", _measure_ways([kernel], cuda_stream, round_count)[0])
    strided_copy = StridedCopy(cache, region)
    kernel_s, dma_s = _measure_ways(
        [kernel, lambda: strided_copy.to_host(packed, cuda_stream)], cuda_stream, round_count
    )
    return WayChoice("strided DMA" if dma_s <= kernel_s * (1 + tie) else "kernel", kernel_s, dma_s)


def _measure_ways(
    ways: list[Callable[[], None]], cuda_stream: torch.cuda.Stream, round_count: int
) -> list[float]:
    """Return the median seconds of each way, issuing from Python included. Round 0 warms up."""
    torch.cuda.synchronize(cuda_stream.device)
    seconds_of_ways: list[list[float]] = [[] for _ in ways]
    with torch.cuda.stream(cuda_stream):
        for _ in range(round_count + 1):
            for way, seconds_of_way in zip(ways, seconds_of_ways, strict=True):
                begin_event = torch.cuda.Event(enable_timing=True)
                end_event = torch.cuda.Event(enable_timing=True)
                began_s = time.perf_counter()
                begin_event.record()
                way()
                end_event.record()
                issue_s = time.perf_counter() - began_s
                end_event.synchronize()
                # Issuing from Python may take longer than the copy: then it is the cost.
                seconds_of_way.append(max(issue_s, begin_event.elapsed_time(end_event) / 1e3))
    return [median_low(seconds_of_way[1:]) for seconds_of_way in seconds_of_ways]
