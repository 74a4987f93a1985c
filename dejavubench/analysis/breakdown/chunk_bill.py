"""Times of chunks → the bill: how long each part of a chunk's latency took, per arm and phase.

A chunk's latency is the time from *ready*, when its keys and values are in place, to *complete*.
Its parts sum to it. Chunks are under way at the same time, so their sum may exceed the request's
time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dejavubench.analysis.breakdown.tails import FEWEST_TOKENS, P99, find_percentile
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import (
    ChunkList,
    ChunkTimes,
    Run,
    SampledExtents,
    TimedChunks,
    read_source_times,
)

FEWEST_CHUNKS = FEWEST_TOKENS
"""A p99 of chunks needs as many times as one of tokens."""

LATENCY = "latency"
"""Name of a chunk's whole time, from ready to complete, beside those of its parts."""

QUEUE = "queue"
"""The part that a chunk waits for the helper thread; its extents do not move yet."""


@dataclass(frozen=True)
class PartTime:
    """One part of the latency of an arm's chunks in one phase, or the latency itself.

    Attributes:
        sum_ms: sum over the chunks of one iteration, median over rounds.
        median_us, p99_us: of single chunks of all rounds; None if none has times of its own, and
            p99 with fewer than 100 chunks.
        share: of the latency, over all rounds.
    """

    name: str
    sum_ms: float
    median_us: float | None
    p99_us: float | None
    share: float


@dataclass(frozen=True)
class Bill:
    """The chunks of one arm in one phase, over all sources and microbatches.

    Attributes:
        round_count: number of measured rounds.
        chunk_count, extent_count: numbers of chunks and extents of one iteration.
        extent_nbytes: mean size of an extent.
        extent_us: time of a chunk from its begin on, over its extents, median over chunks; None
            where extents are packed first.
        chunks_beyond: chunks of one iteration of which only sums are known.
        parts: the latency, then its parts in order.
    """

    point_id: str
    arm_name: str
    phase: str
    round_count: int
    chunk_count: int
    extent_count: int
    extent_nbytes: float
    extent_us: float | None
    chunks_beyond: int
    parts: list[PartTime]


@dataclass(frozen=True)
class ChunkFiles:
    """The content of a run's chunk files, as far as a report needs it."""

    bills: list[Bill]
    extents: list[SampledExtents]


@dataclass
class _Phase:
    """The times of one arm and phase that were read so far.

    Attributes:
        sums: ns by part and round, over all chunks of the round.
        lengths_ns: lengths of single chunks by part.
        per_extent: ns of single chunks without their queue, over their extents.
        counts: chunks, extents and bytes of one round, and chunks beyond those.
    """

    sums: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    lengths_ns: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    per_extent: list[np.ndarray] = field(default_factory=list)
    counts: dict[int, np.ndarray] = field(default_factory=dict)

    def add_counts(self, round_number: int, *counts: int) -> None:
        self.counts[round_number] = self.counts.get(round_number, 0) + np.array(counts)

    def add(self, round_number: int, name: str, total: int) -> None:
        self.sums[name][round_number] = self.sums[name].get(round_number, 0) + total


def read_chunk_files(run: Run, points: Mapping[str, PointSamples]) -> ChunkFiles:
    """Read a run's chunk files in one pass; both lists are empty for older folders.

    Damaged files are left out.

    Raises:
        RecordError: a file cannot be read, or does not belong to the run.
    """
    extents: list[SampledExtents] = []

    def chunks() -> Iterator[TimedChunks]:
        for timed_record in read_source_times(run.path, run.damaged_files):
            if isinstance(timed_record, TimedChunks):
                yield timed_record
            else:
                extents.append(timed_record)

    # The times of all chunks can be larger than memory: they pass one by one into the sums.
    return ChunkFiles(make_bills(chunks(), points), extents)


def make_bills(
    timed_chunks: Iterable[TimedChunks], points: Mapping[str, PointSamples]
) -> list[Bill]:
    """Return the bill of each arm and phase, in the order of the points, arms and phases.

    Warm-ups, rounds that were cut short, and arms that failed are left out. So are arms without a
    whole iteration, as a killed run leaves them.
    """
    phases: dict[tuple[str, str, str], _Phase] = defaultdict(_Phase)
    for _, chunk_list, times in timed_chunks:
        point = points.get(times.point)
        if point is None or times.arm not in point.arms:
            continue
        round_number = _round_of(times, point.arms[times.arm])
        if round_number is None:
            continue
        for phase in ("prompt", "tokens"):
            _add_microbatch(
                phases[times.point, times.arm, phase], phase, chunk_list, times, round_number
            )
    keys = [
        (point_id, arm_name, phase)
        for point_id, samples in points.items()
        for arm_name in samples.arms
        if samples.arms[arm_name].why_failed is None
        for phase in ("prompt", "tokens")
    ]
    return [
        _make_bill(key, phases[key], points[key[0]].arms[key[1]].info.level)
        for key in keys
        if key in phases and phases[key].counts
    ]


def _round_of(times: ChunkTimes, arm: ArmSamples) -> int | None:
    """Return the measured round of an iteration; None if it does not count."""
    if arm.restarts:  # a restarted request runs once, which is no warm-up
        return 0
    return times.round if times.round in arm.times.total else None


