"""``gather`` / ``scatter``: a non-contiguous region of the cache ↔ one contiguous buffer.

The packed order is that of :mod:`~dejavubench.dejavulib.schedule`: per layer K then V, each in the
layout's own order, so that what is contiguous in the cache stays contiguous.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch

from dejavubench.dejavulib.kvcache import BOTH, KVCache, Region, Runs, Span
from dejavubench.dejavulib.schedule import StreamSchedule

PAGE = mmap.PAGESIZE

VIEWS_KEPT = 200_000
"""Views of runs that are cut once and kept: some 40 MB of Python objects for each microbatch and naive level."""


def aligned_buffer(nbytes: int) -> torch.Tensor:
    """A page-aligned buffer of uint8 (O_DIRECT needs the alignment), its pages touched."""
    pages = mmap.mmap(-1, -(-nbytes // PAGE) * PAGE)
    buffer = np.frombuffer(pages, dtype=np.uint8)[:nbytes]
    buffer[::PAGE] = 0
    return torch.from_numpy(buffer)


def pinned_buffer(nbytes: int) -> torch.Tensor:
    """A page-aligned buffer of uint8 that a CUDA device copies to and from without the CPU."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class Packing:
    """A region of one cache with its views cut beforehand, so that packing it costs two copies and little else.

    Its methods raise ValueError for a buffer that is not of exactly the region's bytes.
    """

    def __init__(self, cache: KVCache, region: Region) -> None:
        self._dtype = cache.k.dtype
        self._nbytes = cache.geometry.region_nbytes(region)
        self._kernel = None
        if cache.k.is_cuda:
            from dejavubench.dejavulib.kernels import RegionCopy

            self._kernel = RegionCopy(cache, region)
        self._pieces = [cache.piece(kv, region) for kv in BOTH]
        # [layers, K and V, elements] in the packed buffer: of each layer K, then V, each contiguous
        per_layer = [
            piece.numel() // region.layers.size if region.layers.size else 0
            for piece in self._pieces
        ]
        self._places = [
            (piece.shape, (sum(per_layer), *_contiguous(piece.shape[1:])), start)
            for piece, start in zip(self._pieces, (0, per_layer[0]), strict=True)
        ]

    def gather(self, packed: torch.Tensor) -> None:
        """Pack the region into ``packed``, a contiguous uint8 tensor."""
        if self._kernel is not None:
            self._kernel.gather(self._checked(packed))
            return
        for packed_piece, piece in self._pairs(packed):
            packed_piece.copy_(piece)

    def scatter(self, packed: torch.Tensor) -> None:
        """Put ``packed`` where the region belongs: the inverse of :meth:`gather`."""
        if self._kernel is not None:
            self._kernel.scatter(self._checked(packed))
            return
        for packed_piece, piece in self._pairs(packed):
            piece.copy_(packed_piece)

    def _checked(self, packed: torch.Tensor) -> torch.Tensor:
        if packed.numel() != self._nbytes:
            raise ValueError(f"a buffer of {packed.numel()} bytes for a region of {self._nbytes}")
        return packed

    def _pairs(self, packed: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        elements = self._checked(packed).view(self._dtype)
        first = elements.storage_offset()
        return [
            (elements.as_strided(shape, strides, first + start), piece)
            for (shape, strides, start), piece in zip(self._places, self._pieces, strict=True)
        ]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def staging(nbytes: int, slots: int, pinned: bool = False) -> list[torch.Tensor]:
    """So many staging slots in host memory; ``pinned``: for a cache on a CUDA device."""
    return [pinned_buffer(nbytes) if pinned else aligned_buffer(nbytes) for _ in range(slots)]


def gather(cache: KVCache, region: Region, packed: torch.Tensor) -> None:
    """Pack ``region`` into ``packed``, a contiguous uint8 tensor of exactly the region's bytes."""
    Packing(cache, region).gather(packed)


def scatter(packed: torch.Tensor, cache: KVCache, region: Region) -> None:
    """Put ``packed`` where ``region`` belongs: the inverse of :func:`gather`."""
    Packing(cache, region).scatter(packed)


def scatter_steps(
    packed: torch.Tensor, stride: int, cache: KVCache, schedule: StreamSchedule, steps: range
) -> None:
    """Put consecutive decode steps where they belong, by one copy for K and one for V where layers are not cut.

    Args:
        packed: uint8 on the cache's device; each step begins ``stride`` bytes behind the one before.
    """
    if schedule.layer_nbytes(steps.start) > schedule.slot_nbytes:
        _scatter_atoms(packed, stride, cache, schedule, steps)
        return
    positions = Span(schedule.positions(steps.start).start, schedule.positions(steps.stop - 1).stop)
    one = replace(schedule.region, positions=schedule.positions(steps.start))
    geometry, dtype = schedule.geometry, cache.k.dtype
    layer = schedule.layer_nbytes(steps.start) // geometry.itemsize
    start = 0
    for kv in BOTH:
        piece, shape = (
            cache.piece(kv, replace(one, positions=positions)),
            geometry.piece_shape(kv, one),
        )
        strides = [layer, *_contiguous(shape[1:])]
        strides[geometry.positions_axis(kv)] = stride // geometry.itemsize
        elements = packed[: len(packed) // geometry.itemsize * geometry.itemsize].view(dtype)
        piece.copy_(elements.as_strided(piece.shape, strides, elements.storage_offset() + start))
        start += prod(shape[1:])


def _scatter_atoms(
    packed: torch.Tensor, stride: int, cache: KVCache, schedule: StreamSchedule, steps: range
) -> None:
    for number, step in enumerate(steps):
        at = number * stride
        for atom in schedule.atoms(step):
            nbytes = schedule.geometry.region_nbytes(atom)
            scatter(packed[at : at + nbytes], cache, atom)
            at += nbytes


def run_views(cache: KVCache, runs: Iterable[Runs]) -> list[memoryview]:
    """Runs as views of the cache's own memory (CPU only)."""
    memory = {kv: cache.bytes(kv).numpy().data for kv in BOTH}
    views = []
    for each in runs:
        whole, nbytes = memory[each.kv], each.nbytes
        views += [whole[start : start + nbytes] for start in each.offsets.tolist()]
    return views


class RunViews:
    """The views of a stream's runs, step by step, so that the naive loop does nothing but move them.

    Those of the first steps are cut now and kept, up to :data:`VIEWS_KEPT` of them; the others when they are needed,
    or :meth:`prepare` is told ahead of time.
    """

    def __init__(self, cache: KVCache, schedule: StreamSchedule) -> None:
        self._cache = cache
        self._schedule = schedule
        self._kept: list[list[memoryview]] = []
        self._ahead: dict[int, list[memoryview]] = {}
        count = 0
        while len(self._kept) <= schedule.steps and count < VIEWS_KEPT:
            self._kept.append(self._cut(len(self._kept)))
            count += len(self._kept[-1])

    def prepare(self, step: int) -> None:
        """Cut the views of a step that will be asked for next."""
        if len(self._kept) <= step <= self._schedule.steps:
            self._ahead = {step: self._cut(step)}

    def of(self, step: int) -> list[memoryview]:
        if step < len(self._kept):
            return self._kept[step]
        return self._ahead.get(step) or self._cut(step)

    def _cut(self, step: int) -> list[memoryview]:
        return run_views(self._cache, self._schedule.runs(step))
