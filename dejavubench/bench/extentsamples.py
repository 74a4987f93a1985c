"""A diagnostic iteration of each naive arm, in which some extents are timed one by one.

It comes after the rounds and is no arm of the run: what it records is no part of any statistics.
"""

from __future__ import annotations

from dejavubench import records
from dejavubench.bench.engine.batchmaker import Streamed
from dejavubench.bench.iteration import Iterations, nothing_collected
from dejavubench.bench.point.pointworker import PointWorker
from dejavubench.bench.point.source import Source
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.extentsamples import MOST_SAMPLES, ExtentSampler
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.parallel.collectives import sleeping_barrier


def sample_extents(worker: PointWorker, iterations: Iterations, arms: list[Arm]) -> None:
    """Run the diagnostic iteration of every arm that has one. Collective.

    Args:
        arms: those that have not failed.
    """
    for arm in arms:
        if arm.level is not None and _samples(arm, arm.level):
            _sample(worker, iterations, arm, arm.level)


def _samples(arm: Arm, name: str) -> bool:
    assert arm.destination is not None
    level, entry = LEVELS[name], arm.destination.entry
    return not level.buffered and (level.each_complete or not entry.issues_groups)


def _sample(worker: PointWorker, iterations: Iterations, arm: Arm, level: str) -> None:
    iterations.mark("sample extents", arm)
    managers: list[CacheManager] = []
    samplers: list[ExtentSampler] = []
    source = worker if isinstance(worker, Source) else None
    if source is not None:
        samplers = [ExtentSampler() for _ in source.caches]
        managers = _managers(source, arm, level, samplers)

    def prepare(pattern: int) -> None:
        if source is None:
            worker.prepare(arm, level, pattern)
            return
        for cache in source.caches:
            cache.fill(pattern)
        source.begin(managers)

    if not iterations.prepared(arm, prepare):
        return
    with nothing_collected():
        sleeping_barrier(worker.here.world, "start")
        if source is None:
            worker.stream_alone(arm, level)
        else:
            clocks, _ = source.maker.run(
                list[Streamed](managers), lambda phase: iterations.mark(phase, arm)
            )
    if iterations.has_failed(arm) or source is None:
        return
    for ubatch, (manager, sampler) in enumerate(zip(managers, samplers, strict=True)):
        source.here.context.workspace.chunk_file.append(
            _record(source.view.point.id, arm, ubatch, clocks[ubatch].total_ms, manager, sampler)
        )


def _managers(
    part: Source, arm: Arm, level: str, samplers: list[ExtentSampler]
) -> list[CacheManager]:
    outgoing, timeout = part.outgoing, part.here.experiment.drain_timeout
    streamer, streams = outgoing.streamer(arm), outgoing.streams(arm)
    managers = []
    for cache, streams_of_cache, sampler in zip(part.caches, streams, samplers, strict=True):
        manager = CacheManager(cache, streams_of_cache, LEVELS[level], streamer, timeout, sampler)
        extents = sum(planned.extents_count for planned in manager.chunks)
        sampler.begin(extents, MOST_SAMPLES // len(samplers))
        managers.append(manager)
    return managers


def _record(
    point: str,
    arm: Arm,
    ubatch: int,
    total_ms: float,
    manager: CacheManager,
    sampler: ExtentSampler,
) -> records.ExtentTimes:
    return records.ExtentTimes(
        point=point,
        arm=f"{arm.name}-sampled",
        of=arm.name,
        ubatch=ubatch,
        total_ms=total_ms,
        extents=sum(planned.extents_count for planned in manager.chunks),
        every=sampler.every,
        step=[sample.step for sample in sampler.samples],
        nbytes=[sample.nbytes for sample in sampler.samples],
        ns=[sample.ns for sample in sampler.samples],
    )
