"""Events of a trace on lanes, in nanoseconds of one clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_LANES = 16
"""Events that overlap more than this deep are left out of the trace, and counted."""


class Passage(NamedTuple):
    """A chunk's way from a source to a sink, which the trace shows as an arrow.

    Attributes:
        chunk_number: the chunk's number within its stream, which is unique between the two ranks.
    """

    source: int
    sink: int
    stream: int
    chunk_number: int


@dataclass(frozen=True)
class Event:
    """A span of time on a lane, or a moment.

    Attributes:
        end_ns: None for a moment.
        leaves, arrives: the chunk that goes to a sink in this event, or has come by it.
        args: what a reader sees on a click. ``begin is`` and ``end is`` say how an end that was
            not measured itself was derived.
    """

    name: str
    begin_ns: int
    end_ns: int | None
    args: Mapping[str, Any] = field(default_factory=dict)
    leaves: Passage | None = None
    arrives: Passage | None = None

    @property
    def last_ns(self) -> int:
        """The newest moment of the event."""
        return self.begin_ns if self.end_ns is None else self.end_ns


@dataclass(frozen=True)
class Lane:
    """A row of the trace, whose events do not overlap."""

    title: str
    events: Sequence[Event]


@dataclass(frozen=True)
class Counter:
    """A number that changes: its values, and the moments from which they hold."""

    title: str
    unit: str
    values: Sequence[tuple[int, int]]


@dataclass
class Process:
    """All that a trace shows of one rank."""

    rank: int
    title: str
    lanes: list[Lane] = field(default_factory=list)
    counters: list[Counter] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, title: str, events: Iterable[Event]) -> None:
        """Add events on as many lanes as they need, so that none overlaps another."""
        lanes, left_out = lay_out_lanes(title, events)
        self.lanes += lanes
        if left_out:
            self.notes.append(
                f"rank {self.rank}: {left_out} events of '{title}' are left out. They overlap "
                f"more than {MOST_LANES} deep"
            )

    @property
    def moments(self) -> list[int]:
        """Begin and end of each event, and the moments of counters, in no order."""
        ends = [
            end
            for lane in self.lanes
            for event in lane.events
            for end in (event.begin_ns, event.last_ns)
        ]
        return ends + [moment for counter in self.counters for moment, _ in counter.values]


def lay_out_lanes(title: str, events: Iterable[Event]) -> tuple[list[Lane], int]:
    """Return lanes whose events do not overlap, and the number of events that found no lane."""
    lanes: list[list[Event]] = []
    left_out = 0
    for event in sorted(events, key=lambda lane_event: (lane_event.begin_ns, lane_event.last_ns)):
        lane = next((lane for lane in lanes if lane[-1].last_ns <= event.begin_ns), None)
        if lane is None and len(lanes) == MOST_LANES:
            left_out += 1
            continue
        if lane is None:
            lane = []
            lanes.append(lane)
        lane.append(event)
    numbered_lanes = enumerate(lanes, start=1)
    return [
        Lane(title if lane_number == 1 else f"{title} ({lane_number})", lane)
        for lane_number, lane in numbered_lanes
    ], left_out
