"""A sink in a trace: each chunk from its arrival until it is in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dejavubench.analysis.trace.events import Event, Passage, Process
from dejavubench.analysis.trace.source_lanes import Common, name_chunk
from dejavubench.records import ListedChunk, TimedArrivals, TimedChunks


def add_arrivals(
    process: Process,
    arrivals: Sequence[TimedArrivals],
    sources: Sequence[TimedChunks],
    to_common: Common,
) -> None:
    """Add the chunks that a sink received, by its own clock.

    Args:
        sources: what the sources have sent in this iteration; it names the chunks.
    """
    peers = {timed_arrivals.times.peer for timed_arrivals in arrivals}
    microbatches = {timed_arrivals.times.ubatch for timed_arrivals in arrivals}
    for timed_arrivals in arrivals:
        of_source = [
            sent_chunks for sent_chunks in sources if sent_chunks.rank == timed_arrivals.times.peer
        ]
        chunks = [
            chunk
            for sent_chunks in of_source
            for chunk in sent_chunks.chunk_list.chunks
            if (chunk.peer, chunk.stream) == (process.rank, timed_arrivals.times.stream)
        ]
        source_text = f" from rank {timed_arrivals.times.peer}" if len(peers) > 1 else ""
        microbatch_text = (
            f" of microbatch {timed_arrivals.times.ubatch}" if len(microbatches) > 1 else ""
        )
        stream_text = (
            # Named only where a source has several streams to this sink.
            f", stream {timed_arrivals.times.stream}"
            if len(arrivals) > len(peers) * len(microbatches)
            else ""
        )
        process.add(
            f"sink{source_text}{microbatch_text}{stream_text}",
            _make_events(process.rank, timed_arrivals, chunks, to_common),
        )


def _make_events(
    rank: int, timed_arrivals: TimedArrivals, chunks: list[ListedChunk], to_common: Common
) -> Iterator[Event]:
    """Yield each chunk of one stream, from its arrival if that is known."""
    times = timed_arrivals.times
    received_ns: Sequence[int | None] = times.received or [None] * len(times.scattered)
    # Chunks of a stream arrive in the order in which they were listed.
    titles = [name_chunk(chunk) for chunk in chunks[: len(received_ns)]]
    titles += ["chunk"] * (len(received_ns) - len(titles))
    arrivals = zip(titles, received_ns, times.scattered, strict=True)
    for chunk_index, (name, arrived_ns, placed_ns) in enumerate(arrivals):
        end_ns = to_common(times.began_ns + placed_ns)
        if arrived_ns is None:
            yield Event(name, end_ns, None, {"moment": "in its place; its arrival is not known"})
        else:
            args = {"begin is": "seen to have come", "end is": "in its place"}
            passage = Passage(times.peer, rank, times.stream, chunk_index)
            yield Event(name, to_common(times.began_ns + arrived_ns), end_ns, args, arrives=passage)
