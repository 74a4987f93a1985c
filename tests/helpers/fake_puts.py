"""A device that puts into memory of this process, for the tests of ``cuda-ipc`` on a CPU."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dejavubench.dejavulib.boxes import BoxCopy
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.peers.chunk_words import PairWords, list_flags
from dejavubench.dejavulib.destinations.peers.pairs import (
    MappedSink,
    PairedSource,
    Peer,
    StreamAtSink,
)
from dejavubench.dejavulib.destinations.peers.shared_words import SharedWords
from dejavubench.dejavulib.extents import BaseAddresses
from dejavubench.dejavulib.kv_cache import KVCache

Row = tuple[int, int, int]
"""A copy of one row: (from address, to address, bytes)."""


class FakePuts:
    """Puts by memmove, at once and in order.

    Args:
        delays_copies: copies wait for :meth:`let_go` while flags overtake them: what a device must
            never do.

    Attributes:
        copied: bytes of each copy that was issued.
        closed: how often it was closed.
    """

    own_cuda_stream_handle = 1

    def __init__(self, delays_copies: bool = False) -> None:
        self.copied: list[int] = []
        self.closed = 0
        self._delayed: deque[Row] | None = deque() if delays_copies else None
        self._values = list_flags()

    def current_cuda_stream_handle(self) -> int:
        return 0

    def mark(self) -> str:
        return "packed so far"

    def wait_for_mark(self, mark: Any) -> None:
        assert mark == "packed so far"

    def prepare(self, cache: KVCache, copies: Sequence[BoxCopy], bases: BaseAddresses) -> list[Row]:
        return [
            (
                cache.tensor(copy.kv).data_ptr()
                + copy.source
                + piece * copy.slices.source
                + row * copy.rows.source,
                (bases.k if copy.kv == "k" else bases.v)
                + copy.target
                + piece * copy.slices.target
                + row * copy.rows.target,
                copy.width,
            )
            for copy in copies
            for piece in range(copy.slices.number)
            for row in range(copy.rows.number)
        ]

    def put_prepared(self, prepared: list[Row], cuda_stream_handle: int) -> None:
        for source, target, nbytes in prepared:
            self.put(source, target, nbytes, cuda_stream_handle)

    def put(
        self, source_address: int, target_address: int, nbytes: int, cuda_stream_handle: int
    ) -> None:
        self.copied.append(nbytes)
        if self._delayed is None:
            ctypes.memmove(target_address, source_address, nbytes)
        else:
            self._delayed.append((source_address, target_address, nbytes))

    def store_word(self, value_index: int, target_address: int, cuda_stream_handle: int) -> None:
        ctypes.c_int64.from_address(target_address).value = int(self._values[value_index])

    def synchronize(self) -> None:
        return

    def pin(self, words: SharedWords) -> None:
        return

    def close(self) -> None:
        self.closed += 1

    def let_go(self) -> None:
        """Do the copies that wait."""
        while self._delayed:
            source, target, nbytes = self._delayed.popleft()
            ctypes.memmove(target, source, nbytes)


@dataclass
class Ends:
    """A source and a sink within one process, without MPI and CUDA.

    Attributes:
        sink, source: each as the other side sees it.
        unmapped: how often the source has unmapped the sink's memory.
    """

    words: PairWords
    sink: MappedSink
    source: PairedSource
    unmapped: list[str]


def connect_ends(
    streams: Sequence[tuple[KVCache, Stream]],
    slots: Sequence[torch.Tensor],
    ranks: tuple[int, int] = (0, 0),
    pid: int | None = None,
) -> Ends:
    """Connect a source and a sink.

    Args:
        streams: every stream between them as the sink has it, with the cache that it fills.
        slots: staging slots of the sink.
        ranks: of the source and of the sink.
        pid: the process that each side takes for the other's.
    """
    words = PairWords(SharedWords.create(PairWords.count_words(len(streams))), len(streams))
    process = os.getpid() if pid is None else pid
    source_rank, sink_rank = ranks
    by_id = {
        stream.id: StreamAtSink(stream.schedule, BaseAddresses.of_cache(cache), stream_words)
        for (cache, stream), stream_words in zip(streams, words.streams, strict=True)
    }
    memory = {slot.data_ptr(): (slot.data_ptr(), slot.numel()) for slot in slots}
    unmapped: list[str] = []
    sink = MappedSink(
        Peer(sink_rank, process, lambda: words.sink_state),
        words,
        by_id,
        memory,
        lambda: unmapped.append("unmapped"),
    )
    source = PairedSource(
        Peer(source_rank, process, lambda: words.source_state),
        words,
        {stream_id: sink_stream.words for stream_id, sink_stream in by_id.items()},
    )
    return Ends(words, sink, source, unmapped)
