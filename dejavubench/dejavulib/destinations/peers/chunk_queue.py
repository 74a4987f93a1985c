"""The chunks of one stream on their way to a sink: each is put once the sink has granted it."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch

from ...extents import ExtentAddresses
from ..base import PreparedChunk, StreamingError
from .chunk_words import IN_CACHE, MOST_CHUNKS_AHEAD, ChunkTarget, find_flag_index
from .pairs import MappedSink, StreamAtSink
from .puts import Puts


class _WaitingChunk(NamedTuple):
    """A chunk that is not granted yet.

    Attributes:
        prepared: copies from cache to cache; None: ``packed`` is put into a slot.
        ready_mark: mark of the work after which the chunk may be read.
    """

    number: int
    prepared: PreparedChunk | None
    packed: torch.Tensor | None
    ready_mark: Any


class ChunkQueue:
    """Puts a stream's chunks in order, and the flag of each behind it. Nothing here waits.

    A packed chunk waits for a slot. A chunk that goes to its place only waits for the microbatch's
    epoch, which is the grant of the first chunk: from then on the sink has its cache ready.

    Attributes:
        peer: the sink.
        words: the stream's words.
        extents: extents of the sink's cache, as mapped here.
    """

    def __init__(self, puts: Puts, sink: MappedSink, sink_stream: StreamAtSink) -> None:
        self.peer = sink.peer
        self.words = sink_stream.words
        self.extents = ExtentAddresses(sink_stream.bases, sink_stream.schedule)
        self._puts = puts
        self._slots = sink.slots
        self._next_number = 0
        self._first_number = 0  # number of the microbatch's first chunk
        self._has_epoch = False  # the sink has given the microbatch's epoch
        self._collected_count = 0  # chunks that the source knows to be in place
        self._waiting: deque[_WaitingChunk] = deque()

    def begin(self) -> None:
        """Begin a microbatch. All chunks of the last one are collected."""
        self._first_number = self._next_number
        self._has_epoch = False

    def collect(self, number: int) -> None:
        """Note that a chunk is in place, so that its words can be used again."""
        self.words.take_grant(number)  # of a chunk that did not wait for its own
        self._collected_count = number + 1

    def next_number(self) -> int:
        """Return the number of the next chunk, which is to be put."""
        number = self._next_number
        self._next_number += 1
        return number

    def add(self, prepared: PreparedChunk | None, packed: torch.Tensor | None) -> int:
        """Put the next chunk now if it is granted, else by :meth:`issue`; return its number.

        Args:
            prepared: copies from cache to cache; None: ``packed`` goes into a slot.
        """
        number = self.next_number()
        if not self._waiting and (grant := self._find_grant(number, packed is None)):
            # On the CUDA stream that packed the chunk, or waits for the model: no event is needed.
            self._put(number, prepared, packed, grant, self._puts.current_cuda_stream_handle())
        else:
            self._waiting.append(_WaitingChunk(number, prepared, packed, self._puts.mark()))
        return number

    def issue(self) -> None:
        """Put the chunks that have been granted since they were added."""
        while self._waiting:
            number, prepared, packed, ready_mark = self._waiting[0]
            grant = self._find_grant(number, packed is None)
            if not grant:
                return
            self._waiting.popleft()
            self._puts.wait_for_mark(ready_mark)
            self._put(number, prepared, packed, grant, self._puts.own_cuda_stream_handle)

    def is_granted(self, number: int) -> bool:
        """Return whether a chunk whose extents the caller puts may begin; True once."""
        self.issue()
        return not self._waiting and bool(self._find_grant(number, False))

    def store_flag(self, number: int, target: ChunkTarget, cuda_stream_handle: int) -> None:
        """Announce a chunk. Its copies have been issued before, on the same CUDA stream."""
        # In that stream's order, so the flag is stored when the last byte is in the sink's memory.
        self._puts.store_word(
            find_flag_index(number, target), self.words.flag_address(number), cuda_stream_handle
        )

    def _find_grant(self, number: int, is_direct: bool) -> int:
        """Return the grant of a chunk, ``IN_CACHE`` where the epoch suffices; 0 without one."""
        if number - self._collected_count >= MOST_CHUNKS_AHEAD:
            return 0
        if not is_direct:
            grant = self.words.take_grant(number)
            self._has_epoch |= bool(grant)
            return grant
        self._has_epoch = self._has_epoch or self.words.has_grant(self._first_number)
        return IN_CACHE if self._has_epoch else 0

    def _put(
        self,
        number: int,
        prepared: PreparedChunk | None,
        packed: torch.Tensor | None,
        grant: int,
        cuda_stream_handle: int,
    ) -> None:
        if packed is None:
            self._puts.put_prepared(prepared, cuda_stream_handle)
            self.store_flag(number, ChunkTarget.PLACE, cuda_stream_handle)
            return
        slot_address, slot_nbytes = self._slots.get(grant, (0, 0))
        nbytes = packed.numel()
        if nbytes > slot_nbytes:
            raise StreamingError(
                f"rank {self.peer.rank} has granted a slot of {slot_nbytes} bytes "
                f"for a chunk of {nbytes}"
            )
        self._puts.put(packed.data_ptr(), slot_address, nbytes, cuda_stream_handle)
        self.store_flag(number, ChunkTarget.SLOT, cuda_stream_handle)
