"""Times of chunks on their way, and the parts that a chunk's latency is cut into.

Each transfer is stamped by one clock, ``time.perf_counter_ns`` of the source's process. A chunk's
latency is the time from *ready* to *complete*. A destination declares which parts of it can be told
apart: each :class:`LatencyPart` ends at a stamp, and begins where the part before it ends. The sink
adds no stamp, because its clock is another one. It adds a duration.

Importing this loads neither torch nor MPI.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter_ns as now
from typing import Literal, NamedTuple, Protocol, get_args

__all__ = [
    "MOST_TIMED_CHUNKS",
    "LatencyPart",
    "PartEnd",
    "Receipt",
    "StampName",
    "TimesBlock",
    "cut",
    "now",
]

MOST_TIMED_CHUNKS = 65_536
"""Chunks of one microbatch whose times are kept singly. Of the others, only sums are kept."""

StampName = Literal[
    "ready", "begun", "gathered", "copied", "seen", "posted", "moved", "complete", "sink_ns"
]
STAMPS: tuple[StampName, ...] = get_args(StampName)
"""The stamps of a transfer, in the order in which most destinations take them.

``ready``: the keys and values are in place. ``begun``: the helper thread has taken the chunk.
``gathered``: it is packed, or its extents are known. ``copied``: it has come from the device to
host memory. ``seen``: the helper thread has found that it has. ``posted``: ``flush`` has returned.
``moved``: it has left this process. ``complete``: the destination has it. ``sink_ns`` is no time
but a duration: from the chunk's arrival at the sink until it was in its place there.
"""

READY, BEGUN, GATHERED, COPIED, SEEN, POSTED, MOVED, COMPLETE, SINK_NS = range(len(STAMPS))
"""Indices of the stamps in a row of a :class:`TimesBlock`."""

PartEnd = Literal["begun", "gathered", "copied", "seen", "posted", "moved", "received", "complete"]
"""Ends of parts: a stamp, or ``received``, which is ``complete`` less ``sink_ns``."""

_ABSENT = -1
_WIDTH = len(STAMPS)


class LatencyPart(NamedTuple):
    """A part of a chunk's latency; ``until``: the stamp at which it ends."""

    name: str
    until: PartEnd


Receipt = tuple[int | None, int | None]
"""Times of a complete chunk that only its destination knows; None for one that it does not.

First when the chunk had left this process, by :func:`now`. Then the nanoseconds from its arrival at
the sink until it was in its place. A plain tuple: making one costs the least.
"""


class NamedPart(Protocol):
    """A part, as the library declares it or as a record has it."""

    @property
    def name(self) -> str:
        """Name of the part, unique among the parts of one destination, such as ``gather``."""

    @property
    def until(self) -> str:
        """Stamp at which the part ends, one of :data:`PartEnd`."""


def cut(parts: Sequence[NamedPart], stamps: Mapping[str, int | None]) -> list[int]:
    """Cut one chunk's latency into parts; return the nanoseconds of each.

    No part is negative, and the parts sum to ``complete`` − ``ready``. Two stamps that come out of
    order, such as a sink that has the chunk before ``flush`` returns, give a part of 0.

    Args:
        parts: in order; the last one ends at ``complete``.
        stamps: the chunk's stamps by name, by one clock; None for what is not known.
    """
    begin_ns = stamps["ready"]
    complete_ns = stamps["complete"]
    assert begin_ns is not None
    assert complete_ns is not None
    durations_ns = []
    for part in parts:
        end_ns = _find_part_end(part.until, stamps, begin_ns, complete_ns)
        durations_ns.append(end_ns - begin_ns)
        begin_ns = end_ns
    return durations_ns


def _find_part_end(
    until: str, stamps: Mapping[str, int | None], begin_ns: int, complete_ns: int
) -> int:
    if until == "received":
        end_ns = None if (sink_ns := stamps["sink_ns"]) is None else complete_ns - sink_ns
    else:
        end_ns = stamps[until]
    # What is not known takes no time: it belongs to the next part.
    return begin_ns if end_ns is None else min(max(end_ns, begin_ns), complete_ns)


class TimesBlock:
    """The times of one microbatch's chunks: a preallocated block that one manager owns.

    A chunk's row is written in place, a stamp at a time: nothing is made or copied for a chunk.

    Args:
        chunk_count: number of chunks of a microbatch.
        most_row_count: largest number of chunks that have a row each.

    Attributes:
        finished_count: chunks that became complete since :meth:`reset`.
        beyond: chunks among them that have no row.
        beyond_ns: summed nanoseconds from ``ready`` to each later stamp, over these chunks.
    """

    def __init__(self, chunk_count: int, most_row_count: int = MOST_TIMED_CHUNKS) -> None:
        self.chunk_count = chunk_count
        self.row_count = min(chunk_count, most_row_count)
        # Row by row, so that the stamps of one chunk lie in one or two cache lines.
        self._values = array("q", [_ABSENT]) * (self.row_count * _WIDTH)
        self.reset()

    def reset(self) -> None:
        """Forget the last microbatch. Called before any of the next one's chunks is submitted."""
        self.finished_count = 0
        self.beyond = 0
        self.beyond_ns: dict[str, int] = dict.fromkeys(STAMPS[1:], 0)

    def row(self, row_index: int) -> tuple[array[int], int]:
        """Return where the stamps of a chunk go: an array, and the index of ``ready`` in it."""
        if row_index < self.row_count:
            return self._values, row_index * _WIDTH
        return array("q", [_ABSENT]) * _WIDTH, 0

    def count(self, row_index: int, values: array[int]) -> None:
        """Count a chunk that is complete. The helper thread calls it.

        Args:
            values: the array that :meth:`row` gave for this chunk.
        """
        self.finished_count += 1
        if row_index >= self.row_count:
            self._add_to_sums(values)

    def _add_to_sums(self, values: array[int]) -> None:
        self.beyond += 1
        for name, value in zip(STAMPS[1:], values[1:], strict=True):
            if value != _ABSENT:
                self.beyond_ns[name] += value if name == "sink_ns" else value - values[READY]

    def columns(self, origin: int = 0) -> dict[StampName, list[int]]:
        """Return the stamps of every row, less ``origin``, without stamps that a row does not have.

        ``sink_ns`` is a duration, from which nothing is taken.
        """
        return {
            name: [value - (0 if name == "sink_ns" else origin) for value in values]
            for stamp_index, name in enumerate(STAMPS)
            if _ABSENT not in (values := self._values[stamp_index::_WIDTH])
        }

    def stamps_by_row(self) -> Iterator[dict[str, int | None]]:
        """Yield the stamps of each row by name, as :func:`cut` takes them."""
        for row_start in range(0, len(self._values), _WIDTH):
            yield {
                name: None if value == _ABSENT else value
                for name, value in zip(
                    STAMPS, self._values[row_start : row_start + _WIDTH], strict=True
                )
            }
