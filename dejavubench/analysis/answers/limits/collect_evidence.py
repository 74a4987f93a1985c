"""Records → the evidence about one arm."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.answers.limits.collect_chunks import collect_chunk_facts
from dejavubench.analysis.answers.limits.collect_machine import collect_machine_facts
from dejavubench.analysis.answers.limits.evidence import CostFacts, Evidence, StreamFacts
from dejavubench.analysis.breakdown.ceiling_shares import sum_ceilings
from dejavubench.analysis.breakdown.chunk_bill import Bill
from dejavubench.analysis.breakdown.overhead_parts import PartName, Phase, compute_overhead_parts
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of, loopback_of
from dejavubench.analysis.facts.host_rounds import HostRounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.facts.source_ranks import list_sources, ran_on_gpu
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.stats import median_or_zero
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import CopyWays, Run
from dejavubench.records.destination_info import DestinationInfo

COPY_LOOP = "run-copy"
"""Probe of a naive copy in memory, for destinations without a naive message of their own."""

SAME_HOST = "same host"
"""Place of an arm whose source and sink are on one host, as records spell it."""

KERNEL_WAY = "kernel"
"""First word of a recorded way of chunks that a kernel gathers."""


def make_evidence(
    run: Run,
    hosts: Sequence[HostRounds],
    point: PointSamples,
    samples: ArmSamples,
    bills: Sequence[Bill],
    phase: Phase = "total",
) -> Evidence | None:
    """Return the facts about an arm; None without a baseline or a common round.

    Args:
        hosts: conditions of the run's hosts; empty for older records.
        bills: those of this arm at this point; empty for older records.
        phase: the phase whose cost is in question, the total or all tokens together.
    """
    is_on_gpu = ran_on_gpu(run)
    cost = _collect_cost(point, samples, is_on_gpu, phase)
    if cost is None:
        return None
    stream = _collect_stream(run, point, samples, is_on_gpu, phase)
    chunks = collect_chunk_facts(bills, phase)
    return Evidence(
        cost, stream, chunks, collect_machine_facts(run, hosts, point, samples, stream.shares_host)
    )


def _collect_cost(
    point: PointSamples, samples: ArmSamples, is_on_gpu: bool, phase: Phase
) -> CostFacts | None:
    part_medians: dict[PartName, float] = {
        part.part: part.ms.median
        for part in compute_overhead_parts(point, samples)
        if part.phase == phase
    }
    if not part_medians:
        return None
    total_ms = part_medians["overhead"]
    drain_ms = part_medians.get("drain", 0.0)
    stalled_ms = part_medians["stall"] + drain_ms
    level = LEVELS.get(str(samples.info.level))
    # The device computes on while the thread hands chunks over. Swapping does make it wait.
    if is_on_gpu and level is not None and level.overlapped and not samples.info.is_swapping:
        stalled_ms = drain_ms
    request_ms = stats.estimate(stats.compute_geometric_mean(point.baselines()).values()).median
    return CostFacts(
        total_ms=total_ms,
        stalled_ms=stalled_ms,
        drain_ms=drain_ms,
        request_ms=request_ms,
        prompt_pct=_estimate_overhead_pct(samples.times.prompt, point.baselines("prompt")),
        tokens_pct=_estimate_overhead_pct(samples.times.tokens, point.baselines("tokens")),
        packed_ms=_find_packed_arm_overhead_ms(point, samples, phase),
    )


def _find_packed_arm_overhead_ms(
    point: PointSamples, samples: ArmSamples, phase: Phase
) -> float | None:
    """Return the overhead in ms of a naive arm's destination where chunks are packed first."""
    own_level = LEVELS.get(str(samples.info.level))
    if own_level is None or own_level.buffered:
        return None
    destination = samples.info.mode, samples.info.durability
    for other_arm in point.arms.values():
        level = LEVELS.get(str(other_arm.info.level))
        has_same_destination = (other_arm.info.mode, other_arm.info.durability) == destination
        if not has_same_destination or level is None or other_arm.why_failed is not None:
            continue
        # Level 1 differs from the naive levels in packing alone.
        if level.buffered and not level.layerwise and not level.overlapped:
            for part in compute_overhead_parts(point, other_arm):
                if (part.phase, part.part) == (phase, "overhead"):
                    return part.ms.median
    return None


def _estimate_overhead_pct(times: RoundValues, baselines: Sequence[RoundValues]) -> float | None:
    overhead = stats.estimate_paired_overhead(times, baselines)
    return None if overhead is None else 100 * overhead.median


