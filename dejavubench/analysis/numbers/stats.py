"""Statistics of raw samples: medians, bootstrap intervals, paired overheads and verdicts.

An overhead is paired: in each round, the arm's TOTAL is divided by the geometric mean of the
round's ``none`` TOTALs. The median over rounds, less one, is the overhead. Drift from round to
round cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dejavubench.records import ArmInfo, Iteration

CONFIDENCE = 0.95
"""Level of an interval, unless several are judged together; see ``comparison.gate``."""

RESAMPLE_COUNT = 2000
"""Bootstrap resamples of an interval."""

SEED = 20240301
"""Seed of the resamples: equal samples give equal intervals, on any machine."""

MOST_REMEMBERED = 2048
"""Latest estimates that are kept. A long sweep of levels has 900 series."""

PICKS_AT_ONCE = 2**22
"""Samples drawn at a time: their indices take 32 MiB."""

COVERING_ROUND_COUNT = 6
"""Fewest rounds whose range covers the median with 95 % (1 − 2 · 0.5ⁿ). Fewer decide nothing."""

FEW_ROUND_COUNT = 10
"""Below this, tables and figures say that intervals are wide."""

Series = Mapping[int, float]
"""Values of one arm by round."""


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % bootstrap interval, in the unit of the samples.

    ``low`` and ``high`` are NaN when there is only one sample.
    """

    median: float
    low: float
    high: float
    iqr: float
    sample_count: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width, in the unit of the samples."""
        return (self.high - self.low) / 2

    def shift(self, difference: float) -> Estimate:
        """Return the estimate with ``difference`` added to its median and both ends."""
        return Estimate(
            median=self.median + difference,
            low=self.low + difference,
            high=self.high + difference,
            iqr=self.iqr,
            sample_count=self.sample_count,
        )


def median_of(series: Series) -> float | None:
    """Return the median over rounds; None of an empty series."""
    return float(np.median(list(series.values()))) if series else None


def median_or_zero(series: Series) -> float:
    """Return the median over rounds; 0 of an empty series."""
    return median_of(series) or 0.0


def whole_median_of(series: Series) -> int | None:
    """Return the median over rounds of whole numbers, rounded; None of an empty series."""
    return round(float(np.median(list(series.values())))) if series else None


class Verdict(StrEnum):
    """Relation of an overhead to its target."""

    MET = "met"
    UNRESOLVED = "unresolved"
    MISSED = "missed"


def estimate(samples: Iterable[float]) -> Estimate:
    """Return median, interquartile range and bootstrap interval of the median.

    It is a percentile bootstrap of 2000 resamples with a fixed seed.

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    values = np.asarray(list(samples), dtype=np.float64)
    if values.size == 0:
        raise ValueError("a median needs at least one sample")
    if not np.isfinite(values).all():
        raise ValueError("a sample is not a finite number")
    return _estimate(values.tobytes())


# Tables and figures of one run ask for the same series again and again, and 2000 resamples take
# a millisecond. The key holds fewer bytes than the samples of the run, which are in memory, too.
@lru_cache(maxsize=MOST_REMEMBERED)
def _estimate(samples: bytes) -> Estimate:
    """Return the estimate of float64 samples, as bytes because a cache needs a key that hashes."""
    values = np.frombuffer(samples)
    median = float(np.median(values))
    # The spread of the samples themselves, beside the interval of their median.
    first_quartile, third_quartile = np.percentile(values, [25, 75])
    # Resamples of one value are all equal: an interval of width 0 would look exact.
    if values.size == 1:
        return Estimate(median=median, low=float("nan"), high=float("nan"), iqr=0.0, sample_count=1)
    medians = _resample_medians(values)
    # Percentile bootstrap (Efron 1979): the ends of the middle 95 % of the resampled medians.
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Estimate(
        median=median,
        low=float(low),
        high=float(high),
        iqr=float(third_quartile - first_quartile),
        sample_count=int(values.size),
    )


