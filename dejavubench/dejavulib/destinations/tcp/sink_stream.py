"""One stream on a ``tcp`` sink: its cache, and which chunk comes next."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...geometry import BOTH
from ...kv_cache import KVCache
from ...levels import LEVELS
from ...regions import Region
from ...schedule import Chunk, StreamSchedule
from .extent_views import walk_extents

DIRECT_ROW_NBYTES = 16 << 10
"""Bytes of an extent from which a chunk is received straight into the cache, without staging."""

_BUFFERED_LEVELS = ("1", "3")
"""Levels that between them have every way of cutting a step into packed chunks."""


class RefusalError(Exception):
    """This source is refused; the message goes to it."""


class SinkStream:
    """One stream on the sink.

    Args:
        schedule: the stream's schedule, announced and checked.
        dtype: element type of the cache. Its pages are taken when they are first written.

    Attributes:
        cache: holds what has come.
        microbatch: number of the microbatch that comes, from 1 on; 0 before the first.
        extent_count: number of extents of the current chunk that have come.
    """

    def __init__(self, stream_id: int, schedule: StreamSchedule, dtype: torch.dtype) -> None:
        self.id = stream_id
        self.schedule = schedule
        self.cache = KVCache.allocate(schedule.geometry, dtype)
        self.microbatch = 0
        self.extent_count = 0
        self._number = 0  # chunks that have come
        self._position = 0  # packed bytes that have come
        self._upcoming_chunks: dict[str, tuple[Iterator[Chunk], Chunk | None]] = {}
        self._later_extents: Iterator[memoryview] = iter(())  # of the group under way
        self._next_extent: memoryview | None = None

    def begin(self, microbatch: int) -> None:
        """Expect the first chunk of a microbatch. The cache stays as it is."""
        self.microbatch = microbatch
        self._number = 0
        self._position = 0
        self.extent_count = 0
        self._upcoming_chunks = {
            level: (self.schedule.all_chunks(LEVELS[level]), None) for level in _BUFFERED_LEVELS
        }

    # ---- packed chunks ----

    def chunk(self, chunk_number: int, nbytes: int) -> Chunk:
        """Return the packed chunk that comes next; its size tells at which level it was cut.

        Raises:
            RefusalError: no chunk of this number and size can come now.
        """
        if chunk_number == self._number and not self.extent_count:
            for level in _BUFFERED_LEVELS:
                chunk = self._find_chunk(level)
                if chunk is not None and chunk.nbytes == nbytes:
                    return chunk
        raise RefusalError(
            f"chunk {chunk_number} of {nbytes} bytes is not the next one of stream {self.id}, "
            f"which is at chunk {self._number}, byte {self._position} of {self.schedule.nbytes}"
        )

    def _find_chunk(self, level_name: str) -> Chunk | None:
        """Return a level's chunk that begins where the last one ended."""
        # The iterator of each level follows the position, wherever chunks of the other level end.
        later_chunks, chunk = self._upcoming_chunks[level_name]
        while chunk is None or chunk.offset < self._position:
            chunk = next(later_chunks, None)
            if chunk is None:
                return None
        self._upcoming_chunks[level_name] = later_chunks, chunk
        return chunk if chunk.offset == self._position else None

    def walk_chunk(self, chunk: Chunk) -> Iterator[memoryview] | None:
        """Return the chunk's extents in the cache, in packed order.

        None if they are so short that staging costs less.
        """
        geometry = self.schedule.geometry
        if any(geometry.rows(kv, chunk.region).nbytes < DIRECT_ROW_NBYTES for kv in BOTH):
            return None
        return walk_extents(
            self.cache, (chunk.region.layer(layer) for layer in range(*chunk.region.layers))
        )

    def note_arrival(self, nbytes: int) -> None:
        """Note that the chunk under way is in its place."""
        self._number += 1
        self._position += nbytes
        self.extent_count = 0

    # ---- single extents ----

    def extent(self, chunk_number: int, nbytes: int) -> tuple[memoryview, bool]:
        """Return the place of the next extent of a group, and whether it is the group's last one.

        Raises:
            RefusalError: as :meth:`chunk`.
        """
        schedule = self.schedule
        step = schedule.last_step(chunk_number)
        group_begins = step <= schedule.steps and schedule.step_offset(step) == self._position
        if chunk_number == self._number and group_begins:
            if not self.extent_count:
                self._later_extents = walk_extents(self.cache, iter(schedule.atoms(step)))
                self._next_extent = next(self._later_extents)
            extent_view = self._next_extent
            if extent_view is not None and len(extent_view) == nbytes:
                self.extent_count += 1
                self._next_extent = next(self._later_extents, None)
                return extent_view, self._next_extent is None
        raise RefusalError(
            f"an extent of {nbytes} bytes of chunk {chunk_number} is not the next one of stream "
            f"{self.id}, which is at extent {self.extent_count} of chunk {self._number}"
        )

    # ---- reading back ----

    def pack(self, region: Region, slot: torch.Tensor) -> torch.Tensor:
        """Pack a region of the cache by plain indexing, so that no error of gather() is undone.

        Args:
            slot: uint8, a staging slot; the result is its beginning.

        Raises:
            RefusalError: the region is not inside the stream's, or larger than a packed chunk.
        """
        nbytes = self.schedule.geometry.region_nbytes(region)
        most_nbytes = min(self.schedule.slot_nbytes, len(slot))
        if region & self.schedule.region != region or not 0 < nbytes <= most_nbytes:
            raise RefusalError(f"{region} is not a part of stream {self.id}, or is too large")
        pieces = [self.cache.piece(kv, region) for kv in BOTH]
        elements = slot[:nbytes].view(self.cache.k.dtype)
        packed = elements.view(region.layers.size, -1)  # [layers, elements]
        per_layer = pieces[0].numel() // region.layers.size
        packed_pieces = (packed[:, :per_layer], packed[:, per_layer:])
        for piece, packed_piece in zip(pieces, packed_pieces, strict=True):
            packed_piece.unflatten(1, piece.shape[1:]).copy_(piece)
        return slot[:nbytes]
