"""For tests of traces: Chrome's trace event format, as its published document describes it.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Us = float


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    pid: int


class Complete(_Event):
    """A slice."""

    ph: Literal["X"]
    cat: str
    tid: int
    ts: Us = Field(ge=0)
    dur: Us = Field(ge=0)
    args: dict[str, Any]

    @property
    def end(self) -> float:
        return self.ts + self.dur


class Instant(_Event):
    """A moment."""

    ph: Literal["i"]
    cat: str
    tid: int
    ts: Us = Field(ge=0)
    s: Literal["g", "p", "t"]
    args: dict[str, Any]


class FlowBegin(_Event):
    """The beginning of an arrow, in the slice around it."""

    ph: Literal["s"]
    cat: str
    id: int
    tid: int
    ts: Us = Field(ge=0)


class FlowEnd(_Event):
    """The end of an arrow. ``bp``: it sticks to the slice around it, not to the next one."""

    ph: Literal["f"]
    bp: Literal["e"]
    cat: str
    id: int
    tid: int
    ts: Us = Field(ge=0)


class Count(_Event):
    """A counter's new values."""

    ph: Literal["C"]
    ts: Us = Field(ge=0)
    args: dict[str, float]


class Name(BaseModel):
    """The name or place of a process or thread."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["process_name", "process_sort_index", "thread_name", "thread_sort_index"]
    ph: Literal["M"]
    pid: int
    tid: int
    args: dict[Literal["name", "sort_index"], str | int]


class Document(BaseModel):
    """The object format of a trace."""

    model_config = ConfigDict(extra="forbid", strict=True)

    unit: Literal["ms", "ns"] = Field(alias="displayTimeUnit")
    data: dict[str, Any] = Field(alias="otherData")
    events: list[Complete | Instant | FlowBegin | FlowEnd | Count | Name] = Field(
        alias="traceEvents"
    )


@dataclass
class Trace:
    """A checked trace: events by the titles of process and lane, and counters."""

    data: dict[str, Any]
    lanes: dict[str, dict[str, list[Complete | Instant]]]
    counters: dict[str, dict[str, list[Count]]]
    arrows: list[tuple[Complete, Complete]]

    def process(self, rank: int) -> str:
        """Return the title of a rank's process."""
        (process_title,) = [title for title in self.lanes if title.startswith(f"rank {rank},")]
        return process_title

    def slices(self, rank: int, lane: str) -> list[Complete]:
        """Return the slices of a lane and of its further rows."""
        return [event for event in self._events(rank, lane) if isinstance(event, Complete)]

    def moments(self, rank: int, lane: str) -> list[Instant]:
        return [event for event in self._events(rank, lane) if isinstance(event, Instant)]

    def _events(self, rank: int, lane: str) -> Iterator[Complete | Instant]:
        for title, events in self.lanes[self.process(rank)].items():
            if title == lane or title.startswith(f"{lane} ("):
                yield from events


def read(path: Path) -> Trace:
    """Read a trace and check all that the format asks, and that no events of a lane overlap."""
    document = TypeAdapter(Document).validate_python(json.loads(path.read_text()), strict=True)
    name_events = [event for event in document.events if isinstance(event, Name)]
    processes = {
        name_event.pid: str(name_event.args["name"])
        for name_event in name_events
        if name_event.name == "process_name"
    }
    threads = {
        name_event.tid: str(name_event.args["name"])
        for name_event in name_events
        if name_event.name == "thread_name"
    }
    titles = [
        (name_event.pid, name_event.args["name"])
        for name_event in name_events
        if name_event.name == "thread_name"
    ]
    assert len(set(titles)) == len(titles), "two lanes of a process have one title"
    owner = {
        name_event.tid: name_event.pid
        for name_event in name_events
        if name_event.name == "thread_name"
    }
    assert len(set(processes.values())) == len(processes)
    assert 0 not in processes, "viewers take it for the idle process"
    lanes: dict[str, dict[str, list[Complete | Instant]]] = {p: {} for p in processes.values()}
    counters: dict[str, dict[str, list[Count]]] = defaultdict(lambda: defaultdict(list))
    for event in document.events:
        if isinstance(event, Count):
            counters[processes[event.pid]][event.name].append(event)
        elif isinstance(event, Complete | Instant):
            assert owner[event.tid] == event.pid
            lanes[processes[event.pid]].setdefault(threads[event.tid], []).append(event)
    for process in lanes.values():
        for events in process.values():
            check_apart(events)
    return Trace(document.data, lanes, counters, list(arrows_of(document.events)))


def arrows_of(events: list[Any]) -> Iterator[tuple[Complete, Complete]]:
    """Yield the two slices that each arrow connects; it has both ends, in order."""
    slices = [event for event in events if isinstance(event, Complete)]

    def around(end: FlowBegin | FlowEnd) -> Complete:
        (enclosing,) = [
            slice_
            for slice_ in slices
            if (slice_.pid, slice_.tid) == (end.pid, end.tid) and slice_.ts <= end.ts < slice_.end
        ]
        return enclosing

    begins = {event.id: event for event in events if isinstance(event, FlowBegin)}
    ends = [event for event in events if isinstance(event, FlowEnd)]
    assert sorted(begins) == sorted(event.id for event in ends)
    for end in ends:
        assert begins[end.id].ts <= end.ts
        yield around(begins[end.id]), around(end)


def check_apart(events: list[Complete | Instant]) -> None:
    """Check that events are in order and none begins before the one before has ended."""
    for event, next_event in pairwise(events):
        end = event.end if isinstance(event, Complete) else event.ts
        # As speedscope adds decimals, and as Perfetto truncates begin and duration to nanoseconds.
        assert end <= next_event.ts, (event, next_event)
        if isinstance(event, Complete):
            truncated = int(event.ts * 1e3) + int(event.dur * 1e3)
            assert truncated <= int(next_event.ts * 1e3), (event, next_event)
