"""Records → the evidence about one arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dejavubench.analysis.answers.evidence import (
    ChunkFacts,
    CostFacts,
    Evidence,
    LongestPart,
    MachineFacts,
    MovingSide,
    PartKind,
    StreamFacts,
)
from dejavubench.analysis.breakdown.ceiling_shares import ceiling_of, share_of_ceiling
from dejavubench.analysis.breakdown.chunk_bill import LATENCY, QUEUE, Bill
from dejavubench.analysis.breakdown.least_work import work
from dejavubench.analysis.breakdown.overhead_parts import PartName, Phase, overhead_parts
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of, loopback_of
from dejavubench.analysis.facts.host_rounds import HostRound, HostRounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.facts.source_ranks import on_gpu, sinks, sources
from dejavubench.analysis.numbers import stats
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import CopyWays, Run
from dejavubench.records.destination_info import DestinationInfo

COPY_LOOP = "run-copy"
"""Probe of a naive copy in memory, for destinations without a naive message of their own."""

SAME_HOST = "same host"
"""Place of an arm whose source and sink are on one host, as records spell it."""

KERNEL = "kernel"
"""First word of a recorded way of chunks that a kernel gathers."""


def evidence_of(
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
    gpu = on_gpu(run)
    cost = _cost(point, samples, gpu, phase)
    if cost is None:
        return None
    stream = _stream(run, point, samples, gpu, phase)
    chunks = _chunks(bills, phase)
    return Evidence(cost, stream, chunks, _machine(run, hosts, point, samples, stream.same_host))


def _cost(point: PointSamples, samples: ArmSamples, gpu: bool, phase: Phase) -> CostFacts | None:
    parts: dict[PartName, float] = {
        part.part: part.ms.median for part in overhead_parts(point, samples) if part.phase == phase
    }
    if not parts:
        return None
    total = parts["overhead"]
    drain = parts.get("drain", 0.0)
    lost, slowed = parts["wait"] + drain, parts["rest"]
    level = LEVELS.get(str(samples.info.level))
    # The device computes on while the thread hands chunks over. Swapping does make it wait.
    if gpu and level is not None and level.overlapped and not samples.info.swaps:
        lost, slowed = drain, total - drain
    request = stats.estimate(stats.geometric_mean(point.baselines()).values()).median
    return CostFacts(
        total=total,
        lost=lost,
        drain=drain,
        slowed=slowed,
        request=request,
        prompt_pct=_percent(samples.times.prompt, point.baselines("prompt")),
        tokens_pct=_percent(samples.times.tokens, point.baselines("tokens")),
        packed=_packed_arm_overhead_ms(point, samples, phase),
    )


def _packed_arm_overhead_ms(point: PointSamples, samples: ArmSamples, phase: Phase) -> float | None:
    """Return the overhead in ms of a naive arm's destination where chunks are packed first."""
    own_level = LEVELS.get(str(samples.info.level))
    if own_level is None or own_level.buffered:
        return None
    destination = samples.info.mode, samples.info.durability
    for other in point.arms.values():
        level = LEVELS.get(str(other.info.level))
        goes_there = (other.info.mode, other.info.durability) == destination
        if not goes_there or level is None or other.why_failed is not None:
            continue
        # Level 1 differs from the naive levels in packing alone.
        if level.buffered and not level.layerwise and not level.overlapped:
            for part in overhead_parts(point, other):
                if (part.phase, part.part) == (phase, "overhead"):
                    return part.ms.median
    return None


def _percent(times: RoundValues, baselines: Sequence[RoundValues]) -> float | None:
    overhead = stats.paired_overhead(times, baselines)
    return None if overhead is None else 100 * overhead.median


def _stream(
    run: Run, point: PointSamples, samples: ArmSamples, gpu: bool, phase: Phase
) -> StreamFacts:
    """Return the way of the arm's bytes; at levels 0 to 1 those of the phase alone."""
    info = info_of(run, samples.info)
    level = LEVELS.get(str(samples.info.level))
    point_id, durability = point.info.id, samples.info.durability
    ceiling_name = info.ceiling if info else None
    ceiling = ceiling_of(run, ceiling_name, point_id, durability) if ceiling_name else None
    # A sum over some of the sources bounds no stream of all of them.
    covers_sources = ceiling is not None and ceiling[1] == len(sources(run))
    naive = level is not None and not level.buffered
    overlapped = level is not None and level.overlapped
    # At level 3 the tokens share the link with the prompt's chunks: all bytes count.
    share = 1.0 if phase == "total" or overlapped else _share_of_tokens(point)
    probe = _naive_probe(info)
    # The probe waits for each message, as level 0 does. Level 0-batched waits once.
    waits_each = level is not None and level.each_complete
    message = ceiling_of(run, probe, point_id, durability, "us") if waits_each and probe else None
    return StreamFacts(
        naive=naive,
        overlapped=overlapped,
        on_gpu=gpu,
        local=info is not None and info.local,
        same_host=hosts_of(run, samples.info) == SAME_HOST,
        on_storage=info is not None and info.on_storage,
        sending_kernels=_sending_kernels(run, samples, info),
        gathering_kernel=_gathering_kernel(run, point),
        nbytes=share * _median(samples.stream.nbytes),
        copies=_copies(run, point, samples, phase) if naive else 0.0,
        alone_ms=share * samples.alone.ms if samples.alone else None,
        ceiling=ceiling_name if covers_sources else None,
        ceiling_gb_per_s=ceiling[0] if ceiling is not None and covers_sources else None,
        naive_us=message[0] / message[1] if message else None,
    )


