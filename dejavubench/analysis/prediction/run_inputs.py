"""A run's records → inputs of a prediction, or the reason why nothing can be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from dejavubench import units
from dejavubench.analysis.breakdown.least_work import compute_work
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import HostRounds, read_host_rounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.facts.source_ranks import list_source_ranks, ran_on_gpu
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction.chunk_rounds import ChunkRounds, collect_chunk_rounds
from dejavubench.analysis.prediction.emulated_link import PAYLOAD_SHARE, compute_burst_nbytes
from dejavubench.analysis.prediction.inputs import (
    ArmInputs,
    LinkInputs,
    PointInputs,
    RunInputs,
    StagingInputs,
)
from dejavubench.analysis.prediction.link_sessions import find_ceiling
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run
from dejavubench.records.destination_info import DestinationInfo

UNLIMITED_RATE = "unlimited"
"""The rate of a link that is not limited."""

EMULATED_PLACE = "two hosts on one machine"
"""Place of a sink on another emulated host."""

NBYTES_PER_GB = 1e9
"""Bytes of a GB, in which probes say rates."""


class NoPredictionError(Exception):
    """Nothing can be predicted from a run. The message says why, and what would help."""


def read_inputs(run: Run) -> RunInputs:
    """Return the inputs that a run gives a prediction.

    Raises:
        NoPredictionError: it has no baseline, no times of chunks, no arm over a link of known
            speed, or several sources.
        RecordError: a file of the run cannot be read.
    """
    name = run.path.name
    points = collect(run)
    if any(
        info.tensor_para_size * info.pipeline_para_size > 1 or info.sinks
        for info in run.header.points
    ):
        raise NoPredictionError(
            f"{name}: predictions start from a run with one source and one sink of the same setup; "
            "this run has others"
        )
    baselines = {
        point_id: point_inputs
        for point_id, point in points.items()
        if (point_inputs := _make_point(run, point)) is not None
    }
    if not baselines:
        raise NoPredictionError(
            f"{name} has no rounds of the arm none, which a prediction starts from. Measure with "
            "--streaming none,…"
        )
    rounds_by_arm = collect_chunk_rounds(run, points)
    if not rounds_by_arm:
        raise NoPredictionError(
            f"{name} has no times of chunks, which a prediction starts from. Measure it again, "
            "without --no-chunk-times"
        )
    streams = [
        (points[point_id], samples, rounds_by_arm[point_id, samples.info.name])
        for point_id in baselines
        for samples in points[point_id].arms.values()
        if (point_id, samples.info.name) in rounds_by_arm and samples.info.level in PREDICTED_LEVELS
    ]
    hosts = read_host_rounds(run)
    arms = [
        _make_arm(run, baselines[point.info.id], point, samples, arm_chunks, link)
        for point, samples, arm_chunks in streams
        if (link := _make_link(run, hosts, point, samples)) is not None
    ]
    if not arms:
        raise NoPredictionError(
            f"{name}: {_explain_no_link(run, [samples for _, samples, _ in streams])}"
        )
    facts = run.header.facts
    return RunInputs(
        name,
        facts.machine or facts.cpu_model,
        ran_on_gpu(run),
        tuple(baselines.values()),
        tuple(arms),
    )


def _make_point(run: Run, point: PointSamples) -> PointInputs | None:
    """Return a point without streaming; None without a baseline."""
    prompt_baselines = point.baselines("prompt")
    token_baselines = point.baselines("tokens")
    if not prompt_baselines:
        return None
    noise_floor = stats.estimate_noise_floor(point.baselines())
    prompt_ms = stats.compute_geometric_mean(prompt_baselines)
    return PointInputs(
        point.info,
        compute_work(run, point.info),
        prompt_ms,
        # A request of one token has no steps.
        stats.compute_geometric_mean(token_baselines)
        if token_baselines
        else dict.fromkeys(prompt_ms, 0.0),
        None
        if noise_floor is None
        else stats.compute_noise_reach(noise_floor.low, noise_floor.high),
    )


def _make_arm(
    run: Run,
    baseline: PointInputs,
    point: PointSamples,
    samples: ArmSamples,
    chunks: ChunkRounds,
    link: LinkInputs,
) -> ArmInputs:
    """Return one arm's inputs: its chunks, its link, and what streaming added to none."""
    experiment = run.header.experiment
    times = samples.times
    info = samples.info
    no_steps = dict.fromkeys(times.prompt, 0.0)
    overhead = stats.estimate_paired_overhead(times.total, point.baselines())
    # chunk_rounds gives only arms and rounds that have a TOTAL, and the point has baselines.
    assert info.level is not None
    assert overhead is not None
    return ArmInputs(
        name=info.name,
        mode=info.mode,
        level=info.level,
        point=baseline,
        chunks=chunks,
        link=link,
        staging=StagingInputs(
            # A swept setting is the point's own, and a list in the experiment.
            slot_count=point.info.staging_slots or experiment.get("staging_slots", 4),
            slot_nbytes=(point.info.staging_mib or experiment.get("staging_mib", 16)) * 2**20,
            flush_interval=experiment.get("flush_interval", 1),
        ),
        prompt_added_ms=_subtract_rounds(times.prompt, baseline.prompt_ms),
        tokens_added_ms=_subtract_rounds(times.tokens or no_steps, baseline.tokens_ms),
        overhead=overhead,
    )


