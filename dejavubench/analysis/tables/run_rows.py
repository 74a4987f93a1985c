"""Records → rows: one row for each point and arm of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dejavubench.analysis.answers.judgement import Difference, Judgement, cost_of
from dejavubench.analysis.breakdown.ceiling_shares import ceiling_of, share_of_ceiling
from dejavubench.analysis.breakdown.least_work import work
from dejavubench.analysis.breakdown.tails import p99_noise, p99_overhead, tail
from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.arm_destinations import hosts_of, info_of
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import HostRounds, host_rounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.stats import median_of, whole_median_of
from dejavubench.analysis.scenarios import restart
from dejavubench.analysis.tables.host_columns import host_conditions
from dejavubench.analysis.tables.rows import (
    NO_ROUNDS,
    Cpu,
    Events,
    NoiseJudgement,
    Overhead,
    Row,
    SettingColumns,
    Sizes,
    Speed,
    StreamRates,
    StreamTotals,
    Tails,
    Times,
)
from dejavubench.records import ArmInfo, Run, Skipped

STATISTIC = "median over rounds of the maximum over sources"
"""How the number of a row is made of sources and rounds."""

NOT_REACHED = "the run ended before a measured round of this arm"
NOT_ASKED = "left out by --points"
"""Reasons of a row without times."""


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
    known_hosts = host_rounds(run) if hosts is None else hosts
    rows = []
    for point in run.header.points:
        # A point is skipped in the header, before the run, or by a record without an arm.
        point_reason = point.skipped or reasons.get((point.id, None))
        for arm in run.header.arms:
            skipped = point_reason or reasons.get((point.id, arm.name))
            rows.append(_row(run, known_hosts, samples_by_point[point.id], arm, skipped))
    return rows


def _row(
    run: Run, hosts: list[HostRounds], point: PointSamples, arm: ArmInfo, skipped: str | None
) -> Row:
    """Return the row of one point and arm; only an arm that was measured has more than its names.

    Args:
        skipped: why the arm did not run; None if it was to run.
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
    if skipped is not None:
        row.status, row.reason = "SKIPPED", skipped
    elif samples is not None and (why := samples.why_failed) is not None:
        row.status, row.reason = "FAILED", why
        # An arm that failed by itself was not compared. Without a failure, its check failed.
        row.verified = None if samples.failure else "FAILED"
    elif samples is None or not (samples.times.total or samples.restarts):
        row.status, row.reason = NO_ROUNDS, _why_no_rounds(run, point)
    elif samples.restarts:
        row.verified, row.overhead.baseline = _count_verified(samples), "no baseline"
        _add_restart(row, samples)
    else:
        row.verified = _count_verified(samples)
        row.conditions = host_conditions(run, hosts, point, samples)
        _add_measured(row, run, point, samples)
    return row


def _why_no_rounds(run: Run, point: PointSamples) -> str:
    asked = any(session.start_of(point.info.id) is not None for session in run.sessions)
    return NOT_REACHED if asked else NOT_ASKED


def _count_verified(samples: ArmSamples) -> str | None:
    """Return how many iterations were compared; None where nothing is streamed."""
    if samples.checks:
        return f"yes ({len(samples.checks)})"
    return "no" if samples.info.streams else None


def _add_restart(row: Row, samples: ArmSamples) -> None:
    """Add what all sources put back, and the times of the slowest, which are of one iteration."""
    row.times.token_ms = restart.token_ms(samples.restarts)
    row.times.drain_ms = restart.drain_ms(samples.restarts)
    row.restart = restart.restart_columns(samples.restarts)


def _add_measured(row: Row, run: Run, point: PointSamples, samples: ArmSamples) -> None:
    """Add the medians of an arm with measured rounds; a baseline has no streaming columns."""
    row.times = _times(samples)
    row.overhead = _overhead(point, samples, run)
    row.judged = _noise_judgement(point, samples)
    times = samples.times
    row.events = Events(median_of(times.prompt_event), median_of(times.token_event))
    row.handover = samples.handover.columns()
    row.swap = samples.swap.columns()
    row.cpu.cpu_model_s = median_of(samples.cpu.model)
    row.tails = _tails(point, samples)
    if not samples.info.streams:
        row.speed = _speed(run, point, samples)
        return
    stream = samples.stream
    row.cpu.cpu_helper_s = median_of(samples.cpu.helper)
    row.cpu.cpu_sink_s = median_of(samples.cpu.sink)
    row.streaming = StreamTotals(
        stall_ms=median_of(samples.waits.stall),
        largest_lag_bytes=stream.lag_nbytes,
        streamed_bytes=whole_median_of(stream.nbytes),
        copies_per_prompt=whole_median_of(stream.prompt_copies),
        copies_per_token=median_of(stream.token_copies),
    )
    row.rates = _rates(run, point, samples)


