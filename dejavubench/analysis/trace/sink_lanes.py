"""A sink in a trace: each chunk from its arrival until it is in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dejavubench.analysis.trace.events import Event, Passage, Process
from dejavubench.analysis.trace.source_lanes import Common, title
from dejavubench.records import ListedChunk, TimedArrivals, TimedChunks


def add_arrivals(
    process: Process,
    arrivals: Sequence[TimedArrivals],
    sources: Sequence[TimedChunks],
    common: Common,
) -> None:
    """Add the chunks that a sink received, by its own clock.

    Args:
        sources: what the sources have sent in this iteration; it names the chunks.
    """
    peers = {timed.times.peer for timed in arrivals}
    microbatches = {timed.times.ubatch for timed in arrivals}
    for timed in arrivals:
        of_source = [sent_chunks for sent_chunks in sources if sent_chunks.rank == timed.times.peer]
        chunks = [
            chunk
            for sent_chunks in of_source
            for chunk in sent_chunks.listed.chunks
            if (chunk.peer, chunk.stream) == (process.rank, timed.times.stream)
        ]
        source_text = f" from rank {timed.times.peer}" if len(peers) > 1 else ""
        microbatch_text = f" of microbatch {timed.times.ubatch}" if len(microbatches) > 1 else ""
        stream_text = (
            # Named only where a source has several streams to this sink.
            f", stream {timed.times.stream}"
            if len(arrivals) > len(peers) * len(microbatches)
            else ""
        )
        process.add(
            f"sink{source_text}{microbatch_text}{stream_text}",
            _make_events(process.rank, timed, chunks, common),
        )


def _make_events(
    rank: int, timed: TimedArrivals, chunks: list[ListedChunk], common: Common
) -> Iterator[Event]:
    """Yield each chunk of one stream, from its arrival if that is known."""
    times = timed.times
    received: Sequence[int | None] = times.received or [None] * len(times.scattered)
    # Chunks of a stream arrive in the order in which they were listed.
    titles = [title(chunk) for chunk in chunks[: len(received)]]
    titles += ["chunk"] * (len(received) - len(titles))
    arrivals = zip(titles, received, times.scattered, strict=True)
    for chunk_index, (name, arrived_ns, placed_ns) in enumerate(arrivals):
        end = common(times.began_ns + placed_ns)
        if arrived_ns is None:
            yield Event(name, end, None, {"moment": "in its place; its arrival is not known"})
        else:
            args = {"begin is": "seen to have come", "end is": "in its place"}
            passage = Passage(times.peer, rank, times.stream, chunk_index)
            yield Event(name, common(times.began_ns + arrived_ns), end, args, arrives=passage)