def _subtract_rounds(arm_ms: RoundValues, none_ms: RoundValues) -> RoundValues:
    return {
        round_number: ms - none_ms[round_number]
        for round_number, ms in arm_ms.items()
        if round_number in none_ms
    }


# ---- the link ----


def _make_link(
    run: Run, hosts: Sequence[HostRounds], point: PointSamples, samples: ArmSamples
) -> LinkInputs | None:
    """Return the link of an arm; None if its speed is unknown."""
    info = info_of(run, samples.info)
    if info is None or _is_no_link(run, info):
        return None
    rate_and_origin = _find_measured_rate(run, point, info) or _find_stated_rate(run, samples)
    if rate_and_origin is None:
        return None
    rate, origin = rate_and_origin
    message_us = find_ceiling(run, info.message, point.info.id) if info.message else None
    return LinkInputs(
        rate=rate,
        origin=origin,
        message_ms=(message_us or 0.0) / 1e3,
        packet_nbytes=_count_packet_nbytes(run, hosts, point, samples),
        burst_nbytes=_find_burst_nbytes(run, samples),
    )


def _find_measured_rate(
    run: Run, point: PointSamples, info: DestinationInfo
) -> tuple[float, str] | None:
    """Return the speed of a destination's large messages, in bytes/s, and its probe."""
    probe_name = info.link_rate or info.ceiling
    if probe_name is None:
        return None
    gb_per_s = find_ceiling(run, probe_name, point.info.id)
    return None if gb_per_s is None else (NBYTES_PER_GB * gb_per_s, probe_name)


def _find_stated_rate(run: Run, samples: ArmSamples) -> tuple[float, str] | None:
    """Return the speed that the user stated by --link, in bytes/s, and where it is from."""
    stated_link = run.header.experiment.get("link")
    if stated_link in (None, UNLIMITED_RATE):
        return None
    rate = units.parse_rate(stated_link)
    # An emulated link counts whole packets. A real one is stated for payload.
    if hosts_of(run, samples.info) == EMULATED_PLACE:
        rate *= PAYLOAD_SHARE
    return rate, f"--link {stated_link}"


def _is_no_link(run: Run, info: DestinationInfo) -> bool:
    """Return whether a destination is no link: a disk, or a copy in host memory. PCIe is one."""
    return info.on_storage or (info.local and not ran_on_gpu(run))


