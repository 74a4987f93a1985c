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

__all__ = ["MOST", "LatencyPart", "PartEnd", "Receipt", "Stamps", "TimesBlock", "cut", "now"]

MOST = 65_536
"""Chunks of one microbatch whose times are kept singly. Of the others, only sums are kept."""

StampName = Literal[
    "ready", "begun", "gathered", "copied", "posted", "moved", "complete", "sink_ns"
]
STAMPS: tuple[StampName, ...] = get_args(StampName)
"""The stamps of a transfer, in the order in which most destinations take them.

``ready``: the keys and values are in place. ``begun``: the helper thread has taken the chunk.
``gathered``: it is packed, or its extents are known. ``copied``: it has come from the device to
host memory. ``posted``: ``flush`` has returned. ``moved``: it has left this process.
``complete``: the destination has it. ``sink_ns`` is no time but a duration: from the chunk's
arrival at the sink until it was in its place there.
"""

PartEnd = Literal["begun", "gathered", "copied", "posted", "moved", "received", "complete"]
"""Ends of parts: a stamp, or ``received``, which is ``complete`` less ``sink_ns``."""

_ABSENT = -1


class LatencyPart(NamedTuple):
    """A part of a chunk's latency; ``until``: the stamp at which it ends."""

    name: str
    until: PartEnd


class Receipt(NamedTuple):
    """Times of a complete chunk that only its destination knows.

    Attributes:
        moved: when it had left this process, by :func:`now`.
        sink_ns: nanoseconds from its arrival at the sink until it was in its place.
    """

    moved: int | None = None
    sink_ns: int | None = None


class Stamps:
    """The times of one transfer, in nanoseconds of :func:`now`; see :data:`STAMPS`."""

    # Defaults of the class, so that making one sets a single attribute on the model's thread.
    begun = gathered = posted = complete = 0
    copied: int | None = None
    moved: int | None = None
    sink_ns: int | None = None

    def __init__(self, ready: int) -> None:
        self.ready = ready


class NamedPart(Protocol):
    """A part, as the library declares it or as a record has it."""

    @property
    def name(self) -> str: ...
    @property
    def until(self) -> str: ...


def cut(parts: Sequence[NamedPart], stamps: Mapping[str, int | None]) -> list[int]:
    """Cut one chunk's latency into parts; return the nanoseconds of each.

    No part is negative, and the parts sum to ``complete`` − ``ready``. Two stamps that come out of
    order, such as a sink that has the chunk before ``flush`` returns, give a part of 0.

    Args:
        parts: in order; the last one ends at ``complete``.
        stamps: the chunk's stamps by name, by one clock; None for what is not known.
    """
    began, complete = stamps["ready"], stamps["complete"]
    assert began is not None
    assert complete is not None
    lengths = []
    for part in parts:
        end = _end(part.until, stamps, began, complete)
        lengths.append(end - began)
        began = end
    return lengths


def _end(until: str, stamps: Mapping[str, int | None], began: int, complete: int) -> int:
    if until == "received":
        ended = None if (sink_ns := stamps["sink_ns"]) is None else complete - sink_ns
    else:
        ended = stamps[until]
    # What is not known takes no time: it belongs to the next part.
    return began if ended is None else min(max(ended, began), complete)


class TimesBlock:
    """The times of one microbatch's chunks: a preallocated block that one manager owns.

    Args:
        chunks: number of chunks of a microbatch. Up to :data:`MOST` have a row each.

    Attributes:
        finished: chunks that became complete since :meth:`reset`.
        beyond: chunks among them that have no row.
        beyond_ns: summed nanoseconds from ``ready`` to each later stamp, over these chunks.
    """

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.rows = min(chunks, MOST)
        self._columns = {name: array("q", [_ABSENT]) * self.rows for name in STAMPS}
        self.reset()

    def reset(self) -> None:
        """Forget the last microbatch. Called before any of the next one's chunks is submitted."""
        self.finished = self.beyond = 0
        self.beyond_ns: dict[str, int] = dict.fromkeys(STAMPS[1:], 0)

    def add(self, row: int, stamps: Stamps) -> None:
        """Keep the times of a chunk that is complete. The helper thread calls it."""
        self.finished += 1
        if row >= self.rows:
            self._sum(stamps)
            return
        columns = self._columns
        columns["ready"][row] = stamps.ready
        columns["begun"][row] = stamps.begun
        columns["gathered"][row] = stamps.gathered
        columns["copied"][row] = _ABSENT if stamps.copied is None else stamps.copied
        columns["posted"][row] = stamps.posted
        columns["moved"][row] = _ABSENT if stamps.moved is None else stamps.moved
        columns["complete"][row] = stamps.complete
        columns["sink_ns"][row] = _ABSENT if stamps.sink_ns is None else stamps.sink_ns

    def _sum(self, stamps: Stamps) -> None:
        self.beyond += 1
        for name in self.beyond_ns:
            value = getattr(stamps, name)
            if value is not None:
                self.beyond_ns[name] += value if name == "sink_ns" else value - stamps.ready

    def columns(self, origin: int = 0) -> dict[StampName, list[int]]:
        """Return the stamps of every row, less ``origin``, without stamps that a row does not have.

        ``sink_ns`` is a duration, from which nothing is taken.
        """
        return {
            name: [value - (0 if name == "sink_ns" else origin) for value in values]
            for name, values in self._columns.items()
            if _ABSENT not in values
        }

    def each(self) -> Iterator[dict[str, int | None]]:
        """Yield the stamps of each row by name, as :func:`cut` takes them."""
        for row in zip(*self._columns.values(), strict=True):
            yield {
                name: None if value == _ABSENT else value
                for name, value in zip(STAMPS, row, strict=True)
            }
