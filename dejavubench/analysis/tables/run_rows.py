"""Records → rows: one row for each point and arm of a run."""

from __future__ import annotations

from collections.abc import Mapping

from dejavubench.analysis.facts.arm_destinations import hosts_of
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import HostRounds, read_host_rounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.numbers.stats import median_of
from dejavubench.analysis.scenarios import restart
from dejavubench.analysis.tables.column_groups import (
    judge_noise,
    make_arm_times,
    make_overhead,
    make_rates,
    make_speed,
    make_stream_totals,
    make_tails,
)
from dejavubench.analysis.tables.host_columns import make_host_columns
from dejavubench.analysis.tables.process_columns import (
    NO_ROUNDS,
    Cpu,
    Events,
    Row,
    SettingColumns,
    Sizes,
)
from dejavubench.records import ArmInfo, Run, Skipped

STATISTIC = "median over rounds of the maximum over sources"
"""How the number of a row is made of sources and rounds."""

NOT_REACHED = "the run ended before a measured round of this arm"
"""Reason of a row whose point some session was to measure."""

NOT_ASKED = "left out by --points"
"""Reason of a row whose point no session was to measure."""


def run_rows(
    run: Run,
    points: Mapping[str, PointSamples] | None = None,
    hosts: list[HostRounds] | None = None,
) -> list[Row]:
    """Return one row for each point and arm of the header, measured or not.

    Args:
        points: the run's samples, where they have been collected already.
        hosts: the conditions of its hosts, where they have been read already.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    samples_by_point = collect(run) if points is None else points
    reasons = {(record.point, record.arm): record.reason for _, record in run.records_of(Skipped)}
    run_hosts = read_host_rounds(run) if hosts is None else hosts
    rows = []
    for point in run.header.points:
        # A point is skipped in the header, before the run, or by a record without an arm.
        point_reason = point.skipped or reasons.get((point.id, None))
        for arm in run.header.arms:
            skip_reason = point_reason or reasons.get((point.id, arm.name))
            rows.append(_make_row(run, run_hosts, samples_by_point[point.id], arm, skip_reason))
    return rows


def _make_row(
    run: Run, hosts: list[HostRounds], point: PointSamples, arm: ArmInfo, skip_reason: str | None
) -> Row:
    """Return the row of one point and arm; only an arm that was measured has more than its names.

    Args:
        skip_reason: why the arm did not run; None if it was to run.
    """
    row = Row(
        run=run.path.name,
        point=point.info.id,
        sizes=Sizes.of_point(point.info),
        arm=arm.name,
        mode=arm.mode,
        level=arm.level,
        durability=arm.durability,
        hosts=hosts_of(run, arm),
        cpu=Cpu(statistic=STATISTIC),
        settings=None if run.header.settings is None else " ".join(run.header.settings),
        setting=SettingColumns.of_point(point.info),
    )
    samples = point.arms.get(arm.name)
    # The order matters: an arm that failed a check has rounds, too, but must not show them.
    if skip_reason is not None:
        row.status = "SKIPPED"
        row.reason = skip_reason
    elif samples is not None and (failure_reason := samples.why_failed) is not None:
        row.status = "FAILED"
        row.reason = failure_reason
        # An arm that failed by itself was not compared. Without a failure, its check failed.
        row.verified = None if samples.failure else "FAILED"
    elif samples is None or not (samples.times.total or samples.restarts):
        row.status = NO_ROUNDS
        row.reason = _explain_no_rounds(run, point)
    elif samples.restarts:
        row.verified = _count_verified(samples)
        row.overhead.baseline = "no baseline"
        _add_restart(row, samples)
    else:
        row.verified = _count_verified(samples)
        row.conditions = make_host_columns(run, hosts, point, samples)
        _add_measured(row, run, point, samples)
    return row


def _explain_no_rounds(run: Run, point: PointSamples) -> str:
    was_asked = any(session.start_of(point.info.id) is not None for session in run.sessions)
    return NOT_REACHED if was_asked else NOT_ASKED


def _count_verified(samples: ArmSamples) -> str | None:
    """Return how many iterations were compared; None where nothing is streamed."""
    if samples.checks:
        return f"yes ({len(samples.checks)})"
    return "no" if samples.info.is_streaming else None


def _add_restart(row: Row, samples: ArmSamples) -> None:
    """Add what all sources put back, and the times of the slowest, which are of one iteration."""
    row.times.token_ms = restart.compute_token_ms(samples.restarts)
    row.times.drain_ms = restart.drain_ms(samples.restarts)
    row.restart = restart.make_columns(samples.restarts)


def _add_measured(row: Row, run: Run, point: PointSamples, samples: ArmSamples) -> None:
    """Add the medians of an arm with measured rounds; a baseline has no streaming columns."""
    row.times = make_arm_times(samples)
    row.overhead = make_overhead(point, samples, run)
    row.judged = judge_noise(point, samples)
    times = samples.times
    row.events = Events(median_of(times.prompt_event), median_of(times.token_event))
    row.swap = samples.swap.make_columns()
    row.cpu.cpu_model_s = median_of(samples.cpu.model)
    row.tails = make_tails(point, samples)
    if not samples.info.is_streaming:
        row.speed = make_speed(run, point, samples)
        return
    row.cpu.cpu_helper_s = median_of(samples.cpu.helper)
    row.cpu.cpu_sink_s = median_of(samples.cpu.sink)
    row.streaming = make_stream_totals(samples)
    row.rates = make_rates(run, point, samples)
    row.handover = samples.handover.make_columns(
        median_of(samples.stream.left_nbytes), row.rates.ceiling_gb_per_s
    )
