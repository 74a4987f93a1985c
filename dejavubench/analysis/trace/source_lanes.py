"""A source in a trace: the model, its stalls, and each chunk on its way."""

from __future__ import annotations

from collections import Counter as Counted
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from dejavubench.analysis.trace.events import Counter, Event, Passage, Process
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.dejavulib.titles import chunk_title, layer_title, step_title
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

_DERIVED = "derived: {}"


def add_marks(process: Process, marks: Iterable[PhaseMark], common: Common) -> None:
    """Add the moments at which phases began, outside the clocks of the phases."""
    process.add(
        lanes.PHASES,
        [Event(mark.phase, common(mark.at_ns), None) for mark in marks if mark.at_ns is not None],
    )


def add_model(process: Process, microbatches: Sequence[Microbatch], common: Common) -> None:
    """Add prompt, tokens and drain of each microbatch, and the stalls of the model's thread."""
    for microbatch in microbatches:
        suffix = f" of microbatch {microbatch.ubatch}" if len(microbatches) > 1 else ""
        process.add(f"{lanes.MODEL}{suffix}", _make_steps(microbatch, common))
    process.add(
        lanes.STALL,
        [event for microbatch in microbatches for event in _make_stalls(microbatch, common)],
    )


def _make_steps(microbatch: Microbatch, common: Common) -> list[Event]:
    """Return prompt, decode steps and drain of one microbatch, none of which overlap."""
    assert microbatch.began_ns is not None
    assert microbatch.drain_began_ns is not None
    names = [step_title(step) for step in range(len(microbatch.token_ms) + 1)]
    begins = [microbatch.began_ns + offset_ns for offset_ns in microbatch.steps_began_ns]
    begins.append(microbatch.began_ns + microbatch.drain_began_ns)
    lengths = [microbatch.prompt_ms, *microbatch.token_ms, microbatch.drain_ms]
    # Empty on a CPU, and one shorter than the steps with their drain.
    devices = [microbatch.prompt_event_ms, *microbatch.token_event_ms]
    events = []
    for step_index, (name, begin, ms) in enumerate(
        zip([*names, lanes.DRAIN], begins, lengths, strict=True)
    ):
        end = begin + round(ms * 1e6)
        if step_index + 1 < len(begins):  # begins and lengths are rounded to nanoseconds one by one
            end = min(end, begins[step_index + 1])
        on_device = devices[step_index] if step_index < len(devices) else None
        args = {} if on_device is None else {"ms by CUDA events": on_device}
        events.append(Event(name, common(begin), common(end), args))
    return events


def _make_stalls(microbatch: Microbatch, common: Common) -> Iterator[Event]:
    assert microbatch.began_ns is not None
    for name in ("prompt", "tokens", "drain"):
        for begin, end in getattr(microbatch, name).stalls_ns:
            yield Event(
                lanes.wait_title(name),
                common(microbatch.began_ns + begin),
                common(microbatch.began_ns + end),
                {"microbatch": microbatch.ubatch},
            )


def add_chunks(process: Process, timed: Sequence[TimedChunks], common: Common) -> None:
    """Add layers of the prompt, the parts of each chunk's latency, and the lag."""
    for timed_chunks in timed:
        suffix = f" of microbatch {timed_chunks.times.ubatch}" if len(timed) > 1 else ""
        process.add(f"{lanes.LAYERS}{suffix}", _make_layers(timed_chunks, common))
    events_by_part: dict[str, list[Event]] = defaultdict(list)
    for timed_chunks in timed:
        for name, event in _make_parts(process.rank, timed_chunks, common):
            events_by_part[name].append(event)
    for name, events in events_by_part.items():
        process.add(name, events)
    # A lag without some chunks would be too small.
    if all(timed_chunks.times.beyond == 0 for timed_chunks in timed):
        process.counters.append(_make_lag(timed, common))
    else:
        beyond = sum(timed_chunks.times.beyond for timed_chunks in timed)
        process.notes.append(
            f"rank {process.rank}: {beyond} chunks have no times of their own, so neither they nor "
            "the lag are shown"
        )