def _collect_stream(
    run: Run, point: PointSamples, samples: ArmSamples, is_on_gpu: bool, phase: Phase
) -> StreamFacts:
    """Return the way of the arm's bytes; at levels 0 to 1 those of the phase alone."""
    info = info_of(run, samples.info)
    level = LEVELS.get(str(samples.info.level))
    ceiling_gb_per_s = _find_ceiling_gb_per_s(run, point, samples, info)
    is_naive = level is not None and not level.buffered
    is_overlapped = level is not None and level.overlapped
    # At level 3 the tokens share the link with the prompt's chunks: all bytes count.
    phase_share = 1.0 if phase == "total" or is_overlapped else _compute_share_of_tokens(point)
    return StreamFacts(
        is_naive=is_naive,
        is_overlapped=is_overlapped,
        on_gpu=is_on_gpu,
        is_local=info is not None and info.local,
        shares_host=hosts_of(run, samples.info) == SAME_HOST,
        on_storage=info is not None and info.on_storage,
        sending_kernels=_explain_sending_kernels(run, samples, info),
        has_gathering_kernel=_has_gathering_kernel(run, point),
        nbytes=phase_share * median_or_zero(samples.stream.nbytes),
        copy_count=_count_copies(run, point, samples, phase) if is_naive else 0.0,
        alone_ms=phase_share * samples.stream_alone.ms if samples.stream_alone else None,
        ceiling=None if info is None or ceiling_gb_per_s is None else info.ceiling,
        ceiling_gb_per_s=ceiling_gb_per_s,
        naive_us=_find_naive_us(run, point, samples, info),
    )


def _find_ceiling_gb_per_s(
    run: Run, point: PointSamples, samples: ArmSamples, info: DestinationInfo | None
) -> float | None:
    """Return the rate that bounds the streams of all sources together; None if it is unknown."""
    if info is None or not info.ceiling:
        return None
    rate_and_ranks = sum_ceilings(run, info.ceiling, point.info.id, samples.info.durability)
    # A sum over some of the sources bounds no stream of all of them.
    if rate_and_ranks is None or rate_and_ranks[1] != len(list_sources(run)):
        return None
    return rate_and_ranks[0]


def _find_naive_us(
    run: Run, point: PointSamples, samples: ArmSamples, info: DestinationInfo | None
) -> float | None:
    """Return the time of one naive message, copy or write by a probe; None if it is unknown."""
    level = LEVELS.get(str(samples.info.level))
    probe_name = _find_naive_probe(info)
    # The probe waits for each message, as level 0 does. Level 0-batched waits once.
    if level is None or not level.each_complete or not probe_name:
        return None
    us_and_ranks = sum_ceilings(run, probe_name, point.info.id, samples.info.durability, "us")
    return us_and_ranks[0] / us_and_ranks[1] if us_and_ranks else None


def _compute_share_of_tokens(point: PointSamples) -> float:
    step_count = point.info.output_len - 1
    return step_count / (point.info.input_len + step_count)


def _count_copies(run: Run, point: PointSamples, samples: ArmSamples, phase: Phase) -> float:
    """Return the naive copies or messages of one source, for all its microbatches in flight."""
    stream = samples.stream
    sizes = point.info
    copy_count = (sizes.output_len - 1) * median_or_zero(stream.token_copies)
    if phase == "total":
        copy_count += median_or_zero(stream.prompt_copies)
    return sizes.pipeline_para_size * copy_count / max(1, len(list_sources(run)))


def _find_naive_probe(info: DestinationInfo | None) -> str | None:
    """Return the probe that times one naive message, write or copy of a destination."""
    if info is None:
        return None
    if info.message is not None:
        return info.message
    if info.on_storage:
        return next(iter(info.overhead_of.values()), None)
    return COPY_LOOP if info.local else None


def _explain_sending_kernels(
    run: Run, samples: ArmSamples, info: DestinationInfo | None
) -> str | None:
    if loopback_of(run, samples.info) is not None:
        return "source and sink on one GPU"
    return info.library if info is not None else None


def _has_gathering_kernel(run: Run, point: PointSamples) -> bool:
    # Chunks of tokens may leave another way, but only a prompt is bound by arithmetic.
    return any(
        record.ways.get("prompt", "").startswith(KERNEL_WAY)
        for _, record in run.records_of(CopyWays)
        if record.point == point.info.id
    )
