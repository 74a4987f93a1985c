"""What a ``tcp`` sink holds of one stream: its cache, and which chunk comes next."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch

from dejavubench.dejavulib.kvcache import BOTH, KV, KVCache, Region
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.dejavulib.tcp.places import run_places

DIRECT = 16 << 10
"""Bytes of a run from which a chunk is received straight into the cache, run by run, instead of into staging."""

_BUFFERED = ("1", "3")
"""Levels that between them have every way of cutting a step into packed chunks."""

COMPARED = 1 << 17
"""Elements that are compared with the pattern at a time."""


class RefusalError(Exception):
    """This source goes no further; it is told why."""


class HeldStream:
    """One stream on the sink.

    Args:
        schedule: as announced and checked.
        dtype: of the cache; its pages are taken when it is first filled.
    """

    def __init__(self, id: int, schedule: StreamSchedule, dtype: torch.dtype) -> None:
        self.id = id
        self.schedule = schedule
        self.cache = KVCache.allocate(schedule.geometry, dtype)
        self.microbatch = 0
        self._pattern = 0
        self._number = self._position = self.runs = (
            0  # that have arrived: chunks, packed bytes, runs of the chunk under way
        )
        self._coming: dict[str, tuple[Iterator[Chunk], Chunk | None]] = {}
        self._runs: Iterator[memoryview] = iter(())  # of the step under way
        self._next: memoryview | None = None

    def begin(self, microbatch: int, pattern: int) -> None:
        """A microbatch comes: fill the cache with ``pattern``."""
        self.microbatch = microbatch
        self._pattern = pattern
        self._number = self._position = self.runs = 0
        self._coming = {
            level: (self.schedule.all_chunks(LEVELS[level]), None) for level in _BUFFERED
        }
        self.cache.fill(pattern)

    # ---- packed chunks ----

    def chunk(self, number: int, nbytes: int) -> Chunk:
        """The packed chunk that comes next; at which level it was cut, its size tells.

        Raises:
            RefusalError: no chunk of this number and size can come now.
        """
        if number == self._number and not self.runs:
            for level in _BUFFERED:
                chunk = self._at_position(level)
                if chunk is not None and chunk.nbytes == nbytes:
                    return chunk
        raise RefusalError(
            f"chunk {number} of {nbytes} bytes is not the next one of stream {self.id}, which is at chunk "
            f"{self._number}, byte {self._position} of {self.schedule.nbytes}"
        )

    def _at_position(self, level: str) -> Chunk | None:
        """A level's chunk that begins where the last one ended."""
        coming, chunk = self._coming[level]
        while chunk is None or chunk.offset < self._position:
            chunk = next(coming, None)
            if chunk is None:
                return None
        self._coming[level] = coming, chunk
        return chunk if chunk.offset == self._position else None

    def places(self, chunk: Chunk) -> Iterator[memoryview] | None:
        """The chunk's runs in the cache, in packed order; None where they are so short that staging costs less."""
        geometry = self.schedule.geometry
        if any(geometry.rows(kv, chunk.region).nbytes < DIRECT for kv in BOTH):
            return None
        return run_places(
            self.cache, (chunk.region.layer(layer) for layer in range(*chunk.region.layers))
        )

    def arrived(self, nbytes: int) -> None:
        """The chunk under way is where it belongs."""
        self._number += 1
        self._position += nbytes
        self.runs = 0

    # ---- runs ----

    def run(self, number: int, nbytes: int) -> tuple[memoryview, bool]:
        """Where the next run of a step that is not packed belongs, and whether it is the step's last one.

        Raises:
            RefusalError: as :meth:`chunk`.
        """
        schedule = self.schedule
        step_begins = number <= schedule.steps and schedule.step_offset(number) == self._position
        if number == self._number and step_begins:
            if not self.runs:
                self._runs = run_places(self.cache, iter(schedule.atoms(number)))
                self._next = next(self._runs)
            place = self._next
            if place is not None and len(place) == nbytes:
                self.runs += 1
                self._next = next(self._runs, None)
                return place, self._next is None
        raise RefusalError(
            f"a run of {nbytes} bytes of chunk {number} is not the next one of stream {self.id}, which is at run "
            f"{self.runs} of chunk {self._number}"
        )

    # ---- what is held ----

    def packed(self, region: Region, into: torch.Tensor) -> torch.Tensor:
        """What the cache holds of a region: plain indexing, so that no mistake of the library's copies is undone.

        Args:
            into: uint8, of a staging slot's size; the result is the beginning of it.

        Raises:
            RefusalError: it is not inside the stream's, or larger than a packed chunk may be.
        """
        nbytes = self.schedule.geometry.region_nbytes(region)
        if region & self.schedule.region != region or not 0 < nbytes <= min(
            self.schedule.slot_nbytes, len(into)
        ):
            raise RefusalError(f"{region} is not a part of stream {self.id}, or is too large")
        pieces = [self.cache.piece(kv, region) for kv in BOTH]
        packed = (
            into[:nbytes].view(self.cache.k.dtype).view(region.layers.size, -1)
        )  # [layers, elements]
        per_layer = pieces[0].numel() // region.layers.size
        for piece, place in zip(
            pieces, (packed[:, :per_layer], packed[:, per_layer:]), strict=True
        ):
            place.unflatten(1, piece.shape[1:]).copy_(piece)
        return into[:nbytes]

    def outside(self) -> tuple[KV, int, int] | None:
        """K or V, the first element outside the stream's region that is not the pattern any more, and how many of its
        layer are not.
        """
        for layer in range(self.schedule.geometry.layers):
            for kv in BOTH:
                found = self._changed(kv, layer)
                if found is not None:
                    return kv, *found
        return None

    def _changed(self, kv: KV, layer: int) -> tuple[int, int] | None:
        """The first element of a layer's K or V, and how many, as :meth:`outside`; block by block."""
        geometry, region = self.schedule.geometry, self.schedule.region
        tensor, first, count = self.cache.tensor(kv)[layer], None, 0
        inside = geometry.index(kv, region)[1:] if layer in range(*region.layers) else None
        for block in _blocks(tensor.shape):
            piece = tensor[block]
            changed = (piece.unsqueeze(-1).view(torch.uint8) != self._pattern).any(-1)
            if inside is not None:
                changed[_overlap(block, inside, tensor.shape)] = False
            if changed.any():
                if first is None:
                    at = np.unravel_index(int(changed.view(torch.uint8).argmax()), changed.shape)
                    where = [int(i) + cut.start for i, cut in zip(at, block, strict=True)]
                    first = layer * tensor.numel() + int(np.ravel_multi_index(where, tensor.shape))
                count += int(changed.sum())
        return None if first is None else (first, count)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into pieces that follow each other in memory, of at most :data:`COMPARED` elements."""
    if not shape:
        yield ()
        return
    each = prod(shape[1:])
    together = max(1, COMPARED // each)
    for start in range(0, shape[0], together):
        cut = slice(start, min(start + together, shape[0]))
        if each <= COMPARED:
            yield (cut, *(slice(0, size) for size in shape[1:]))
        else:
            yield from ((cut, *rest) for rest in _blocks(shape[1:]))


def _overlap(
    block: tuple[slice, ...], inside: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return the part of a block that lies inside, counted from the block's beginning; empty slices if none does."""
    found = []
    for cut, part, size in zip(block, inside, shape, strict=True):
        start, stop, _ = part.indices(size)
        begin = max(start - cut.start, 0)
        found.append(slice(begin, max(begin, min(stop, cut.stop) - cut.start)))
    return tuple(found)