# ---- groups of columns ----


class Spread(NamedTuple):
    """A median with its interval and interquartile range; None where they are unknown."""

    middle: float | None = None
    low: float | None = None
    high: float | None = None
    iqr: float | None = None


def spread(estimate: stats.Estimate | None, scale: float = 1.0) -> Spread:
    """Scale an estimate; a single sample has no interval."""
    if estimate is None:
        return Spread()
    middle, iqr = scale * estimate.median, scale * estimate.iqr
    if estimate.samples == 1:
        return Spread(middle, iqr=iqr)
    return Spread(middle, scale * estimate.low, scale * estimate.high, iqr)


def spread_of(values: Iterable[float]) -> Spread:
    """Return median, interval and quartile range of values; all None if there are none."""
    known = list(values)
    return spread(stats.estimate(known) if known else None)


def make_times(
    prompt: Spread, token: Spread, total: Spread, samples: int, warmups: int, drain: float | None
) -> Times:
    """Return the columns of times, in milliseconds.

    Args:
        samples: rounds that count.
        warmups: iterations before them, which do not count.
        drain: median of the drain; None if the arm does not stream.
    """
    return Times(
        samples=samples,
        warmups=warmups,
        prompt_ms=prompt.middle,
        prompt_low_ms=prompt.low,
        prompt_high_ms=prompt.high,
        prompt_iqr_ms=prompt.iqr,
        token_ms=token.middle,
        token_low_ms=token.low,
        token_high_ms=token.high,
        token_iqr_ms=token.iqr,
        total_ms=total.middle,
        total_low_ms=total.low,
        total_high_ms=total.high,
        total_iqr_ms=total.iqr,
        drain_ms=drain,
    )


def _times(samples: ArmSamples) -> Times:
    return make_times(
        spread_of(samples.times.prompt.values()),
        spread_of(samples.times.token.values()),
        spread_of(samples.times.total.values()),
        len(samples.times.total),
        samples.warmups,
        median_of(samples.times.drain),
    )


def _overhead(point: PointSamples, samples: ArmSamples, run: Run) -> Overhead:
    """Return overheads and noise floors; baselines have the floors, and no overhead."""
    baselines = point.baselines()
    noise = spread(stats.noise_floor(baselines), 100)
    of_tokens = spread(stats.noise_floor(point.baselines("token")), 100)
    overhead = Overhead(
        token_noise_floor_pct=of_tokens.middle,
        token_noise_floor_low_pct=of_tokens.low,
        token_noise_floor_high_pct=of_tokens.high,
        noise_floor_pct=noise.middle,
        noise_floor_low_pct=noise.low,
        noise_floor_high_pct=noise.high,
    )
    if samples.info.role != "streaming":
        overhead.baseline = "is a baseline"
        return overhead
    estimate = stats.paired_overhead(samples.times.total, baselines)
    target = run.header.experiment.get("target_overhead")
    total = spread(estimate, 100)
    token = spread(stats.paired_overhead(samples.times.token, point.baselines("token")), 100)
    overhead.overhead_pct, overhead.overhead_low_pct, overhead.overhead_high_pct, _ = total
    overhead.token_overhead_pct, overhead.token_overhead_low_pct = token.middle, token.low
    overhead.token_overhead_high_pct = token.high
    overhead.baseline = ("no baseline", "none", "none and none#2")[len(baselines)]
    overhead.target_pct = None if target is None else 100 * target
    overhead.verdict = stats.verdict(estimate, target)
    return overhead


def _noise_judgement(point: PointSamples, samples: ArmSamples) -> NoiseJudgement:
    cost = cost_of(point, samples) if samples.info.streams else None
    if cost is None:
        return NoiseJudgement()
    reach = None if cost.reach is None else 100 * cost.reach
    return NoiseJudgement(
        reach, is_told_from_noise(cost), is_told_from_noise(cost_of(point, samples, "token"))
    )


