"""The words by which a source and a sink of one host agree on chunks: grants, flags and counters.

Each word has one writer at a time and is read whole, so no lock and no order between words is
needed. Chunks of a stream are numbered on over all microbatches: a late word of an earlier chunk
matches nothing.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .shared_words import WORD_NBYTES, SharedWords

RING = 256
"""Words of a stream for each purpose. A chunk uses one of them, by its number modulo this."""

MOST_AHEAD = RING // 2
"""Chunks that may be granted and not acknowledged, or put and not yet collected by the source.

At most half of the ring each: a grant is never stored where the one before it is still to be
cleared.
"""

FLAG_PERIOD = 16 * RING
"""Chunks after which a flag has the same value again; a word of the ring has others in between."""

IN_CACHE = 1
"""Grant of a chunk whose extents go straight to the cache. Other grants are addresses of slots."""

_LINE = 8  # words of a cache line: words of two writers do not lie in one
_STREAM = _LINE + 3 * RING
_PAIR = 2 * _LINE


class Way(IntEnum):
    """The target of a chunk: its final place, or a slot from which the sink scatters it."""

    PLACE = 0
    SLOT = 1


class PairEnd(IntEnum):
    """How far one side is with its end."""

    OPEN = 0
    DONE = 1  # it puts nothing, or reads nothing, any more
    UNMAPPED = 2  # source: the sink may free its memory
    ABORTED = 3  # it has failed: the other side waits for nothing


def flag_of(number: int, way: Way) -> int:
    """Return the flag that announces a chunk."""
    return (number % FLAG_PERIOD + 1) * len(Way) + way


def flag_values() -> np.ndarray:
    """Return all flags, int64, in the order of :func:`flag_index`."""
    return np.array(
        [flag_of(number, way) for way in Way for number in range(FLAG_PERIOD)], np.int64
    )


def flag_index(number: int, way: Way) -> int:
    """Return the place of a chunk's flag in :func:`flag_values`."""
    return way * FLAG_PERIOD + number % FLAG_PERIOD


class PairWords:
    """The words of one source and one sink.

    Args:
        shared: at least :meth:`count` words, all 0 in the beginning.
        streams: number of streams from the source to the sink.
    """

    def __init__(self, shared: SharedWords, streams: int) -> None:
        self.shared = shared
        self._source_end = shared.words[:1]
        self._sink_end = shared.words[_LINE : _LINE + 1]
        self.streams = [
            StreamWords(shared, _PAIR + stream_index * _STREAM) for stream_index in range(streams)
        ]

    @staticmethod
    def count(streams: int) -> int:
        """Return how many words so many streams need."""
        return _PAIR + streams * _STREAM

    @property
    def source_end(self) -> PairEnd:
        """How far the source is with its end; it alone stores this."""
        return PairEnd(self._source_end[0])

    @source_end.setter
    def source_end(self, end: PairEnd) -> None:
        self._source_end[0] = end

    @property
    def sink_end(self) -> PairEnd:
        """How far the sink is with its end; it alone stores this."""
        return PairEnd(self._sink_end[0])

    @sink_end.setter
    def sink_end(self, end: PairEnd) -> None:
        self._sink_end[0] = end


class StreamWords:
    """The words of one stream.

    Attributes:
        flags: a word per chunk of the ring. The source's GPU stores :func:`flag_of` behind the last
            byte of the chunk.
        flags_address: address of the first flag in this process.
    """

    def __init__(self, shared: SharedWords, first: int) -> None:
        self._done = shared.words[first : first + 1]  # chunks in place; stored by the sink
        rings = first + _LINE
        # The sink stores a grant, and the source clears it.
        self._grants = shared.words[rings : rings + RING]
        # Nanoseconds that the sink took; stored by the sink.
        self._times = shared.words[rings + RING : rings + 2 * RING]
        self.flags = shared.words[rings + 2 * RING : rings + 3 * RING]
        self.flags_address = shared.address + (rings + 2 * RING) * WORD_NBYTES

    # ---- the sink ----

    def grant(self, number: int, place: int) -> None:
        """Let the source put a chunk: into its place or the slot at ``place``, or ``IN_CACHE``."""
        self._grants[number % RING] = place

    def find_way(self, number: int) -> Way | None:
        """Return where a chunk has been put, or None if it is not announced yet."""
        flag = self.flags[number % RING]
        if flag == flag_of(number, Way.PLACE):
            return Way.PLACE
        return Way.SLOT if flag == flag_of(number, Way.SLOT) else None

    def note_done(self, number: int, sink_ns: int) -> None:
        """Tell the source that a chunk is in its place, ``sink_ns`` after its flag was seen."""
        self._times[number % RING] = sink_ns
        self._done[0] = number + 1

    # ---- the source ----

    def has_grant(self, number: int) -> bool:
        """Return whether a chunk is granted and the grant not yet cleared."""
        return bool(self._grants[number % RING])

    def take_grant(self, number: int) -> int:
        """Return the grant of a chunk and clear it; 0 if there is none yet."""
        place: int = self._grants[number % RING]
        if place:
            self._grants[number % RING] = 0
        return place

    def flag_address(self, number: int) -> int:
        """Return the address of a chunk's flag."""
        return self.flags_address + number % RING * WORD_NBYTES

    @property
    def done(self) -> int:
        """Number of chunks that are in place."""
        count: int = self._done[0]
        return count

    def sink_ns(self, number: int) -> int:
        """Return how long the sink took for one of the newest chunks that are in place."""
        nanoseconds: int = self._times[number % RING]
        return nanoseconds