def _explain_no_link(run: Run, streams: Sequence[ArmSamples]) -> str:
    """Return why no arm's link can be predicted from, and what would help.

    Args:
        streams: the arms with times of chunks, at levels that have a prediction.
    """
    if not streams:
        return "no arm has a level that can be predicted. Measure at a level from 0 to 3"
    infos = {samples.info.mode: info_of(run, samples.info) for samples in streams}
    no_links = [mode for mode, info in infos.items() if info is not None and _is_no_link(run, info)]
    if len(no_links) == len(infos):
        is_no_link = "is no link" if len(no_links) == 1 else "are no links"
        return (
            f"{' and '.join(no_links)} {is_no_link}, so no other rate can be asked about. Measure "
            "a destination over a link, such as mpi or tcp"
        )
    arm_names = dict.fromkeys(
        samples.info.name for samples in streams if samples.info.mode not in no_links
    )
    return (
        f"the speed of the link is unknown ({', '.join(arm_names)}). Measure without "
        "--no-ceilings, or state it with --link"
    )


def _find_burst_nbytes(run: Run, samples: ArmSamples) -> float:
    """Return the burst of a link between two emulated hosts; 0 of any other link."""
    rate = run.header.experiment.get("link")
    if rate in (None, UNLIMITED_RATE) or hosts_of(run, samples.info) != EMULATED_PLACE:
        return 0.0
    return float(compute_burst_nbytes(units.parse_rate(rate)))


def _count_packet_nbytes(
    run: Run, hosts: Sequence[HostRounds], point: PointSamples, samples: ArmSamples
) -> float:
    """Return the bytes of a naive message's packets beside its own, by the interfaces' counters."""
    packed_arms = [
        arm
        for arm in point.arms.values()
        if arm.info.mode == samples.info.mode
        and arm.info.level in PREDICTED_LEVELS
        and LEVELS[str(arm.info.level)].buffered
    ]
    is_naive = not LEVELS[str(samples.info.level)].buffered
    if not is_naive or not packed_arms or not samples.stream.nbytes:
        return 0.0
    sources = list_source_ranks(run)
    source_hosts = [host for host in hosts if sources & set(host.log.host.ranks)]
    naive_nbytes = _count_sent_nbytes(source_hosts, point.info.id, samples)
    packed_nbytes = _count_sent_nbytes(source_hosts, point.info.id, packed_arms[0])
    steps = max((len(by_source[0]) for by_source in samples.times.steps.values()), default=0)
    copies = median(samples.stream.prompt_copies.values())
    if steps:
        copies += steps * median(samples.stream.token_copies.values())
    payload_nbytes = median(samples.stream.nbytes.values())
    # Bytes that passed no interface, as within a host, tell nothing.
    if naive_nbytes is None or packed_nbytes is None or not copies:
        return 0.0
    if packed_nbytes < payload_nbytes:
        return 0.0
    # Large messages have headers as well, which the measured speed of the link contains.
    return float(max(0.0, (naive_nbytes / packed_nbytes - 1) * payload_nbytes / copies))


def _count_sent_nbytes(
    hosts: Iterable[HostRounds], point_id: str, samples: ArmSamples
) -> float | None:
    """Return the bytes that an arm's iteration sent through interfaces, median over rounds."""
    sent_nbytes: list[int] = []
    for round_number in samples.times.total:
        windows = [
            host.window_of_round(point_id, samples.info.name, round_number) for host in hosts
        ]
        counters = [window.carried for window in windows if window is not None]
        readable_counters = [interfaces for interfaces in counters if interfaces is not None]
        # A sum over some of the hosts alone would be too small.
        if readable_counters and len(readable_counters) == len(counters):
            sent_nbytes.append(
                sum(
                    interface.out_nbytes
                    for interfaces in readable_counters
                    for interface in interfaces.values()
                )
            )
    return median(sent_nbytes) if sent_nbytes else None