def _share_of_tokens(point: PointSamples) -> float:
    steps = point.info.output_len - 1
    return steps / (point.info.input_len + steps)


def _copies(run: Run, point: PointSamples, samples: ArmSamples, phase: Phase) -> float:
    """Return the naive copies or messages of one source, for all its microbatches in flight."""
    stream, sizes = samples.stream, point.info
    copies = (sizes.output_len - 1) * _median(stream.token_copies)
    if phase == "total":
        copies += _median(stream.prompt_copies)
    return sizes.pipeline_para_size * copies / max(1, len(sources(run)))


def _naive_probe(info: DestinationInfo | None) -> str | None:
    """Return the probe that times one naive message, write or copy of a destination."""
    if info is None:
        return None
    if info.message is not None:
        return info.message
    if info.on_storage:
        return next(iter(info.overhead_of.values()), None)
    return COPY_LOOP if info.local else None


def _sending_kernels(run: Run, samples: ArmSamples, info: DestinationInfo | None) -> str | None:
    if loopback_of(run, samples.info) is not None:
        return "source and sink on one GPU"
    return info.library if info is not None else None


def _gathering_kernel(run: Run, point: PointSamples) -> bool:
    # Chunks of tokens may leave another way, but only a prompt is bound by arithmetic.
    return any(
        record.ways.get("prompt", "").startswith(KERNEL)
        for _, record in run.records_of(CopyWays)
        if record.point == point.info.id
    )


# ---- chunks ----


def _chunks(bills: Sequence[Bill], phase: Phase) -> ChunkFacts | None:
    """Join the bills of both phases: times by kind of part, of which the largest is described."""
    sums: dict[PartKind, dict[str, float]] = defaultdict(dict)
    part_names: dict[tuple[str, PartKind], list[str]] = defaultdict(list)
    singles: dict[tuple[str, PartKind], float] = {}
    for bill in bills:
        gathers = any(PartKind.GATHER in part.name for part in bill.parts)
        for part in bill.parts:
            if part.name in (LATENCY, QUEUE):
                continue
            kind = PartKind.of_part(part.name)
            # Without a gather, the copies to the host are of single extents.
            if kind is PartKind.COPY and not gathers:
                kind = PartKind.MOVE
            # Single chunks of the other phase still tell latency from rate.
            counted_ms = part.sum_ms if phase in ("total", bill.phase) else 0.0
            sums[kind][bill.phase] = sums[kind].get(bill.phase, 0.0) + counted_ms
            part_names[bill.phase, kind].append(part.name)
            if part.median_us is not None:
                singles[bill.phase, kind] = singles.get((bill.phase, kind), 0.0) + part.median_us
    totals = {kind: sum(phases.values()) for kind, phases in sums.items()}
    if not any(totals.values()):
        return None
    largest = max(totals, key=lambda kind: totals[kind])
    sizes = {
        bill.phase: bill.extents * bill.extent_nbytes / bill.chunks for bill in bills if bill.chunks
    }
    extent_us = [bill.extent_us for bill in bills if bill.extent_us is not None]
    return ChunkFacts(
        largest=LongestPart(
            # Names of one phase alone: those of the other would repeat them.
            name=" + ".join(next(part_names[bill_phase, largest] for bill_phase in sums[largest])),
            kind=largest,
            share=totals[largest] / sum(totals.values()),
            prompt_us=singles.get(("prompt", largest)),
            token_us=singles.get(("tokens", largest)),
            in_prompt=sums[largest].get("prompt", 0.0) > sums[largest].get("tokens", 0.0),
        ),
        prompt_nbytes=sizes.get("prompt"),
        token_nbytes=sizes.get("tokens"),
        extents=sum(bill.extents for bill in bills if phase in ("total", bill.phase)),
        extent_us=extent_us[-1] if extent_us else None,
    )


# ---- the machine ----


