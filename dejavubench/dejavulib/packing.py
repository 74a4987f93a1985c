"""``gather`` / ``scatter``: a non-contiguous region of the cache ↔ one contiguous buffer.

The packed order is the schedule's: per layer K, then V, each in the layout's own order. Extents of
the cache stay contiguous.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from .geometry import BOTH
from .kv_cache import KVCache
from .regions import Region, Span
from .schedule import StreamSchedule

PAGE_NBYTES = mmap.PAGESIZE
"""Bytes of a page of memory, which O_DIRECT's buffers and offsets are multiples of."""


def aligned_buffer(nbytes: int) -> torch.Tensor:
    """Return a page-aligned buffer of uint8, its pages touched. O_DIRECT needs the alignment."""
    pages = mmap.mmap(-1, -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES)
    buffer = np.frombuffer(pages, dtype=np.uint8)[:nbytes]
    buffer[::PAGE_NBYTES] = 0  # page faults now, not inside the clock
    return torch.from_numpy(buffer)


def pinned_buffer(nbytes: int) -> torch.Tensor:
    """Return a page-aligned buffer of uint8 that a CUDA device copies to and from by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class Packing:
    """A region of one cache with its views cut beforehand: packing it costs two copies.

    The methods raise ValueError for a buffer that does not have exactly the region's bytes.

    Attributes:
        cache, region: the packed region and its cache.
    """

    def __init__(self, cache: KVCache, region: Region) -> None:
        self.cache = cache
        self.region = region
        self._nbytes = cache.geometry.region_nbytes(region)
        self._kernel = None
        self._pieces: list[_Piece] = []
        if cache.k.is_cuda:
            from .kernels import RegionCopy

            self._kernel = RegionCopy(cache, region)
            return
        pieces = [_widen_view(cache.piece(kv, region)) for kv in BOTH]
        # The packed buffer is [layers, K and V, bytes]: of each layer K, then V (contiguous).
        # So K of all layers is one strided view, and V another: two copies, not 2 L.
        nbytes = [
            piece.nbytes // region.layers.size if region.layers.size else 0 for piece in pieces
        ]
        for piece, offset in zip(pieces, (0, nbytes[0]), strict=True):
            inner_strides = (
                step * piece.itemsize for step in _list_contiguous_strides(piece.shape[1:])
            )
            self._pieces.append(_Piece(piece, (sum(nbytes), *inner_strides), offset))

    def gather(self, packed: torch.Tensor) -> None:
        """Pack the region into ``packed``, a contiguous uint8 tensor."""
        if self._kernel is not None:
            self._kernel.gather(self._check(packed))
            return
        buffer = self._check(packed).numpy()
        for piece in self._pieces:
            np.copyto(piece.packed_in(buffer), piece.cached)

    def scatter(self, packed: torch.Tensor) -> None:
        """Put ``packed`` in the region's place: the inverse of :meth:`gather`."""
        if self._kernel is not None:
            self._kernel.scatter(self._check(packed))
            return
        buffer = self._check(packed).numpy()
        for piece in self._pieces:
            np.copyto(piece.cached, piece.packed_in(buffer))

    def _check(self, packed: torch.Tensor) -> torch.Tensor:
        if packed.numel() != self._nbytes:
            raise ValueError(f"a buffer of {packed.numel()} bytes for a region of {self._nbytes}")
        return packed


class _Piece(NamedTuple):
    """Keys, or values, of a region in host memory.

    Attributes:
        cached: a view of the cache, of :func:`_widen_view`.
        strides: bytes from one element to the next in the packed buffer, for each axis.
        offset: bytes before its first element there.
    """

    cached: np.ndarray
    strides: tuple[int, ...]
    offset: int

    def packed_in(self, buffer: np.ndarray) -> np.ndarray:
        """Return the view of a packed buffer, uint8, that has this piece's shape."""
        cached_view = self.cached
        return np.ndarray(cached_view.shape, cached_view.dtype, buffer, self.offset, self.strides)


_WIDE_TYPES = {16: np.complex128, 8: np.int64, 4: np.int32, 2: np.int16, 1: np.uint8}
"""A type of each size, for copies that do not look at what they copy."""


def _widen_view(tensor: torch.Tensor) -> np.ndarray:
    """Return a view of a tensor in host memory with the widest elements that its rows consist of.

    NumPy copies such a view in half of the time that torch takes, and each call of torch hands
    Python's lock over: the thread that computes may wait for it.
    """
    row_nbytes = tensor.shape[-1] * tensor.element_size()
    element_nbytes = next(size for size in _WIDE_TYPES if row_nbytes % size == 0)
    return tensor.view(torch.uint8).numpy().view(_WIDE_TYPES[element_nbytes])


