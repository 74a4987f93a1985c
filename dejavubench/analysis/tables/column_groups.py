"""Samples of an arm → the groups of columns of its row: times, overheads, rates, tails."""

from __future__ import annotations

from dejavubench.analysis.answers.judgement import estimate_cost, is_told_from_noise
from dejavubench.analysis.breakdown.ceiling_shares import share_of_ceiling, sum_ceilings
from dejavubench.analysis.breakdown.least_work import compute_work
from dejavubench.analysis.breakdown.tails import (
    compute_percentiles,
    estimate_p99_noise,
    estimate_p99_overhead,
)
from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.arm_destinations import info_of
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.stats import median_of, whole_median_of
from dejavubench.analysis.tables.process_columns import (
    NoiseJudgement,
    Overhead,
    Speed,
    StreamRates,
    StreamTotals,
    Tails,
    Times,
)
from dejavubench.analysis.tables.spreads import Spread, make_spread, scale_estimate
from dejavubench.records import Run


def make_times(
    prompt: Spread,
    token: Spread,
    total: Spread,
    sample_count: int,
    warmup_count: int,
    drain: float | None,
) -> Times:
    """Return the columns of times, in milliseconds.

    Args:
        sample_count: number of rounds that count.
        warmup_count: iterations before them, which do not count.
        drain: median of the drain; None if the arm does not stream.
    """
    return Times(
        samples=sample_count,
        warmups=warmup_count,
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


def make_arm_times(samples: ArmSamples) -> Times:
    """Return the times of an arm with measured rounds."""
    return make_times(
        make_spread(samples.times.prompt.values()),
        make_spread(samples.times.token.values()),
        make_spread(samples.times.total.values()),
        len(samples.times.total),
        samples.warmup_count,
        median_of(samples.times.drain),
    )


def make_overhead(point: PointSamples, samples: ArmSamples, run: Run) -> Overhead:
    """Return overheads and noise floors; baselines have the floors, and no overhead."""
    baselines = point.baselines()
    noise = scale_estimate(stats.estimate_noise_floor(baselines), 100)
    token_noise = scale_estimate(stats.estimate_noise_floor(point.baselines("token")), 100)
    overhead = Overhead(
        token_noise_floor_pct=token_noise.middle,
        token_noise_floor_low_pct=token_noise.low,
        token_noise_floor_high_pct=token_noise.high,
        noise_floor_pct=noise.middle,
        noise_floor_low_pct=noise.low,
        noise_floor_high_pct=noise.high,
    )
    if samples.info.role != "streaming":
        overhead.baseline = "is a baseline"
        return overhead
    estimate = stats.estimate_paired_overhead(samples.times.total, baselines)
    target = run.header.experiment.get("target_overhead")
    total = scale_estimate(estimate, 100)
    token = scale_estimate(
        stats.estimate_paired_overhead(samples.times.token, point.baselines("token")), 100
    )
    overhead.overhead_pct, overhead.overhead_low_pct, overhead.overhead_high_pct, _ = total
    overhead.token_overhead_pct = token.middle
    overhead.token_overhead_low_pct = token.low
    overhead.token_overhead_high_pct = token.high
    overhead.baseline = ("no baseline", "none", "none and none#2")[len(baselines)]
    overhead.target_pct = None if target is None else 100 * target
    overhead.verdict = stats.judge_overhead(estimate, target)
    return overhead


def judge_noise(point: PointSamples, samples: ArmSamples) -> NoiseJudgement:
    """Return whether the overheads of an arm are told from noise; nothing for a baseline."""
    cost = estimate_cost(point, samples) if samples.info.is_streaming else None
    if cost is None:
        return NoiseJudgement()
    reach = None if cost.reach is None else 100 * cost.reach
    return NoiseJudgement(
        reach, is_told_from_noise(cost), is_told_from_noise(estimate_cost(point, samples, "token"))
    )


def make_tails(point: PointSamples, samples: ArmSamples) -> Tails:
    """Return percentiles of single tokens; of a streaming arm also the overhead of p99."""
    percentiles = compute_percentiles(samples)
    if percentiles is None:
        return Tails()
    overhead = estimate_p99_overhead(point, samples) if samples.info.is_streaming else None
    return Tails(
        percentiles.token_count,
        percentiles.p50_ms,
        percentiles.p90_ms,
        percentiles.p99_ms,
        percentiles.slowest_ms,
        # Rows of tails have no column for the quartile range, which comes fourth.
        *scale_estimate(overhead, 100)[:3],
        *scale_estimate(estimate_p99_noise(point), 100)[:3],
    )


def make_stream_totals(samples: ArmSamples) -> StreamTotals:
    """Return the bytes and copies of one iteration, and the time that the model waited for them."""
    stream = samples.stream
    return StreamTotals(
        stall_ms=median_of(samples.stalls.iteration),
        largest_lag_bytes=stream.lag_nbytes,
        streamed_bytes=whole_median_of(stream.nbytes),
        copies_per_prompt=whole_median_of(stream.prompt_copies),
        copies_per_token=median_of(stream.token_copies),
    )


def make_rates(run: Run, point: PointSamples, samples: ArmSamples) -> StreamRates:
    """Return a stream's rates and its ceiling, at this point if it was measured here."""
    rates = StreamRates(hidden_pct=_compute_hidden_pct(point, samples))
    total_ms = median_of(samples.times.total)
    nbytes = median_of(samples.stream.nbytes)
    if total_ms and nbytes:
        # Bytes per ms / 10⁶ = GB/s.
        rates.total_gb_per_s = nbytes / total_ms / 1e6
    info = info_of(run, samples.info)
    name = info.ceiling if info else None
    durability = samples.info.durability
    ceiling = sum_ceilings(run, name, point.info.id, durability) if name else None
    if ceiling is not None:
        rates.ceiling = name
        rates.ceiling_gb_per_s = ceiling[0]
    if samples.stream_alone is not None:
        stream_alone = samples.stream_alone
        rates.alone_ms = stream_alone.ms
        rates.alone_gb_per_s = stream_alone.nbytes / stream_alone.ms / 1e6
        # The rate sums all sources; a ceiling that some of them did not measure would be too low.
        if ceiling is not None and ceiling[1] == len(source_ranks.list_sources(run)):
            rates.ceiling_share_pct = 100 * rates.alone_gb_per_s / ceiling[0]
    return rates


def make_speed(run: Run, point: PointSamples, samples: ArmSamples) -> Speed:
    """Hold the model alone against the machine, unless stages of a pipeline take turns."""
    speed = Speed()
    # With a pipeline, prompt_ms is no time of computing alone: stages wait for each other.
    if point.info.pipeline_para_size > 1:
        return speed
    least_work = compute_work(run, point.info)
    point_id = point.info.id
    prompt = median_of(samples.times.prompt)
    token = median_of(samples.times.token)
    if prompt:
        # Operations per ms / 10⁶ = GFLOP/s, the unit of the ceiling.
        gflop_per_s = least_work.prompt_flop / prompt / 1e6
        speed.prompt_tflop_per_s = gflop_per_s / 1e3
        speed.prompt_share_pct = share_of_ceiling(run, "matmul", point_id, gflop_per_s, "GFLOP/s")
    if token and least_work.token_nbytes:
        speed.token_gb_per_s = least_work.token_nbytes / token / 1e6
        speed.token_share_pct = share_of_ceiling(run, "memory-read", point_id, speed.token_gb_per_s)
    return speed


def _compute_hidden_pct(point: PointSamples, samples: ArmSamples) -> float | None:
    """Return 1 − (T_arm − T_none) / T_alone in percent.

    The difference is the paired overhead times T_none. None if T_alone is below the noise (the
    farther end of the noise floor's interval), or if the noise is unknown.
    """
    baselines = point.baselines()
    floor = stats.estimate_noise_floor(baselines)
    overhead = stats.estimate_paired_overhead(samples.times.total, baselines)
    if samples.stream_alone is None or floor is None or overhead is None or floor.sample_count < 2:
        return None
    # Of both baselines' rounds together, as the overhead is over both.
    none_ms = stats.estimate(value for series in baselines for value in series.values()).median
    alone_ms = samples.stream_alone.ms
    if alone_ms <= none_ms * stats.compute_noise_reach(floor.low, floor.high):
        return None
    # T_arm − T_none = overhead · T_none.
    return 100 * (1 - overhead.median * none_ms / alone_ms)
