"""Records of chunks' times, in files of their own: ``chunks-0000.jsonl`` and so on.

A :class:`ChunkList` says which chunks a microbatch has; it comes before the first
:class:`ChunkTimes` of its arm. Older programs do not look for these files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from dejavubench.records.field_types import (
    LARGEST_INT64,
    Count,
    Line,
    Model,
    PositiveMs,
    RecordError,
    Size,
)
from dejavubench.records.iterations import RoundRecord
from dejavubench.records.line_file import number_lines, parse_record
from dejavubench.records.names import rank_of_chunk_file

Ns = Annotated[int, Field(ge=-LARGEST_INT64, le=LARGEST_INT64)]
"""Nanoseconds relative to a moment, so that they may be negative."""


class ChunkPart(Model):
    """A part of each chunk's latency. It begins where the part before it ends, the first at ready.

    Attributes:
        name: name of the part.
        until: the stamp at which it ends, or ``received``, which is ``complete`` − ``sink_ns``.
    """

    name: str
    until: Literal["begun", "gathered", "copied", "seen", "posted", "moved", "received", "complete"]


class ListedChunk(Model):
    """One chunk of a microbatch.

    Attributes:
        phase: phase in which it leaves.
        nbytes: bytes of the chunk.
        step: 0 for the prompt, n for what leaves at the end of the n-th decode step.
        layer: the first layer, counted in this worker's part of the model; None: all of its layers.
        layers: number of layers.
        extents: contiguous pieces of the cache that it is gathered from, or moved as.
        peer: rank that receives it; None if no rank does.
        stream: number of its stream, which is unique between two ranks.
    """

    phase: Literal["prompt", "tokens"]
    step: Count
    layer: Count | None
    layers: Size
    nbytes: Count
    extents: Count
    peer: Count | None = None
    stream: Count = 0


class ChunkList(Line):
    """The chunks of one microbatch of an arm, the same in every iteration.

    Attributes:
        prompt_parts, token_parts: the parts of a chunk's latency that can be told apart.
        chunks: the first chunks, which have times of their own.
        more: number of chunks beyond these, of which only sums are kept.
    """

    kind: Literal["chunk-list"] = "chunk-list"
    point: str
    arm: str
    ubatch: Count
    prompt_parts: list[ChunkPart]
    token_parts: list[ChunkPart]
    chunks: list[ListedChunk]
    more: Count = 0

    def parts(self, phase: str) -> list[ChunkPart]:
        """Return the parts of the chunks of a phase, ``prompt`` or ``tokens``."""
        return self.prompt_parts if phase == "prompt" else self.token_parts


class ChunkTimes(RoundRecord):
    """The times of one microbatch's chunks on its source, in the order of its list.

    All are integer nanoseconds by the source's own clock. A whole column is None where the
    destination does not know this time.

    Attributes:
        began_ns: when the microbatch was submitted, by ``perf_counter_ns``. The other times are
            relative to it.
        ready: keys and values were in place.
        begun: the helper thread took the chunk.
        gathered: it was packed, or its extents were known.
        copied: it had come from the device to host memory.
        seen: the helper thread found that it had; None in older records.
        posted: ``flush`` had returned.
        moved: it had left this process.
        complete: the destination had it, as far as this side knew.
        sink_ns: duration from its arrival at the sink until it was in its place, by the sink's
            clock.
        beyond: chunks without times of their own.
        beyond_ns: summed durations of these chunks, from ready to each later time.
    """

    kind: Literal["chunk-times"] = "chunk-times"
    ubatch: Count
    began_ns: Count
    ready: list[Ns]
    begun: list[Ns]
    gathered: list[Ns]
    copied: list[Ns] | None = None
    seen: list[Ns] | None = None
    posted: list[Ns]
    moved: list[Ns] | None = None
    complete: list[Ns]
    sink_ns: list[Count] | None = None
    beyond: Count = 0
    beyond_ns: dict[str, Ns] = Field(default={})

    def stamps(self) -> Iterator[dict[str, int | None]]:
        """Yield the times of each chunk by name, as ``dejavulib.chunk_times.cut`` takes them."""
        # A column that the destination does not know is None as a whole, so spread it over chunks.
        unknown_column = [None] * len(self.ready)
        columns = {
            "ready": self.ready,
            "begun": self.begun,
            "gathered": self.gathered,
            "copied": self.copied or unknown_column,
            "seen": self.seen or unknown_column,
            "posted": self.posted,
            "moved": self.moved or unknown_column,
            "complete": self.complete,
            "sink_ns": self.sink_ns or unknown_column,
        }
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


class SinkChunkTimes(RoundRecord):
    """The times of one stream's chunks on the sink, in the order in which they arrived.

    All are integer nanoseconds by the sink's own clock, which is not that of the source.

    Attributes:
        ubatch: number of the microbatch among the sink's own.
        peer, stream: rank of the source, and the stream's number between the two.
        began_ns: when the sink began to receive, by ``perf_counter_ns``. The other times are
            relative to it.
        received: the chunk was seen to have come; None if the destination does not know it.
        scattered: the chunk was in its place, and its acknowledgement on its way.
    """

    kind: Literal["sink-chunk-times"] = "sink-chunk-times"
    ubatch: Count
    peer: Count
    stream: Count
    began_ns: Count
    received: list[Ns] | None = None
    scattered: list[Ns]


class ExtentTimes(Line):
    """Times of single extents at a naive level, from an iteration of its own.

    The iteration is no measurement of the arm: looking at extents slows the loop that moves them.

    Attributes:
        role: ``diagnostic``: no statistics use the times.
        arm: the diagnostic arm, such as ``mpi@0-sampled``, which has no other records.
        of: the arm that it is like.
        total_ms: TOTAL of its iteration.
        extents: number of extents of the microbatch.
        every: 1 extent in ``every`` was timed.
        step: for each sample, the step that it belongs to.
        nbytes: for each sample, its bytes.
        ns: for each sample, its nanoseconds: until it was complete at level 0, issued at
            ``0-batched``.
    """

    kind: Literal["extent-times"] = "extent-times"
    role: Literal["diagnostic"] = "diagnostic"
    point: str
    arm: str
    of: str
    ubatch: Count
    total_ms: PositiveMs
    extents: Count
    every: Size
    step: list[Count]
    nbytes: list[Count]
    ns: list[Count]


ChunkRecord = ChunkList | ChunkTimes | SinkChunkTimes | ExtentTimes
"""A line of a file of chunk times."""

CHUNK_RECORD: TypeAdapter[ChunkRecord] = TypeAdapter(
    Annotated[ChunkRecord, Field(discriminator="kind")]
)
"""Reads and checks a line, whose ``kind`` says which record it is."""


class TimedChunks(NamedTuple):
    """One microbatch of one iteration on one source, with the list of its chunks."""

    rank: int
    chunk_list: ChunkList
    times: ChunkTimes


class SampledExtents(NamedTuple):
    """Times of single extents on one source."""

    rank: int
    times: ExtentTimes


class TimedArrivals(NamedTuple):
    """One stream of one iteration on one sink."""

    rank: int
    times: SinkChunkTimes


def read_source_times(
    folder: Path, left_out: Collection[str] = ()
) -> Iterator[TimedChunks | SampledExtents]:
    """Read what a run's sources have timed, in one pass over its files; nothing in older folders.

    A torn last line is left out, as a crash leaves it.

    Args:
        left_out: names of files to leave out, because they are damaged.

    Raises:
        RecordError: a file, or a line other than a torn last one, cannot be read.
    """
    for path, rank in list_chunk_files(folder):
        if path.name not in left_out:
            yield from read_times(path, rank)


def read_chunk_times(folder: Path) -> Iterator[TimedChunks]:
    """Read the times of a run's chunks, microbatch by microbatch, as :func:`read_source_times`."""
    return (
        timed_record
        for timed_record in read_source_times(folder)
        if isinstance(timed_record, TimedChunks)
    )


