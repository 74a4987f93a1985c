"""Conditions of the hosts → the evidence about the machine beside an arm."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.answers.limits.evidence import MachineFacts, MovingSide
from dejavubench.analysis.breakdown.ceiling_shares import share_of_ceiling, sum_ceilings
from dejavubench.analysis.breakdown.least_work import compute_work
from dejavubench.analysis.facts.host_rounds import HostRound, HostRounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, RoundValues
from dejavubench.analysis.facts.source_ranks import list_sinks, list_sources
from dejavubench.analysis.numbers.stats import median_or_zero
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run


def collect_machine_facts(
    run: Run,
    hosts: Sequence[HostRounds],
    point: PointSamples,
    samples: ArmSamples,
    shares_host: bool,
) -> MachineFacts:
    """Return the conditions beside the arm, and beside the baselines of its point."""
    point_id = point.info.id
    copy_rate_and_ranks = sum_ceilings(run, "memory-copy", point_id, None)
    host_round = _find_busiest_round(hosts, point_id, samples.info.name)
    baseline_rounds = [
        baseline_round
        for arm in point.baseline_arms()
        if (baseline_round := _find_busiest_round(hosts, point_id, arm.info.name)) is not None
    ]
    wait_pcts = [
        wait_pct
        for baseline_round in baseline_rounds
        if (wait_pct := _compute_cpu_wait_pct(baseline_round)) is not None
    ]
    return MachineFacts(
        copy_gb_per_s=copy_rate_and_ranks[0] if copy_rate_and_ranks else None,
        read_pct=_read_pct(run, point),
        core_count=max((host.core_count for host in hosts), default=run.header.facts.cores or None),
        busy_core_count=_compute_busy_core_count(samples, shares_host),
        other_core_count=None if host_round is None else host_round.other_core_count,
        other_ms=_compute_added_other_ms(host_round, baseline_rounds),
        cpu_wait_pct=None if host_round is None else _compute_cpu_wait_pct(host_round),
        baseline_cpu_wait_pct=sum(wait_pcts) / len(wait_pcts) if wait_pcts else None,
        model_core_count=_compute_model_core_count(run, point),
        helper=_make_moving_side(samples, samples.cpu.helper, len(list_sources(run))),
        sink=_make_moving_side(samples, samples.cpu.sink, len(list_sinks(run)))
        if shares_host
        else None,
    )


def _compute_model_core_count(run: Run, point: PointSamples) -> float | None:
    """Return the cores that the model takes without streaming; None for sources on many hosts."""
    if len({info.host for info in list_sources(run)}) != 1:
        return None
    cores_by_arm = [
        1e3 * median_or_zero(arm.cpu.model) / total_ms
        for arm in point.baseline_arms()
        if (total_ms := median_or_zero(arm.times.total))
    ]
    return sum(cores_by_arm) / len(cores_by_arm) if cores_by_arm else None


def _make_moving_side(samples: ArmSamples, cpu: RoundValues, rank_count: int) -> MovingSide | None:
    """Return a side's CPU time; None without the time of the stream alone, which bounds its work.

    Args:
        rank_count: number of ranks that the CPU time is summed over.
    """
    level = LEVELS.get(str(samples.info.level))
    # The stream alone moves packed chunks: it bounds no work of a naive level.
    if samples.stream_alone is None or not cpu or level is None or not level.buffered:
        return None
    return MovingSide(1e3 * median_or_zero(cpu), rank_count * samples.stream_alone.ms)


def _find_busiest_round(
    hosts: Sequence[HostRounds], point_id: str, arm_name: str
) -> HostRound | None:
    """Return the arm's iterations on the host where other processes took most."""
    measured_rounds = [
        host_round
        for host in hosts
        if (host_round := host.iterations_of_arm(point_id, arm_name)).windows
    ]
    return max(
        measured_rounds, key=lambda host_round: host_round.other_core_count or 0.0, default=None
    )


def _compute_added_other_ms(
    host_round: HostRound | None, baselines: Sequence[HostRound]
) -> float | None:
    """Return the CPU time of other processes per iteration, less that without streaming."""
    arm_ms = None if host_round is None else _compute_other_ms(host_round)
    baseline_ms = [ms for baseline in baselines if (ms := _compute_other_ms(baseline)) is not None]
    if arm_ms is None or not baseline_ms:
        return None
    return arm_ms - sum(baseline_ms) / len(baseline_ms)


def _compute_other_ms(host_round: HostRound) -> float | None:
    other_cpu_s = [
        window.other_cpu_s for window in host_round.windows if window.other_cpu_s is not None
    ]
    return 1e3 * sum(other_cpu_s) / len(other_cpu_s) if other_cpu_s else None


def _compute_cpu_wait_pct(host_round: HostRound) -> float | None:
    """Return the share of time in which some thread waited for a core, in %."""
    share = host_round.per_second(lambda window: window.cpu_wait_s)
    return None if share is None else 100 * min(1.0, share)


def _read_pct(run: Run, point: PointSamples) -> float | None:
    """Return the rate at which tokens read the model's memory, in % of the probe's."""
    token_ms = [median_or_zero(arm.times.token) for arm in point.baseline_arms()]
    least_nbytes = compute_work(run, point.info).token_nbytes
    if not token_ms or not token_ms[0] or least_nbytes is None or point.info.pipeline_para_size > 1:
        return None
    return share_of_ceiling(run, "memory-read", point.info.id, least_nbytes / token_ms[0] / 1e6)


def _compute_busy_core_count(samples: ArmSamples, shares_host: bool) -> float | None:
    cpu_s = median_or_zero(samples.cpu.model) + median_or_zero(samples.cpu.helper)
    cpu_s += median_or_zero(samples.cpu.sink) if shares_host else 0.0
    total_ms = median_or_zero(samples.times.total)
    return 1e3 * cpu_s / total_ms if total_ms else None
