"""What a ``tcp`` sink holds of one stream: its cache, and which chunk comes next."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dejavubench.dejavulib.destinations.tcp.places import run_places
from dejavubench.dejavulib.kvcache import BOTH, KVCache, Region
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule

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
        dtype: of the cache; its pages are taken when they are first written.
    """

    def __init__(self, id: int, schedule: StreamSchedule, dtype: torch.dtype) -> None:
        self.id = id
        self.schedule = schedule
        self.cache = KVCache.allocate(schedule.geometry, dtype)
        self.microbatch = 0
        self._number = self._position = self.runs = (
            0  # that have arrived: chunks, packed bytes, runs of the chunk under way
        )
        self._coming: dict[str, tuple[Iterator[Chunk], Chunk | None]] = {}
        self._runs: Iterator[memoryview] = iter(())  # of the step under way
        self._next: memoryview | None = None

    def begin(self, microbatch: int) -> None:
        """Expect the first chunk of a microbatch; the cache stays as it is."""
        self.microbatch = microbatch
        self._number = self._position = self.runs = 0
        self._coming = {
            level: (self.schedule.all_chunks(LEVELS[level]), None) for level in _BUFFERED
        }

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
