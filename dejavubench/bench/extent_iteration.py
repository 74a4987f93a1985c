"""A diagnostic iteration of each naive arm, in which some extents are timed one by one.

It comes after the rounds and is no arm of the run: what it records is no part of any statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dejavubench import records
from dejavubench.bench.engine.batch_maker import MarkPhase
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.iteration import Iterations, pause_collector
from dejavubench.bench.point.sink import Sink
from dejavubench.bench.point.source import Source
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.extent_samples import MOST_SAMPLES, ExtentSampler
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager


class ExtentSampling(Protocol):
    """One side's part in the diagnostic iterations. All ranks call the methods in this order."""

    def prepare(self, arm: Arm, level_name: str, pattern: int) -> None:
        """Fill everything that the iteration writes to with a pattern."""

    def run(self, arm: Arm, level_name: str, mark: MarkPhase) -> None:
        """Run the iteration."""

    def record(self, arm: Arm) -> None:
        """Write the samples, where there are any."""


def sample_extents(
    sampling: ExtentSampling, iterations: Iterations, arms_left: Sequence[Arm]
) -> None:
    """Run the diagnostic iteration of every arm that has one. Collective.

    Args:
        arms_left: the arms that have not failed.
    """
    for arm in arms_left:
        if arm.level is not None and _moves_extents_singly(arm, arm.level):
            _sample_arm(sampling, iterations, arm, arm.level)


def _moves_extents_singly(arm: Arm, name: str) -> bool:
    """Return whether single extents have a time of their own in this arm."""
    assert arm.transport is not None
    level = LEVELS[name]
    entry = arm.transport.entry
    return not level.buffered and (level.each_complete or not entry.issues_groups)


def _sample_arm(
    sampling: ExtentSampling, iterations: Iterations, arm: Arm, level_name: str
) -> None:
    iterations.mark("sample extents", arm)
    if not iterations.try_prepare(arm, lambda pattern: sampling.prepare(arm, level_name, pattern)):
        return
    with pause_collector():
        iterations.wait_for_ranks("start")
        sampling.run(arm, level_name, lambda phase: iterations.mark(phase, arm))
    if not iterations.agree_on_failure(arm):
        sampling.record(arm)


class SinkSampling:
    """Receives what a source samples; a sink times nothing itself."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def prepare(self, arm: Arm, level_name: str, pattern: int) -> None:
        """Fill this sink's caches and slots with the pattern."""
        self._sink.prepare(arm, level_name, pattern)

    def run(self, arm: Arm, level_name: str, mark: MarkPhase) -> None:
        """Receive all chunks of the iteration."""
        self._sink.receive(arm, level_name)

    def record(self, arm: Arm) -> None:
        """Write nothing."""


class SourceSampling:
    """Runs the requests with cache managers that time some extents."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rank_at_point = source.rank_at_point
        self._managers: list[CacheManager] = []
        self._samplers: list[ExtentSampler] = []
        self._clocks: list[MicrobatchClock] = []

    def prepare(self, arm: Arm, level_name: str, pattern: int) -> None:
        """Make managers that sample extents, and fill the caches with the pattern."""
        source = self._source
        self._samplers = [ExtentSampler() for _ in source.caches]
        self._managers = self._make_managers(arm, level_name)
        for cache in source.caches:
            cache.fill(pattern)
        source.begin(self._managers)

    def run(self, arm: Arm, level_name: str, mark: MarkPhase) -> None:
        """Run all microbatches with these managers, from prompt to drain."""
        self._clocks, _ = self._source.maker.run(list[MicrobatchStream](self._managers), mark)

    def record(self, arm: Arm) -> None:
        """Append one record of sampled extents per microbatch to the chunk file."""
        for microbatch, clock in enumerate(self._clocks):
            record = self._record_of(arm, microbatch, clock.total_ms)
            self._rank_at_point.context.chunk_file.append(record)

    def _make_managers(self, arm: Arm, level_name: str) -> list[CacheManager]:
        """Return one manager per cache, each with a sampler and a share of the samples."""
        destinations = self._source.destinations
        timeout_s = self._rank_at_point.experiment.drain_timeout
        streamer = destinations.open_streamer(arm)
        streams = destinations.streams(arm)
        managers = []
        for cache, streams_of_cache, sampler in zip(
            self._source.caches, streams, self._samplers, strict=True
        ):
            manager = CacheManager(
                cache, streams_of_cache, LEVELS[level_name], streamer, timeout_s, sampler
            )
            # All samplers share the limit, so that the file does not grow with the microbatches.
            sampler.begin(_count_extents(manager), MOST_SAMPLES // len(self._samplers))
            managers.append(manager)
        return managers

    def _record_of(self, arm: Arm, microbatch: int, total_ms: float) -> records.ExtentTimes:
        """Return the record of a microbatch's samples, under a name that no arm of the run has."""
        sampler = self._samplers[microbatch]
        return records.ExtentTimes(
            point=self._rank_at_point.point.id,
            arm=f"{arm.name}-sampled",
            of=arm.name,
            ubatch=microbatch,
            total_ms=total_ms,
            extents=_count_extents(self._managers[microbatch]),
            every=sampler.interval,
            step=[sample.step for sample in sampler.samples],
            nbytes=[sample.nbytes for sample in sampler.samples],
            ns=[sample.ns for sample in sampler.samples],
        )


def make_sampling(worker: Source | Sink) -> ExtentSampling:
    """Return the part that this side's worker takes in the diagnostic iterations."""
    return SourceSampling(worker) if isinstance(worker, Source) else SinkSampling(worker)


def _count_extents(manager: CacheManager) -> int:
    return sum(planned_chunk.extent_count for planned_chunk in manager.chunks)