class NoPacking(Packing):
    """The packing of a yardstick, which moves as many bytes and none of the region's."""

    def gather(self, packed: torch.Tensor) -> None:
        """Leave ``packed`` as it is."""
        self._check(packed)


def _list_contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def staging(nbytes: int, slots: int, pinned: bool = False) -> list[torch.Tensor]:
    """Return staging slots of ``nbytes`` bytes each in host memory.

    Args:
        pinned: use page-locked memory. A cache on a CUDA device needs it.
    """
    return [pinned_buffer(nbytes) if pinned else aligned_buffer(nbytes) for _ in range(slots)]


def device_staging(nbytes: int, slots: int, device: torch.device) -> list[torch.Tensor]:
    """Return staging slots of ``nbytes`` bytes each on a device."""
    return [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(slots)]


def gather(cache: KVCache, region: Region, packed: torch.Tensor) -> None:
    """Pack ``region`` into ``packed``, a contiguous uint8 tensor of the region's bytes."""
    Packing(cache, region).gather(packed)


def scatter(packed: torch.Tensor, cache: KVCache, region: Region) -> None:
    """Put ``packed`` in the place of ``region``: the inverse of :func:`gather`."""
    Packing(cache, region).scatter(packed)


def scatter_steps(
    packed: torch.Tensor, stride: int, cache: KVCache, schedule: StreamSchedule, steps: range
) -> None:
    """Put consecutive decode steps in their place, by one copy for K and one for V.

    The flush interval of the schedule is 1.
    Layers that are larger than a slot are cut, and are put back piece by piece.

    Args:
        packed: uint8 on the cache's device.
        stride: bytes from the beginning of one step to that of the next.
    """
    if schedule.layer_nbytes(steps.start) > schedule.slot_nbytes:
        # Atoms of a cut layer alternate K and V in the packed order: no single stride fits them.
        _scatter_atoms(packed, stride, cache, schedule, steps)
        return
    positions = Span(schedule.positions(steps.start).start, schedule.positions(steps.stop - 1).stop)
    first_step = replace(schedule.region, positions=schedule.positions(steps.start))
    geometry = schedule.geometry
    dtype = cache.k.dtype
    layer = schedule.layer_nbytes(steps.start) // geometry.itemsize
    start = 0
    for kv in BOTH:
        cached_steps = cache.piece(kv, replace(first_step, positions=positions))
        shape = geometry.piece_shape(kv, first_step)
        # Of one step, positions are an axis of size 1. A stride of one step along it makes the
        # packed steps look like a region of consecutive positions.
        strides = [layer, *_list_contiguous_strides(shape[1:])]
        strides[geometry.positions_axis(kv)] = stride // geometry.itemsize
        # Steps read from a file end with a trailer, whose bytes may not fill a whole element.
        elements = packed[: len(packed) // geometry.itemsize * geometry.itemsize].view(dtype)
        cached_steps.copy_(
            elements.as_strided(cached_steps.shape, strides, elements.storage_offset() + start)
        )
        start += prod(shape[1:])


def _scatter_atoms(
    packed: torch.Tensor, stride: int, cache: KVCache, schedule: StreamSchedule, steps: range
) -> None:
    for step_index, step in enumerate(steps):
        offset = step_index * stride
        for atom in schedule.atoms(step):
            nbytes = schedule.geometry.region_nbytes(atom)
            atom_bytes = packed[offset : offset + nbytes]
            if packed.is_cuda:  # the kernel takes aligned vectors, and a trailer may lie before
                atom_bytes = atom_bytes.clone()
            scatter(atom_bytes, cache, atom)
            offset += nbytes


class SideScatter:
    """Scatters packed chunks that are in their slots; on a device, on a CUDA stream of its own.

    Args:
        device: of slots and caches.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def issue(
        self, packed: torch.Tensor, scatter_chunk: Callable[[torch.Tensor], None]
    ) -> torch.cuda.Event | None:
        """Scatter a chunk; on a device, return the event after which it is in its place.

        Args:
            packed: uint8, whose bytes are all there: nothing is waited for.
        """
        if self._cuda_stream is None:
            scatter_chunk(packed)
            return None
        scattered = torch.cuda.Event()
        with torch.cuda.stream(self._cuda_stream):
            scatter_chunk(packed)
            scattered.record(self._cuda_stream)
        return scattered
