"""A source in a trace: the model, its stalls, and each chunk on its way."""

from __future__ import annotations

import collections
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from dejavubench.analysis.trace.events import Counter, Event, Passage, Process
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.dejavulib.titles import format_chunk_title, format_layer_title, format_step_title
from dejavubench.records import (
    ChunkTimes,
    ListedChunk,
    Microbatch,
    PhaseMark,
    TimedChunks,
    lanes,
)

Common = Callable[[int], int]
"""Brings a time of the rank to the clock of the trace."""

_DERIVED_FORMAT = "derived: {}"


def add_marks(process: Process, marks: Iterable[PhaseMark], to_common: Common) -> None:
    """Add the moments at which phases began, outside the clocks of the phases."""
    process.add(
        lanes.PHASES,
        [
            Event(mark.phase, to_common(mark.at_ns), None)
            for mark in marks
            if mark.at_ns is not None
        ],
    )


def add_model(process: Process, microbatches: Sequence[Microbatch], to_common: Common) -> None:
    """Add prompt, tokens and drain of each microbatch, and the stalls of the model's thread."""
    for microbatch in microbatches:
        suffix = f" of microbatch {microbatch.ubatch}" if len(microbatches) > 1 else ""
        process.add(f"{lanes.MODEL}{suffix}", _make_steps(microbatch, to_common))
    process.add(
        lanes.STALL,
        [event for microbatch in microbatches for event in _make_stalls(microbatch, to_common)],
    )


def _make_steps(microbatch: Microbatch, to_common: Common) -> list[Event]:
    """Return prompt, decode steps and drain of one microbatch, none of which overlap."""
    assert microbatch.began_ns is not None
    assert microbatch.drain_began_ns is not None
    names = [format_step_title(step) for step in range(len(microbatch.token_ms) + 1)]
    begins_ns = [microbatch.began_ns + offset_ns for offset_ns in microbatch.steps_began_ns]
    begins_ns.append(microbatch.began_ns + microbatch.drain_began_ns)
    lengths_ms = [microbatch.prompt_ms, *microbatch.token_ms, microbatch.drain_ms]
    # Empty on a CPU, and one shorter than the steps with their drain.
    device_ms = [microbatch.prompt_event_ms, *microbatch.token_event_ms]
    events = []
    for step_index, (name, begin_ns, ms) in enumerate(
        zip([*names, lanes.DRAIN], begins_ns, lengths_ms, strict=True)
    ):
        end_ns = begin_ns + round(ms * 1e6)
        if step_index + 1 < len(
            begins_ns
        ):  # begins and lengths are rounded to nanoseconds one by one
            end_ns = min(end_ns, begins_ns[step_index + 1])
        ms_on_device = device_ms[step_index] if step_index < len(device_ms) else None
        args = {} if ms_on_device is None else {"ms by CUDA events": ms_on_device}
        events.append(Event(name, to_common(begin_ns), to_common(end_ns), args))
    return events


def _make_stalls(microbatch: Microbatch, to_common: Common) -> Iterator[Event]:
    assert microbatch.began_ns is not None
    for name in ("prompt", "tokens", "drain"):
        for begin_ns, end_ns in getattr(microbatch, name).stalls_ns:
            yield Event(
                lanes.wait_title(name),
                to_common(microbatch.began_ns + begin_ns),
                to_common(microbatch.began_ns + end_ns),
                {"microbatch": microbatch.ubatch},
            )


def add_chunks(
    process: Process, timed_microbatches: Sequence[TimedChunks], to_common: Common
) -> None:
    """Add layers of the prompt, the parts of each chunk's latency, and the lag."""
    for timed_chunks in timed_microbatches:
        suffix = (
            f" of microbatch {timed_chunks.times.ubatch}" if len(timed_microbatches) > 1 else ""
        )
        process.add(f"{lanes.LAYERS}{suffix}", _make_layers(timed_chunks, to_common))
    events_by_part: dict[str, list[Event]] = defaultdict(list)
    for timed_chunks in timed_microbatches:
        for name, event in _make_parts(process.rank, timed_chunks, to_common):
            events_by_part[name].append(event)
    for name, events in events_by_part.items():
        process.add(name, events)
    # A lag without some chunks would be too small.
    if all(timed_chunks.times.beyond == 0 for timed_chunks in timed_microbatches):
        process.counters.append(_make_lag(timed_microbatches, to_common))
    else:
        chunks_beyond = sum(timed_chunks.times.beyond for timed_chunks in timed_microbatches)
        process.notes.append(
            f"rank {process.rank}: {chunks_beyond} chunks have no times of their own, so neither "
            "they nor the lag are shown"
        )