def is_told_from_noise(cost: Difference | None) -> bool | None:
    """Return whether a cost is told from noise; None if that is undecided."""
    if cost is None or cost.judgement in (Judgement.TOO_FEW, Judgement.NOISE_UNKNOWN):
        return None
    return cost.judgement.shown


def _tails(point: PointSamples, samples: ArmSamples) -> Tails:
    """Return percentiles of single tokens; of a streaming arm also the overhead of p99."""
    percentiles = tail(samples)
    if percentiles is None:
        return Tails()
    overhead = p99_overhead(point, samples) if samples.info.streams else None
    return Tails(
        percentiles.count,
        percentiles.p50,
        percentiles.p90,
        percentiles.p99,
        percentiles.slowest,
        # Rows of tails have no column for the quartile range, which comes fourth.
        *spread(overhead, 100)[:3],
        *spread(p99_noise(point), 100)[:3],
    )


def _rates(run: Run, point: PointSamples, samples: ArmSamples) -> StreamRates:
    """Return a stream's rates and its ceiling, at this point if it was measured here."""
    rates = StreamRates(hidden_pct=_hidden_percent(point, samples))
    total, nbytes = median_of(samples.times.total), median_of(samples.stream.nbytes)
    if total and nbytes:
        # Bytes per ms / 10⁶ = GB/s.
        rates.total_gb_per_s = nbytes / total / 1e6
    info = info_of(run, samples.info)
    name, durability = info.ceiling if info else None, samples.info.durability
    ceiling = ceiling_of(run, name, point.info.id, durability) if name else None
    if ceiling is not None:
        rates.ceiling, rates.ceiling_gb_per_s = name, ceiling[0]
    if samples.alone is not None:
        alone = samples.alone
        rates.alone_ms, rates.alone_gb_per_s = alone.ms, alone.nbytes / alone.ms / 1e6
        # The rate sums all sources; a ceiling that some of them did not measure would be too low.
        if ceiling is not None and ceiling[1] == len(source_ranks.sources(run)):
            rates.ceiling_share_pct = 100 * rates.alone_gb_per_s / ceiling[0]
    return rates


def _speed(run: Run, point: PointSamples, samples: ArmSamples) -> Speed:
    """Hold the model alone against the machine, unless stages of a pipeline take turns."""
    speed = Speed()
    # With a pipeline, prompt_ms is no time of computing alone: stages wait for each other.
    if point.info.pipeline_para_size > 1:
        return speed
    least, point_id = work(run, point.info), point.info.id
    prompt, token = median_of(samples.times.prompt), median_of(samples.times.token)
    if prompt:
        # Operations per ms / 10⁶ = GFLOP/s, the unit of the ceiling.
        gflop_per_s = least.prompt_flop / prompt / 1e6
        speed.prompt_tflop_per_s = gflop_per_s / 1e3
        speed.prompt_share_pct = share_of_ceiling(run, "matmul", point_id, gflop_per_s, "GFLOP/s")
    if token and least.token_nbytes:
        speed.token_gb_per_s = least.token_nbytes / token / 1e6
        speed.token_share_pct = share_of_ceiling(run, "memory-read", point_id, speed.token_gb_per_s)
    return speed


def _hidden_percent(point: PointSamples, samples: ArmSamples) -> float | None:
    """Return 1 − (T_arm − T_none) / T_alone in percent.

    The difference is the paired overhead times T_none. None if T_alone is below the noise (the
    farther end of the noise floor's interval), or if the noise is unknown.
    """
    baselines = point.baselines()
    floor = stats.noise_floor(baselines)
    overhead = stats.paired_overhead(samples.times.total, baselines)
    if samples.alone is None or floor is None or overhead is None or floor.samples < 2:
        return None
    # Of both baselines' rounds together, as the overhead is over both.
    none_ms = stats.estimate(value for series in baselines for value in series.values()).median
    alone_ms = samples.alone.ms
    if alone_ms <= none_ms * stats.noise_reach(floor.low, floor.high):
        return None
    # T_arm − T_none = overhead · T_none.
    return 100 * (1 - overhead.median * none_ms / alone_ms)