def _machine(
    run: Run,
    hosts: Sequence[HostRounds],
    point: PointSamples,
    samples: ArmSamples,
    same_host: bool,
) -> MachineFacts:
    """Return the conditions beside the arm, and beside the baselines of its point."""
    point_id = point.info.id
    copy_ceiling = ceiling_of(run, "memory-copy", point_id, None)
    host_round = _busiest(hosts, point_id, samples.info.name)
    baseline_rounds = [
        baseline_round
        for arm in point.baseline_arms()
        if (baseline_round := _busiest(hosts, point_id, arm.info.name)) is not None
    ]
    waits = [
        share for baseline in baseline_rounds if (share := _cpu_wait_pct(baseline)) is not None
    ]
    return MachineFacts(
        copy_gb_per_s=copy_ceiling[0] if copy_ceiling else None,
        read_pct=_read_pct(run, point),
        cores=max((host.cores for host in hosts), default=run.header.where.cores or None),
        busy_cores=_busy_cores(samples, same_host),
        other_cores=None if host_round is None else host_round.other_cores,
        other_ms=_added_ms(host_round, baseline_rounds),
        waited_pct=None if host_round is None else _cpu_wait_pct(host_round),
        waited_without_pct=sum(waits) / len(waits) if waits else None,
        model_cores=_model_cores(run, point),
        helper=_moving_side(samples, samples.cpu.helper, len(sources(run))),
        sink=_moving_side(samples, samples.cpu.sink, len(sinks(run))) if same_host else None,
    )


def _model_cores(run: Run, point: PointSamples) -> float | None:
    """Return the cores that the model takes without streaming; None for sources on many hosts."""
    if len({info.host for info in sources(run)}) != 1:
        return None
    cores = [
        1e3 * _median(arm.cpu.model) / total
        for arm in point.baseline_arms()
        if (total := _median(arm.times.total))
    ]
    return sum(cores) / len(cores) if cores else None


def _moving_side(samples: ArmSamples, cpu: RoundValues, ranks: int) -> MovingSide | None:
    """Return a side's CPU time; None without the time of the stream alone, which bounds its work.

    Args:
        ranks: number of ranks that the CPU time is summed over.
    """
    level = LEVELS.get(str(samples.info.level))
    # The stream alone moves packed chunks: it bounds no work of a naive level.
    if samples.alone is None or not cpu or level is None or not level.buffered:
        return None
    return MovingSide(1e3 * _median(cpu), ranks * samples.alone.ms)


def _busiest(hosts: Sequence[HostRounds], point_id: str, arm_name: str) -> HostRound | None:
    """Return the arm's iterations on the host where other processes took most."""
    measured = [
        host_round
        for host in hosts
        if (host_round := host.iterations_of_arm(point_id, arm_name)).windows
    ]
    return max(measured, key=lambda host_round: host_round.other_cores or 0.0, default=None)


def _added_ms(host_round: HostRound | None, baselines: Sequence[HostRound]) -> float | None:
    """Return the CPU time of other processes per iteration, less that without streaming."""
    arm_ms = None if host_round is None else _other_ms(host_round)
    baseline_ms = [ms for baseline in baselines if (ms := _other_ms(baseline)) is not None]
    if arm_ms is None or not baseline_ms:
        return None
    return arm_ms - sum(baseline_ms) / len(baseline_ms)


def _other_ms(host_round: HostRound) -> float | None:
    times = [window.other_cpu_s for window in host_round.windows if window.other_cpu_s is not None]
    return 1e3 * sum(times) / len(times) if times else None


def _cpu_wait_pct(host_round: HostRound) -> float | None:
    """Return the share of time in which some thread waited for a core, in %."""
    share = host_round.per_second(lambda window: window.cpu_wait_s)
    return None if share is None else 100 * min(1.0, share)


def _read_pct(run: Run, point: PointSamples) -> float | None:
    """Return the rate at which tokens read the model's memory, in % of the probe's."""
    token_ms = [_median(arm.times.token) for arm in point.baseline_arms()]
    least_nbytes = work(run, point.info).token_nbytes
    if not token_ms or not token_ms[0] or least_nbytes is None or point.info.pipeline_para_size > 1:
        return None
    return share_of_ceiling(run, "memory-read", point.info.id, least_nbytes / token_ms[0] / 1e6)


def _busy_cores(samples: ArmSamples, same_host: bool) -> float | None:
    seconds = _median(samples.cpu.model) + _median(samples.cpu.helper)
    seconds += _median(samples.cpu.sink) if same_host else 0.0
    total = _median(samples.times.total)
    return 1e3 * seconds / total if total else None


def _median(series: RoundValues) -> float:
    return stats.median_of(series) or 0.0