def _resample_medians(values: np.ndarray) -> np.ndarray:
    """Return medians of resamples. Drawn at once, those of long logs would take gigabytes."""
    # A fixed seed: the same records must give the same table, byte for byte.
    rng = np.random.default_rng(SEED)
    # `picks` is [resamples at once, samples].
    most_at_once = max(1, PICKS_AT_ONCE // values.size)
    medians = []
    for begin in range(0, RESAMPLE_COUNT, most_at_once):
        picks = rng.integers(
            0, values.size, size=(min(most_at_once, RESAMPLE_COUNT - begin), values.size)
        )
        medians.append(np.median(values[picks], axis=1))
    return np.concatenate(medians)


def compute_geometric_mean(series: Sequence[Series]) -> dict[int, float]:
    """Return the geometric mean of several arms for each round that all have, in round order.

    Raises:
        ValueError: no series was given.
    """
    if not series:
        raise ValueError("no baseline")
    # A killed run's last round may lack some arms.
    rounds = sorted(set(series[0]).intersection(*series[1:]))
    return {
        # In logs: a ratio to this mean is the mean of the ratios to each baseline.
        round_number: float(
            np.exp(np.mean([np.log(values_of_arm[round_number]) for values_of_arm in series]))
        )
        for round_number in rounds
    }


def compute_paired_ratios(arm: Series, baselines: Sequence[Series]) -> np.ndarray:
    """Return arm / geometric mean of the baselines for each round that all have, in round order.

    Raises:
        ValueError: no baseline was given.
    """
    # Divided round by round before the median: drift between rounds cancels, which a ratio of
    # two medians would keep.
    means = compute_geometric_mean(baselines)
    return np.array(
        [arm[round_number] / mean for round_number, mean in means.items() if round_number in arm]
    )


def estimate_paired_overhead(arm: Series, baselines: Sequence[Series]) -> Estimate | None:
    """Return the median of the paired ratios less one, as a fraction.

    None if there is no baseline or no common round.
    """
    if not baselines:
        return None
    ratios = compute_paired_ratios(arm, baselines)
    return estimate(ratios).shift(-1.0) if ratios.size else None


def estimate_noise_floor(baselines: Sequence[Series]) -> Estimate | None:
    """Return the overhead of the second ``none`` over the first; None unless there are two."""
    # Against the first alone: with itself in the mean its difference would be halved.
    return estimate_paired_overhead(baselines[1], baselines[:1]) if len(baselines) == 2 else None


def compute_noise_reach(low: float, high: float) -> float:
    """Return the largest difference of identical arms: the farther end of the noise's interval."""
    # Which of the two runs first is chance, so its sign says nothing.
    return max(abs(low), abs(high))


def judge_overhead(overhead: Estimate | None, target: float | None) -> Verdict | None:
    """Return whether an overhead meets ``target`` (a fraction); None if either is missing.

    It is met if the interval's upper end is at most ``target``, and missed if the lower end is
    above it. Otherwise, and always with fewer than 6 rounds, it is unresolved.
    """
    if overhead is None or target is None:
        return None
    # The bootstrap of so few rounds is narrower than 95 %, so it must decide nothing.
    if overhead.sample_count < COVERING_ROUND_COUNT:
        return Verdict.UNRESOLVED
    # The whole interval must be on one side; a median alone decides nothing.
    if overhead.high <= target:
        return Verdict.MET
    return Verdict.MISSED if overhead.low > target else Verdict.UNRESOLVED


def collect_totals_by_arm(
    iterations: Iterable[Iteration],
) -> dict[str, dict[str, dict[int, float]]]:
    """Return point → arm → round → TOTAL in ms; warm-ups are left out."""
    totals_ms: dict[str, dict[str, dict[int, float]]] = {}
    for iteration in iterations:
        if iteration.round is not None:
            totals_ms.setdefault(iteration.point, {}).setdefault(iteration.arm, {})[
                iteration.round
            ] = iteration.total_ms
    return totals_ms


def list_baseline_series(arms: Iterable[ArmInfo], series: Mapping[str, Series]) -> list[Series]:
    """Return the series of the baseline and of its repeat, in this order, as far as they exist."""
    roles = {
        arm.role: series[arm.name] for arm in arms if arm.role != "streaming" and arm.name in series
    }
    return [roles[role] for role in ("baseline", "repeat") if role in roles]


def compute_half_width(series: Mapping[str, Series], arms: Sequence[ArmInfo]) -> float | None:
    """Return how exactly one point is known: the widest half-width, as a fraction.

    It is that of the overheads and of the noise floor. Without a baseline, it is that of TOTAL
    relative to its median. None before every arm has 6 rounds.
    """
    if not arms or any(len(series.get(arm.name, ())) < COVERING_ROUND_COUNT for arm in arms):
        return None
    baselines = list_baseline_series(arms, series)
    if not baselines:
        return max(_compute_relative_width(series[arm.name]) for arm in arms)
    overheads = [
        estimate_paired_overhead(series[arm.name], baselines)
        for arm in arms
        if arm.role == "streaming"
    ]
    if len(baselines) == 2:
        overheads.append(estimate_noise_floor(baselines))
    # With a single none there is no overhead; its own interval must be narrow instead.
    if not overheads:
        return _compute_relative_width(baselines[0])
    if any(
        overhead is None or overhead.sample_count < COVERING_ROUND_COUNT for overhead in overheads
    ):
        return None
    return max(overhead.half_width for overhead in overheads if overhead is not None)


def _compute_relative_width(series: Series) -> float:
    total_ms = estimate(series.values())
    return total_ms.half_width / total_ms.median
