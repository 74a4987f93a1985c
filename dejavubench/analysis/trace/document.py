"""A trace in Chrome's trace event format, which the Perfetto UI and others open.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
Times are microseconds with three decimals. No nanosecond is lost, but the last one of a slice that
touches the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import IO, Any

from dejavubench.analysis.trace.build import Trace
from dejavubench.analysis.trace.events import Event, Passage, Process

LANE_NUMBERS_PER_PROCESS = 1000
"""Numbers of lanes begin here for the first rank, so that no two lanes have the same."""


def write(trace: Trace, file: IO[str]) -> None:
    """Write a trace as JSON, one event per line."""
    events = ",\n".join(_to_json(event) for event in events_of(trace))
    file.write(f'{{"displayTimeUnit": "ns",\n"otherData": {_to_json(make_metadata(trace))},\n')
    file.write(f'"traceEvents": [\n{events}\n]}}\n')


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def make_metadata(trace: Trace) -> dict[str, Any]:
    """Return the iteration that is shown, the clocks and the notes."""
    choice = trace.choice
    header = trace.run.header
    return {
        "run": header.name,
        "run_id": header.run_id,
        "command": header.command,
        "point": choice.point_id,
        "arm": choice.arm_name,
        "round": choice.round + 1,
        "chosen": choice.way_chosen,
        "total_ms": choice.total_ms,
        "overhead": choice.overhead,
        "clocks": [clock.facts() for clock in trace.clocks],
        "notes": trace.notes,
    }


def events_of(trace: Trace) -> Iterator[dict[str, Any]]:
    """Yield the events of all processes, each with the names that its viewer shows."""
    arrows = _number_arrows(trace.processes)
    for process in trace.processes:
        # Viewers take process 0 for the idle one.
        yield from _list_events_of_rank(process, process.rank + 1, trace.zero_ns, arrows)


def _number_arrows(processes: Iterable[Process]) -> dict[Passage, int]:
    """Return a number for each passage of a chunk that both sides show.

    Left out are those that would arrive before they left: clocks of two hosts differ by so much.
    """
    events = [event for process in processes for lane in process.lanes for event in lane.events]
    departures = {event.leaves: event.begin_ns for event in events if event.leaves is not None}
    arrivals = {event.arrives: event.begin_ns for event in events if event.arrives is not None}
    shown_on_both_sides = (
        passage for passage in departures if departures[passage] <= arrivals.get(passage, -1)
    )
    return {
        passage: arrow_number for arrow_number, passage in enumerate(shown_on_both_sides, start=1)
    }


def _list_events_of_rank(
    process: Process, pid: int, zero_ns: int, arrows: Mapping[Passage, int]
) -> Iterator[dict[str, Any]]:
    """Yield the events of one rank: names of process and lanes, events, arrows and counters."""
    yield _make_name("process_name", pid, 0, name=process.title)
    yield _make_name("process_sort_index", pid, 0, sort_index=process.rank)
    for lane_number, lane in enumerate(process.lanes, start=pid * LANE_NUMBERS_PER_PROCESS):
        yield _make_name("thread_name", pid, lane_number, name=lane.title)
        yield _make_name("thread_sort_index", pid, lane_number, sort_index=lane_number)
        for event, next_event in zip_longest(lane.events, lane.events[1:]):
            yield {**_make_event(event, next_event, zero_ns), "pid": pid, "tid": lane_number}
            yield from _make_arrow_ends(event, zero_ns, pid, lane_number, arrows)
    for counter in process.counters:
        for moment, value in counter.values:
            yield {
                "name": counter.title,
                "ph": "C",
                "ts": _convert_to_us(moment - zero_ns),
                "pid": pid,
                "args": {counter.unit: value},
            }


def _make_name(kind: str, pid: int, tid: int, **args: object) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _make_event(event: Event, next_event: Event | None, zero_ns: int) -> dict[str, Any]:
    """Return an event of a lane in the format of the trace; ``next_event`` is on its lane, too."""
    common_fields = {
        "name": event.name,
        "cat": "dejavubench",
        "ts": _convert_to_us(event.begin_ns - zero_ns),
    }
    if event.end_ns is None:
        return {**common_fields, "ph": "i", "s": "t", "args": dict(event.args)}
    # Viewers add begin and duration as decimals of a microsecond, and some truncate both to
    # nanoseconds. A slice that ends where the next one begins would then overlap it by a rounding
    # error, and a viewer that nests slices never closes it. So such a slice ends 1 ns early.
    touches_next = next_event is not None and next_event.begin_ns <= event.end_ns
    duration_ns = max(event.end_ns - event.begin_ns - touches_next, 0)
    return {
        **common_fields,
        "ph": "X",
        "dur": _convert_to_us(duration_ns),
        "args": dict(event.args),
    }


def _make_arrow_ends(
    event: Event, zero_ns: int, pid: int, tid: int, arrows: Mapping[Passage, int]
) -> Iterator[dict[str, Any]]:
    """Yield the beginning or the end of a chunk's arrow, which sticks to the slice around it."""
    for passage, arrow_end in (
        (event.leaves, {"ph": "s"}),
        (event.arrives, {"ph": "f", "bp": "e"}),
    ):
        if passage is not None and passage in arrows:
            position = {"ts": _convert_to_us(event.begin_ns - zero_ns), "pid": pid, "tid": tid}
            common_fields = {"name": "chunk", "cat": "dejavubench"}
            yield common_fields | arrow_end | {"id": arrows[passage]} | position


def _convert_to_us(ns: int) -> float:
    return ns / 1e3