def _add_microbatch(
    phase_times: _Phase, phase: str, chunk_list: ChunkList, times: ChunkTimes, round_number: int
) -> None:
    """Add one microbatch's chunks of one phase."""
    # Indices of the list are also indices of the columns of times.
    indices = [index for index, chunk in enumerate(chunk_list.chunks) if chunk.phase == phase]
    # Chunks are listed in their order, so those beyond the list are of decode steps.
    chunks_beyond = times.beyond if phase == "tokens" else 0
    if not indices and not chunks_beyond:
        return
    chunks = [chunk_list.chunks[index] for index in indices]
    phase_times.add_counts(
        round_number,
        len(chunks),
        sum(chunk.extents for chunk in chunks),
        sum(chunk.nbytes for chunk in chunks),
        chunks_beyond,
    )
    parts = chunk_list.parts(phase)
    # `lengths_ns` is [parts, chunks]. Each column sums to the chunk's latency.
    lengths_ns = _compute_part_lengths(times, indices, [part.until for part in parts])
    # Chunks beyond the list have only sums; sums of durations are cut like one long chunk.
    beyond_lengths_ns = (
        cut(parts, _make_stamps_of_sums(times)) if chunks_beyond else [0] * len(parts)
    )
    names = [part.name for part in parts]
    for name, length_ns, beyond_ns in zip(names, lengths_ns, beyond_lengths_ns, strict=True):
        phase_times.lengths_ns[name].append(length_ns)
        phase_times.add(round_number, name, int(length_ns.sum()) + beyond_ns)
    phase_times.lengths_ns[LATENCY].append(lengths_ns.sum(axis=0))
    # In the queue no extent moves, so its time is none of theirs.
    moving_lengths_ns = [
        length_ns for name, length_ns in zip(names, lengths_ns, strict=True) if name != QUEUE
    ]
    # A chunk that moves as a whole is one extent.
    extent_counts = np.array([max(1, chunk.extents) for chunk in chunks])
    phase_times.per_extent.append(np.sum(moving_lengths_ns, axis=0) / extent_counts)
    phase_times.add(round_number, LATENCY, int(lengths_ns.sum()) + sum(beyond_lengths_ns))


def _compute_part_lengths(
    times: ChunkTimes, indices: list[int], stamp_names: list[str]
) -> np.ndarray:
    """Return the ns of each part of each chunk [parts, chunks], as ``chunk_times.cut`` does."""

    def column(stamps_ns: list[int]) -> np.ndarray:
        return np.array(stamps_ns, dtype=np.int64)[indices]

    began_ns = column(times.ready)
    complete_ns = column(times.complete)
    lengths_ns = []
    for stamp_name in stamp_names:
        # A stamp that is missing or out of order gives a part of length 0, so the sum stays exact.
        ended_ns = began_ns
        stamps_ns = times.sink_ns if stamp_name == "received" else getattr(times, stamp_name)
        if stamps_ns is not None:
            ended_ns = column(stamps_ns)
            if stamp_name == "received":
                # The sink's clock has another origin: only its duration is used, counted back from
                # complete.
                ended_ns = complete_ns - ended_ns
            ended_ns = np.minimum(np.maximum(ended_ns, began_ns), complete_ns)
        lengths_ns.append(ended_ns - began_ns)
        began_ns = ended_ns
    return np.array(lengths_ns)


def _make_stamps_of_sums(times: ChunkTimes) -> dict[str, int | None]:
    """Return the summed durations of the unlisted chunks as stamps of one chunk."""
    stamps = ("begun", "gathered", "copied", "seen", "posted", "moved", "complete", "sink_ns")
    # Durations from ready, so ready is the origin.
    return {"ready": 0, **{name: times.beyond_ns.get(name) for name in stamps}}


def _make_bill(key: tuple[str, str, str], phase: _Phase, level_name: str | None) -> Bill:
    """Make the bill of one point, arm and phase, with the medians over its rounds."""
    # `counts` maps a round to [chunks, extents, bytes, beyond]. Rounds are equal as a rule.
    chunk_count, extent_count, nbytes, chunks_beyond = (
        int(np.median(column)) for column in zip(*phase.counts.values(), strict=True)
    )
    # Over all rounds at once: a share of sums, so slow rounds weigh more than fast ones.
    latency_ns = sum(phase.sums[LATENCY].values())
    names = [LATENCY, *(name for name in phase.sums if name != LATENCY)]
    parts = [
        _make_part(
            name, phase.sums[name], np.sort(np.concatenate(phase.lengths_ns[name])), latency_ns
        )
        for name in names
    ]
    per_extent = np.concatenate(phase.per_extent)
    # Packed extents move as one chunk, so a time per extent would mean nothing.
    is_packed = level_name in LEVELS and LEVELS[level_name].buffered
    return Bill(
        *key,
        round_count=len(phase.counts),
        chunk_count=chunk_count + chunks_beyond,
        extent_count=extent_count,
        extent_nbytes=nbytes / extent_count if extent_count else 0.0,
        extent_us=None if is_packed or not per_extent.size else float(np.median(per_extent)) / 1e3,
        chunks_beyond=chunks_beyond,
        parts=parts,
    )


def _make_part(
    name: str, sums: Mapping[int, int], lengths_ns: np.ndarray, latency_ns: int
) -> PartTime:
    has_p99 = lengths_ns.size >= FEWEST_CHUNKS
    return PartTime(
        name,
        sum_ms=float(np.median(list(sums.values()))) / 1e6,
        median_us=find_percentile(lengths_ns, 0.5) / 1e3 if lengths_ns.size else None,
        p99_us=find_percentile(lengths_ns, P99) / 1e3 if has_p99 else None,
        share=sum(sums.values()) / latency_ns if latency_ns else 0.0,
    )