def _make_layers(timed: TimedChunks, common: Common) -> Iterator[Event]:
    """Yield, for each layer of the prompt that left by itself, the time until it was in place."""
    times = timed.times
    ready = {
        chunk.layer: ready
        for chunk, ready in zip(timed.listed.chunks, times.ready, strict=True)
        if chunk.phase == "prompt" and chunk.layer is not None
    }
    begin = 0
    for layer, end in sorted(ready.items(), key=lambda layer_and_end: layer_and_end[1]):
        begin_text = "the layer before was in place" if begin else "the prompt was submitted"
        yield Event(
            layer_title(layer),
            common(times.began_ns + min(begin, end)),
            common(times.began_ns + end),
            {
                "begin is": _DERIVED.format(f"when {begin_text}"),
                "end is": "keys and values are in place, before the layer's attention",
            },
        )
        begin = end


def _make_parts(rank: int, timed: TimedChunks, common: Common) -> Iterator[tuple[str, Event]]:
    """Yield the parts of each chunk's latency, with the name of the part, which is its lane."""
    listed = timed.listed
    times = timed.times
    numbers: Counted[tuple[int | None, int]] = Counted()
    for chunk, stamps in zip(listed.chunks, times.stamps(), strict=True):
        passage = None
        if chunk.peer is not None:
            # Chunks of a stream are listed in the order in which they arrive.
            passage = Passage(rank, chunk.peer, chunk.stream, numbers[chunk.peer, chunk.stream])
            numbers[chunk.peer, chunk.stream] += 1
        declared = listed.parts(chunk.phase)
        lengths = cut(declared, stamps)
        facts = _facts(chunk, times, sum(lengths))
        end = times.began_ns + (stamps["ready"] or 0)
        end_stamp = "ready"
        for part, length in zip(declared, lengths, strict=True):
            begin, begin_stamp, end, end_stamp = end, end_stamp, end + length, part.until
            if not length:
                continue  # what is not known, or came out of order, belongs to the next part
            args = {
                **facts,
                "begin is": _describe_stamp(begin_stamp),
                "end is": _describe_stamp(end_stamp),
            }
            # The sink may have the chunk, or extents of it, before the call that sends it returns.
            leaves = passage if end_stamp == "posted" else None
            yield part.name, Event(title(chunk), common(begin), common(end), args, leaves)


def _describe_stamp(name: str) -> str:
    if name == "received":
        return _DERIVED.format("complete, less the sink's own duration of the acknowledgement")
    return f"stamp '{name}'"


def _facts(chunk: ListedChunk, times: ChunkTimes, latency_ns: int) -> dict[str, object]:
    return {
        "bytes": chunk.nbytes,
        "extents": chunk.extents,
        "latency µs": latency_ns / 1e3,
        "microbatch": times.ubatch,
        **({} if chunk.peer is None else {"to rank": chunk.peer}),
    }


def title(chunk: ListedChunk) -> str:
    """Return the content of a chunk, in words."""
    return chunk_title(chunk.step, chunk.layer)


def _make_lag(timed: Sequence[TimedChunks], common: Common) -> Counter:
    """Return the bytes that are in place and not complete."""
    changes: dict[int, int] = defaultdict(int)
    for timed_chunks in timed:
        began = timed_chunks.times.began_ns
        chunks = timed_chunks.listed.chunks
        for chunk, ready, complete in zip(
            chunks, timed_chunks.times.ready, timed_chunks.times.complete, strict=True
        ):
            changes[common(began + ready)] += chunk.nbytes
            changes[common(began + complete)] -= chunk.nbytes
    moments = sorted(changes)
    values = accumulate(changes[moment] for moment in moments)
    return Counter("lag", "bytes", list(zip(moments, values, strict=True)))
