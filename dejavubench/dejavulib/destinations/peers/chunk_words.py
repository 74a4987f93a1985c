"""The words by which a source and a sink of one host agree on chunks: grants, flags and counters.

Each word has one writer at a time and is read whole, so no lock and no order between words is
needed. A chunk's *number* counts the stream's chunks over all microbatches: a late word of an
earlier chunk matches nothing.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .shared_words import WORD_NBYTES, SharedWords

RING_WORD_COUNT = 256
"""Words of each of a stream's rings: grants, times and flags.

A chunk uses one word of each ring: its number modulo this.
"""

MOST_CHUNKS_AHEAD = RING_WORD_COUNT // 2
"""Most chunks that are granted and not acknowledged, or put and not yet collected by the source.

Each is at most half of the ring: a grant is never stored where an earlier one is not cleared yet.
"""

FLAG_PERIOD = 16 * RING_WORD_COUNT
"""Chunks after which a flag has the same value again. A word has other flags in between."""

IN_CACHE = 1
"""Grant of a chunk whose extents go straight to the cache. Other grants are addresses of slots."""

_LINE_WORD_COUNT = 8  # of a cache line: words of two writers lie in different lines
_STREAM_WORD_COUNT = _LINE_WORD_COUNT + 3 * RING_WORD_COUNT
_PAIR_WORD_COUNT = 2 * _LINE_WORD_COUNT


class ChunkTarget(IntEnum):
    """The target of a chunk: its final place, or a slot from which the sink scatters it."""

    PLACE = 0
    SLOT = 1


class SideState(IntEnum):
    """How far one side is with closing the pair."""

    OPEN = 0
    DONE = 1  # it puts or reads no more chunks
    UNMAPPED = 2  # source: the sink may free its memory
    ABORTED = 3  # it has failed: the other side must not wait for it


def make_flag(number: int, target: ChunkTarget) -> int:
    """Return the flag that announces a chunk."""
    return (number % FLAG_PERIOD + 1) * len(ChunkTarget) + target


def list_flags() -> np.ndarray:
    """Return all flags, int64, in the order of :func:`find_flag_index`."""
    return np.array(
        [make_flag(number, target) for target in ChunkTarget for number in range(FLAG_PERIOD)],
        np.int64,
    )


def find_flag_index(number: int, target: ChunkTarget) -> int:
    """Return the place of a chunk's flag in :func:`list_flags`."""
    return target * FLAG_PERIOD + number % FLAG_PERIOD


class PairWords:
    """The words of one source and one sink.

    Args:
        shared: at least :meth:`count_words` words, all 0 in the beginning.
        stream_count: number of streams from the source to the sink.
    """

    def __init__(self, shared: SharedWords, stream_count: int) -> None:
        self.shared = shared
        self._source_word = shared.words[:1]
        self._sink_word = shared.words[_LINE_WORD_COUNT : _LINE_WORD_COUNT + 1]
        self.streams = [
            StreamWords(shared, _PAIR_WORD_COUNT + stream_index * _STREAM_WORD_COUNT)
            for stream_index in range(stream_count)
        ]

    @staticmethod
    def count_words(stream_count: int) -> int:
        """Return the number of words of a pair with ``stream_count`` streams."""
        return _PAIR_WORD_COUNT + stream_count * _STREAM_WORD_COUNT

    @property
    def source_state(self) -> SideState:
        """How far the source is with its end. Only the source sets it."""
        return SideState(self._source_word[0])

    @source_state.setter
    def source_state(self, state: SideState) -> None:
        self._source_word[0] = state

    @property
    def sink_state(self) -> SideState:
        """How far the sink is with its end. Only the sink sets it."""
        return SideState(self._sink_word[0])

    @sink_state.setter
    def sink_state(self, state: SideState) -> None:
        self._sink_word[0] = state


class StreamWords:
    """The words of one stream.

    Attributes:
        flags: a word per chunk of the ring. The source's GPU stores :func:`make_flag` behind the
            last byte of the chunk.
        flags_address: address of the first flag in this process.
    """

    def __init__(self, shared: SharedWords, first_word: int) -> None:
        grants_start = first_word + _LINE_WORD_COUNT
        times_start = grants_start + RING_WORD_COUNT
        flags_start = times_start + RING_WORD_COUNT
        # Stored by the sink.
        self._done_count = shared.words[first_word : first_word + 1]
        self._sink_ns = shared.words[times_start:flags_start]
        # The sink stores a grant, and the source clears it.
        self._grants = shared.words[grants_start:times_start]
        self.flags = shared.words[flags_start : flags_start + RING_WORD_COUNT]
        self.flags_address = shared.address + flags_start * WORD_NBYTES

    # ---- the sink ----

    def store_grant(self, number: int, grant: int) -> None:
        """Let the source put a chunk.

        Args:
            grant: address of the slot that the chunk may use, or ``IN_CACHE``.
        """
        self._grants[number % RING_WORD_COUNT] = grant

    def find_target(self, number: int) -> ChunkTarget | None:
        """Return the target that a chunk has been put into; None: it is not announced yet."""
        flag = self.flags[number % RING_WORD_COUNT]
        if flag == make_flag(number, ChunkTarget.PLACE):
            return ChunkTarget.PLACE
        return ChunkTarget.SLOT if flag == make_flag(number, ChunkTarget.SLOT) else None

    def note_done(self, number: int, sink_ns: int) -> None:
        """Tell the source that a chunk is in its place, ``sink_ns`` after its flag was seen."""
        self._sink_ns[number % RING_WORD_COUNT] = sink_ns
        self._done_count[0] = number + 1

    # ---- the source ----

    def has_grant(self, number: int) -> bool:
        """Return whether a chunk is granted and the grant not yet cleared."""
        return bool(self._grants[number % RING_WORD_COUNT])

    def take_grant(self, number: int) -> int:
        """Return the grant of a chunk and clear it; 0 if there is none yet."""
        grant: int = self._grants[number % RING_WORD_COUNT]
        if grant:
            self._grants[number % RING_WORD_COUNT] = 0
        return grant

    def flag_address(self, number: int) -> int:
        """Return the address of a chunk's flag."""
        return self.flags_address + number % RING_WORD_COUNT * WORD_NBYTES

    @property
    def done_count(self) -> int:
        """Number of chunks that are in place."""
        count: int = self._done_count[0]
        return count

    def sink_ns(self, number: int) -> int:
        """Return how long the sink took for one of the newest chunks that are in place."""
        duration_ns: int = self._sink_ns[number % RING_WORD_COUNT]
        return duration_ns