def read_extent_times(folder: Path) -> Iterator[SampledExtents]:
    """Read the times of single extents that a run sampled, as :func:`read_source_times`."""
    return (
        timed_record
        for timed_record in read_source_times(folder)
        if isinstance(timed_record, SampledExtents)
    )


def read_sink_times(folder: Path) -> Iterator[TimedArrivals]:
    """Read the times that the sinks of a run have noted, as :func:`read_source_times`."""
    for path, rank in list_chunk_files(folder):
        for _, record in _read_records(path):
            if isinstance(record, SinkChunkTimes):
                yield TimedArrivals(rank, record)


def list_chunk_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each file of chunks' times of a run, with its rank."""
    for path in sorted(folder.glob("chunks-*.jsonl")):
        rank = rank_of_chunk_file(path.name)
        if rank is not None:
            yield path, rank


def read_times(path: Path, rank: int) -> Iterator[TimedChunks | SampledExtents]:
    """Read one file, as :func:`read_source_times`; each line is checked, also a sink's."""
    lists: dict[tuple[str, str, int], ChunkList] = {}
    for line_number, record in _read_records(path):
        if isinstance(record, ExtentTimes):
            yield SampledExtents(rank, record)
        # A list comes before the times of its chunks and holds for all iterations of its arm.
        key = record.point, record.arm, record.ubatch
        if isinstance(record, ChunkList):
            lists[key] = record
        if not isinstance(record, ChunkTimes):
            continue
        chunk_list = lists.get(key)
        if chunk_list is None:
            raise RecordError(
                f"{path}:{line_number}: times of chunks that no line before has listed"
            )
        if len(record.ready) != len(chunk_list.chunks):
            raise RecordError(
                f"{path}:{line_number}: times of {len(record.ready)} chunks, "
                f"but {len(chunk_list.chunks)} are listed"
            )
        yield TimedChunks(rank, chunk_list, record)


def _read_records(path: Path) -> Iterator[tuple[int, ChunkRecord]]:
    for line_number, line in number_lines(path):
        record = parse_record(path, line_number, line, CHUNK_RECORD)
        if record is not None:
            yield line_number, record
