"""What a ``tcp`` sink holds of one stream: its cache, and which chunk comes next."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dejavubench.dejavulib.copies import RunViews, run_views
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.kvcache import BOTH, KV, KVCache, Region

DIRECT = 16 << 10
"""Bytes of a run from which a chunk is received straight into the cache, run by run, instead of into staging."""

_BUFFERED = ("1", "3")
"""Levels that between them have every way of cutting a step into packed chunks."""


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
        self._views: RunViews | None = None

    def begin(self, microbatch: int, pattern: int) -> None:
        """A microbatch comes: fill the cache with ``pattern``."""
        self.microbatch = microbatch
        self._pattern = pattern
        self._number = self._position = self.runs = 0
        self._coming = {level: (self.schedule.all_chunks(LEVELS[level]), None) for level in _BUFFERED}
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

    def places(self, chunk: Chunk) -> list[memoryview] | None:
        """The chunk's runs in the cache, in packed order; None where they are so short that staging costs less."""
        geometry = self.schedule.geometry
        if any(geometry.rows(kv, chunk.region).nbytes < DIRECT for kv in BOTH):
            return None
        layers = [chunk.region.layer(layer) for layer in range(*chunk.region.layers)]
        return run_views(self.cache, [geometry.runs(kv, layer) for layer in layers for kv in BOTH])

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
            self._views = self._views or RunViews(self.cache, schedule)
            runs = self._views.of(number)
            if len(runs[self.runs]) == nbytes:
                self.runs += 1
                return runs[self.runs - 1], self.runs == len(runs)
        raise RefusalError(
            f"a run of {nbytes} bytes of chunk {number} is not the next one of stream {self.id}, which is at run "
            f"{self.runs} of chunk {self._number}"
        )

    # ---- what is held ----

    def packed(self, region: Region) -> torch.Tensor:
        """What the cache holds of a region: plain indexing, so that no mistake of the library's copies is undone.

        Raises:
            RefusalError: it is not inside the stream's, or larger than a packed chunk may be.
        """
        nbytes = self.schedule.geometry.region_nbytes(region)
        if region & self.schedule.region != region or not 0 < nbytes <= self.schedule.slot_nbytes:
            raise RefusalError(f"{region} is not a part of stream {self.id}, or is too large")
        pieces = [self.cache.piece(kv, region).flatten(1) for kv in BOTH]  # [layers, elements]
        return torch.cat(pieces, dim=1).view(-1).view(torch.uint8)

    def outside(self) -> tuple[KV, int, int] | None:
        """K or V, the first element outside the stream's region that is not the pattern any more, and how many of its
        layer are not.
        """
        geometry, region = self.schedule.geometry, self.schedule.region
        for layer in range(geometry.layers):
            for kv in BOTH:
                tensor = self.cache.tensor(kv)[layer]
                changed = (tensor.view(torch.uint8) != self._pattern).view(*tensor.shape, -1).any(-1)
                if layer in range(*region.layers):
                    changed[geometry.index(kv, region)[1:]] = False
                if changed.any():
                    first = int(changed.flatten().nonzero()[0])
                    return kv, layer * changed.numel() + first, int(changed.sum())
        return None
