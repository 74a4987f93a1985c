"""The chunks of one stream on their way to a sink: each is put once the sink has granted it."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch

from ...extents import ExtentAddresses
from ..base import StreamingError
from .chunk_words import IN_CACHE, MOST_AHEAD, Way, flag_index
from .pairs import MappedSink, StreamAtSink
from .puts import Puts


class _WaitingChunk(NamedTuple):
    """A chunk that is not granted yet.

    Attributes:
        prepared: copies from cache to cache; None: ``packed`` is put into a slot.
        filled: mark after which the chunk may be read.
    """

    number: int
    prepared: Any
    packed: torch.Tensor | None
    filled: Any


class ChunkQueue:
    """Puts a stream's chunks in order, and the flag of each behind it. Nothing here waits.

    A packed chunk waits for a slot. A chunk that goes to its place only waits for the microbatch's
    epoch, which is the grant of the first chunk: from then on the sink has its cache ready.

    Attributes:
        peer: the sink.
        words: the stream's words.
        extents: extents of the sink's cache, as mapped here.
    """

    def __init__(self, puts: Puts, sink: MappedSink, there: StreamAtSink) -> None:
        self.peer = sink.peer
        self.words = there.words
        self.extents = ExtentAddresses(there.bases, there.schedule)
        self._puts = puts
        self._slots = sink.slots
        self._number = 0
        self._first = 0  # number of the microbatch's first chunk
        self._is_open = False  # the microbatch's epoch is granted
        self._collected = 0  # chunks that are known to be in place
        self._waiting: deque[_WaitingChunk] = deque()

    def begin(self) -> None:
        """Begin a microbatch. All chunks of the last one are collected."""
        self._first = self._number
        self._is_open = False

    def collect(self, number: int) -> None:
        """Note that a chunk is in place, so that its words can be used again."""
        self.words.take_grant(number)  # of a chunk that needed none
        self._collected = number + 1

    def next_number(self) -> int:
        """Return the number of the next chunk, which is to be put."""
        number = self._number
        self._number += 1
        return number

    def add(self, prepared: Any, packed: torch.Tensor | None) -> int:
        """Put the next chunk now if it is granted, else by :meth:`issue`; return its number.

        Args:
            prepared: copies from cache to cache; None: ``packed`` goes into a slot.
        """
        number = self.next_number()
        if not self._waiting and (place := self._find_place(number, packed is None)):
            # On the stream that has packed the chunk, or waits for the model: no event is needed.
            self._put(number, prepared, packed, place, self._puts.current_handle())
        else:
            self._waiting.append(_WaitingChunk(number, prepared, packed, self._puts.mark()))
        return number

    def issue(self) -> None:
        """Put the chunks that have been granted since they were added."""
        while self._waiting:
            number, prepared, packed, filled = self._waiting[0]
            place = self._find_place(number, packed is None)
            if not place:
                return
            self._waiting.popleft()
            self._puts.wait_for_mark(filled)
            self._put(number, prepared, packed, place, self._puts.own_handle)

    def is_granted(self, number: int) -> bool:
        """Return whether a chunk whose extents the caller puts may begin; True once."""
        self.issue()
        return not self._waiting and bool(self._find_place(number, False))

    def store_flag(self, number: int, way: Way, handle: int) -> None:
        """Announce a chunk. Its copies have been issued before, on the same stream."""
        # In stream order, so the flag is stored when the last byte is in the sink's memory.
        self._puts.store_word(flag_index(number, way), self.words.flag_address(number), handle)

    def _find_place(self, number: int, is_direct: bool) -> int:
        """Return the grant of a chunk, ``IN_CACHE`` where the epoch suffices; 0 without one."""
        if number - self._collected >= MOST_AHEAD:
            return 0
        if not is_direct:
            place = self.words.take_grant(number)
            self._is_open |= bool(place)
            return place
        self._is_open = self._is_open or self.words.has_grant(self._first)
        return IN_CACHE if self._is_open else 0

    def _put(
        self, number: int, prepared: Any, packed: torch.Tensor | None, place: int, handle: int
    ) -> None:
        if packed is None:
            self._puts.put_prepared(prepared, handle)
            self.store_flag(number, Way.PLACE, handle)
            return
        slot, room = self._slots.get(place, (0, 0))
        nbytes = packed.numel()
        if nbytes > room:
            raise StreamingError(
                f"rank {self.peer.rank} has granted a slot of {room} bytes for a chunk of {nbytes}"
            )
        self._puts.put(packed.data_ptr(), slot, nbytes, handle)
        self.store_flag(number, Way.SLOT, handle)
