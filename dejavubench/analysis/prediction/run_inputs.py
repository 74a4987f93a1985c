"""A run's records → inputs of a prediction, or the reason why nothing can be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from dejavubench import units
from dejavubench.analysis.breakdown.least_work import work
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of
from dejavubench.analysis.facts.host_rounds import HostRounds, host_rounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues, collect
from dejavubench.analysis.facts.source_ranks import on_gpu, source_ranks
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction.chunk_rounds import ChunkRounds, chunk_rounds
from dejavubench.analysis.prediction.emulated_link import burst_nbytes
from dejavubench.analysis.prediction.inputs import (
    ArmInputs,
    LinkInputs,
    PointInputs,
    RunInputs,
    StagingInputs,
)
from dejavubench.analysis.prediction.link_sessions import find_ceiling
from dejavubench.analysis.prediction.request import LEVELS
from dejavubench.dejavulib.levels import LEVELS as SWITCHES
from dejavubench.records import Run

UNLIMITED = "unlimited"
"""The rate of a link that is not limited."""

EMULATED = "two hosts on one machine"
"""Place of a sink on another emulated host."""

GBPS = 1e6
"""Bytes per millisecond in one GB/s."""


class NoPredictionError(Exception):
    """Nothing can be predicted from a run. The message says why, and what would help."""


def read_inputs(run: Run) -> RunInputs:
    """Return the inputs that a run gives a prediction.

    Raises:
        NoPredictionError: it has no baseline, no times of chunks, no arm over a link of known
            speed, or several sources.
        RecordError: a file of the run cannot be read.
    """
    name, points = run.path.name, collect(run)
    if any(
        info.tensor_para_size * info.pipeline_para_size > 1 or info.sinks
        for info in run.header.points
    ):
        raise NoPredictionError(
            f"{name}: predictions start from a run with one source and one sink of the same setup; "
            "this run has others"
        )
    baselines = {key: known for key, point in points.items() if (known := _point(run, point))}
    if not baselines:
        raise NoPredictionError(
            f"{name} has no rounds of the arm none, which a prediction starts from. Measure with "
            "--streaming none,…"
        )
    chunks = chunk_rounds(run, points)
    if not chunks:
        raise NoPredictionError(
            f"{name} has no times of chunks, which a prediction starts from. Measure it again, "
            "without --no-chunk-times"
        )
    streams = [
        (points[key], samples, chunks[key, samples.info.name])
        for key in baselines
        for samples in points[key].arms.values()
        if (key, samples.info.name) in chunks and samples.info.level in LEVELS
    ]
    hosts = host_rounds(run)
    arms = [
        _arm(run, baselines[point.info.id], point, samples, times, link)
        for point, samples, times in streams
        if (link := _link(run, hosts, point, samples)) is not None
    ]
    if not arms:
        names = ", ".join(dict.fromkeys(samples.info.name for _, samples, _ in streams))
        raise NoPredictionError(
            f"{name}: the speed of the link is unknown ({names or 'no level has a prediction'}). "
            "Measure without --no-ceilings, to a destination over a link, at a level from 0 to 3"
        )
    where = run.header.where
    return RunInputs(
        name, where.machine or where.cpu_model, on_gpu(run), tuple(baselines.values()), tuple(arms)
    )


def _point(run: Run, point: PointSamples) -> PointInputs | None:
    prompts, tokens = point.baselines("prompt"), point.baselines("tokens")
    if not prompts:
        return None
    floor = stats.noise_floor(point.baselines())
    prompt_ms = stats.geometric_mean(prompts)
    return PointInputs(
        point.info,
        work(run, point.info),
        prompt_ms,
        # A request of one token has no steps.
        stats.geometric_mean(tokens) if tokens else dict.fromkeys(prompt_ms, 0.0),
        None if floor is None else stats.noise_reach(floor.low, floor.high),
    )


def _arm(
    run: Run,
    known: PointInputs,
    point: PointSamples,
    samples: ArmSamples,
    chunks: ChunkRounds,
    link: LinkInputs,
) -> ArmInputs:
    experiment, times, info = run.header.experiment, samples.times, samples.info
    no_steps = dict.fromkeys(times.prompt, 0.0)
    overhead = stats.paired_overhead(times.total, point.baselines())
    # chunk_rounds gives only arms and rounds that have a TOTAL, and the point has baselines.
    assert info.level is not None
    assert overhead is not None
    return ArmInputs(
        name=info.name,
        mode=info.mode,
        level=info.level,
        point=known,
        chunks=chunks,
        link=link,
        staging=StagingInputs(
            slots=experiment.get("staging_slots", 4),
            slot_nbytes=experiment.get("staging_mib", 16) * 2**20,
            flush_interval=experiment.get("flush_interval", 1),
        ),
        prompt_added=_differences(times.prompt, known.prompt_ms),
        tokens_added=_differences(times.tokens or no_steps, known.tokens_ms),
        overhead=overhead,
    )


def _differences(arm: RoundValues, none: RoundValues) -> RoundValues:
    return {number: ms - none[number] for number, ms in arm.items() if number in none}


# ---- the link ----


def _link(
    run: Run, hosts: Sequence[HostRounds], point: PointSamples, samples: ArmSamples
) -> LinkInputs | None:
    """Return the link of an arm; None if its speed is unknown."""
    info = info_of(run, samples.info)
    probe = None if info is None else info.link_rate or info.ceiling
    speed = None if probe is None else find_ceiling(run, probe, point.info.id)
    if info is None or probe is None or speed is None:
        return None
    # A disk is no link, and neither is a copy within host memory. PCIe is one.
    if info.on_storage or (info.local and not on_gpu(run)):
        return None
    message_us = find_ceiling(run, info.message, point.info.id) if info.message else None
    return LinkInputs(
        rate=GBPS * speed,
        probe=probe,
        message_ms=(message_us or 0.0) / 1e3,
        packet_nbytes=_packet_nbytes(run, hosts, point, samples),
        burst_nbytes=_burst_nbytes(run, samples),
    )


def _burst_nbytes(run: Run, samples: ArmSamples) -> float:
    """Return the burst of a link between two emulated hosts; 0 of any other link."""
    rate = run.header.experiment.get("link")
    if rate in (None, UNLIMITED) or hosts_of(run, samples.info) != EMULATED:
        return 0.0
    return float(burst_nbytes(units.rate(rate)))


def _packet_nbytes(
    run: Run, hosts: Sequence[HostRounds], point: PointSamples, samples: ArmSamples
) -> float:
    """Return the bytes of a naive message's packets beside its own, by the interfaces' counters."""
    packed = [
        each
        for each in point.arms.values()
        if each.info.mode == samples.info.mode
        and each.info.level in LEVELS
        and SWITCHES[str(each.info.level)].buffered
    ]
    naive = not SWITCHES[str(samples.info.level)].buffered
    if not naive or not packed or not samples.stream.nbytes:
        return 0.0
    sources = source_ranks(run)
    at_source = [host for host in hosts if sources & set(host.log.host.ranks)]
    naive_nbytes, packed_nbytes = (
        _on_the_wire(at_source, point.info.id, each) for each in (samples, packed[0])
    )
    steps = max((len(each[0]) for each in samples.times.steps.values()), default=0)
    copies = median(samples.stream.prompt_copies.values())
    if steps:
        copies += steps * median(samples.stream.token_copies.values())
    payload = median(samples.stream.nbytes.values())
    # Bytes that passed no interface, as within a host, tell nothing.
    if naive_nbytes is None or packed_nbytes is None or packed_nbytes < payload or not copies:
        return 0.0
    # Large messages have headers as well, which the measured speed of the link contains.
    return float(max(0.0, (naive_nbytes / packed_nbytes - 1) * payload / copies))


def _on_the_wire(hosts: Iterable[HostRounds], point: str, samples: ArmSamples) -> float | None:
    """Return the bytes that an arm's iteration sent through interfaces, median over rounds."""
    sums: list[int] = []
    for number in samples.times.total:
        windows = [host.window(point, samples.info.name, number) for host in hosts]
        carried = [each.carried for each in windows if each is not None]
        known = [each for each in carried if each is not None]
        if known and len(known) == len(carried):
            sums.append(sum(item.out_nbytes for one in known for item in one.values()))
    return median(sums) if sums else None