def _make_layers(timed_chunks: TimedChunks, to_common: Common) -> Iterator[Event]:
    """Yield, for each layer of the prompt that left by itself, the time until it was in place."""
    times = timed_chunks.times
    ready_ns_by_layer = {
        chunk.layer: ready_ns
        for chunk, ready_ns in zip(timed_chunks.chunk_list.chunks, times.ready, strict=True)
        if chunk.phase == "prompt" and chunk.layer is not None
    }
    begin_ns = 0
    for layer, end_ns in sorted(
        ready_ns_by_layer.items(), key=lambda layer_and_end: layer_and_end[1]
    ):
        begin_text = "the layer before was in place" if begin_ns else "the prompt was submitted"
        yield Event(
            format_layer_title(layer),
            to_common(times.began_ns + min(begin_ns, end_ns)),
            to_common(times.began_ns + end_ns),
            {
                "begin is": _DERIVED_FORMAT.format(f"when {begin_text}"),
                "end is": "keys and values are in place, before the layer's attention",
            },
        )
        begin_ns = end_ns


def _make_parts(
    rank: int, timed_chunks: TimedChunks, to_common: Common
) -> Iterator[tuple[str, Event]]:
    """Yield the parts of each chunk's latency, with the name of the part, which is its lane."""
    chunk_list = timed_chunks.chunk_list
    times = timed_chunks.times
    chunk_numbers: collections.Counter[tuple[int | None, int]] = collections.Counter()
    for chunk, stamps in zip(chunk_list.chunks, times.stamps(), strict=True):
        passage = None
        if chunk.peer is not None:
            # Chunks of a stream are listed in the order in which they arrive.
            passage = Passage(
                rank, chunk.peer, chunk.stream, chunk_numbers[chunk.peer, chunk.stream]
            )
            chunk_numbers[chunk.peer, chunk.stream] += 1
        chunk_parts = chunk_list.parts(chunk.phase)
        lengths_ns = cut(chunk_parts, stamps)
        facts = _list_facts(chunk, times, sum(lengths_ns))
        end_ns = times.began_ns + (stamps["ready"] or 0)
        end_stamp = "ready"
        for part, length_ns in zip(chunk_parts, lengths_ns, strict=True):
            begin_ns, begin_stamp = end_ns, end_stamp
            end_ns, end_stamp = begin_ns + length_ns, part.until
            if not length_ns:
                continue  # what is not known, or came out of order, belongs to the next part
            args = {
                **facts,
                "begin is": _describe_stamp(begin_stamp),
                "end is": _describe_stamp(end_stamp),
            }
            # The sink may have the chunk, or extents of it, before the call that sends it returns.
            leaves = passage if end_stamp == "posted" else None
            yield (
                part.name,
                Event(name_chunk(chunk), to_common(begin_ns), to_common(end_ns), args, leaves),
            )


def _describe_stamp(name: str) -> str:
    if name == "received":
        return _DERIVED_FORMAT.format(
            "complete, less the sink's own duration of the acknowledgement"
        )
    return f"stamp '{name}'"


def _list_facts(chunk: ListedChunk, times: ChunkTimes, latency_ns: int) -> dict[str, object]:
    return {
        "bytes": chunk.nbytes,
        "extents": chunk.extents,
        "latency µs": latency_ns / 1e3,
        "microbatch": times.ubatch,
        **({} if chunk.peer is None else {"to rank": chunk.peer}),
    }


def name_chunk(chunk: ListedChunk) -> str:
    """Return the content of a chunk, in words."""
    return format_chunk_title(chunk.step, chunk.layer)


def _make_lag(timed_microbatches: Sequence[TimedChunks], to_common: Common) -> Counter:
    """Return the bytes that are in place and not complete."""
    nbytes_changes: dict[int, int] = defaultdict(int)
    for timed_chunks in timed_microbatches:
        began_ns = timed_chunks.times.began_ns
        chunks = timed_chunks.chunk_list.chunks
        for chunk, ready_ns, complete_ns in zip(
            chunks, timed_chunks.times.ready, timed_chunks.times.complete, strict=True
        ):
            nbytes_changes[to_common(began_ns + ready_ns)] += chunk.nbytes
            nbytes_changes[to_common(began_ns + complete_ns)] -= chunk.nbytes
    moments = sorted(nbytes_changes)
    lag_nbytes = accumulate(nbytes_changes[moment] for moment in moments)
    return Counter("lag", "bytes", list(zip(moments, lag_nbytes, strict=True)))
