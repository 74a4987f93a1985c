"""Judgement of a difference of two arms: shown, or not told from noise.

Two rules decide, each held by one function. :func:`find_side` asks on which side of a limit an
interval lies. :func:`is_within_noise` asks whether two identical arms differed by as much.
``compare`` decides by the first alone, ANSWER by both: docs/method/answers.md says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, Quantity
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.round_changes import compute_paired_change, make_median_sample

POWER_HALF_WIDTHS = 0.84 / 1.96
"""Distance, in half-widths, that lets four of five repetitions show a difference: the normal
distribution's 80 % point over its 97.5 % point."""

MOST_ROUNDS = 1000
"""More rounds than this are not proposed: a machine's drift ends the square-root law long before.
"""


class Judgement(StrEnum):
    """Relation of a difference to the noise."""

    SLOWER = "slower"
    FASTER = "faster"
    WITHIN_NOISE = "within noise"
    OPEN = "sign unknown"
    TOO_FEW = "too few rounds"
    NOISE_UNKNOWN = "noise unknown"

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference."""
        return self in (Judgement.SLOWER, Judgement.FASTER)


@dataclass(frozen=True)
class Noise:
    """The interval of the difference of two identical arms, as fractions.

    Which of the two ran first is chance, so a difference by the same factor in the other direction
    is noise as well.
    """

    low: float
    high: float

    @property
    def reach(self) -> float:
        """The farther end of the interval, as a fraction without a sign."""
        return stats.compute_noise_reach(self.low, self.high)

    @property
    def log_reach(self) -> float:
        """Natural logarithm of the largest factor between two identical arms."""
        return max(abs(math.log1p(self.low)), abs(math.log1p(self.high)))


@dataclass(frozen=True)
class Difference:
    """The relative difference of an arm's TOTAL from another time, as fractions.

    Attributes:
        noise: difference of two identical arms; None if it is unknown, as without a second none.
    """

    estimate: stats.Estimate
    noise: Noise | None

    @property
    def reach(self) -> float | None:
        """The farther end of the noise, as a fraction; None if the noise is unknown."""
        return None if self.noise is None else self.noise.reach

    @property
    def judgement(self) -> Judgement:
        """Judgement by the interval of the difference and the noise."""
        return judge(self.estimate, self.noise)

    @property
    def more_round_count(self) -> int | None:
        """Rounds that would be needed beside those measured, to show a difference of this size."""
        return count_more_rounds(self.estimate, self.noise)


def find_side(low: float, high: float, limit: float = 0.0) -> int:
    """Return 1 if an interval lies above a limit, −1 if below, and 0 if the limit lies within it.

    An interval that begins or ends at the limit contains it.
    """
    return (low > limit) - (high < limit)


def is_within_noise(change: float, noise: Noise) -> bool:
    """Return whether two identical arms of the same run differed by as much as ``change``.

    Both are held as factors: a saving never exceeds 100 %, so percentages would let noise above
    100 % hide every saving.

    Args:
        change: a fraction.
    """
    return abs(math.log1p(change)) <= noise.log_reach


def judge(difference: stats.Estimate, noise: Noise | None) -> Judgement:
    """Return whether a difference is told from noise.

    Args:
        noise: difference of two identical arms; None if it is unknown.
    """
    # The bootstrap of fewer rounds is narrower than 95 %, so it must decide nothing.
    if difference.sample_count < stats.COVERING_ROUND_COUNT:
        return Judgement.TOO_FEW
    if noise is None:
        return Judgement.NOISE_UNKNOWN
    if is_within_noise(difference.median, noise):
        return Judgement.WITHIN_NOISE
    side = find_side(difference.low, difference.high)
    return Judgement.OPEN if side == 0 else Judgement.SLOWER if side > 0 else Judgement.FASTER


def is_told_from_noise(cost: Difference | None) -> bool | None:
    """Return whether a cost is told from noise; None if that is undecided."""
    if cost is None or cost.judgement in (Judgement.TOO_FEW, Judgement.NOISE_UNKNOWN):
        return None
    return cost.judgement.is_shown


def count_more_rounds(difference: stats.Estimate, noise: Noise | None) -> int | None:
    """Return how many more rounds would show the difference, if it stays; None if it is shown.

    Intervals and the noise of identical arms shrink with the square root of the rounds. The number
    is that with which four of five repetitions would show the difference. It is rounded up to one
    digit, or None where it is unknown or above :data:`MOST_ROUNDS`.
    """
    judgement = judge(difference, noise)
    log_change = abs(math.log1p(difference.median))
    if judgement.is_shown or noise is None or judgement is Judgement.TOO_FEW or log_change == 0:
        return None
    # Only the side towards 0 decides; the intervals of medians are often lopsided.
    end_near_zero = difference.low if difference.median > 0 else difference.high
    near_half_width = abs(math.log1p(difference.median) - math.log1p(end_near_zero))
    needed_distance = max(
        near_half_width * (1 + POWER_HALF_WIDTHS),
        noise.log_reach + POWER_HALF_WIDTHS * near_half_width,
    )
    added_round_count = difference.sample_count * ((needed_distance / log_change) ** 2 - 1)
    return None if added_round_count > MOST_ROUNDS else _round_up(max(added_round_count, 1.0))


def _round_up(round_count: float) -> int:
    """Return a number of rounds, rounded up to one significant digit."""
    scale = 10 ** math.floor(math.log10(round_count))
    return math.ceil(round_count / scale) * int(scale)


def estimate_noise(point: PointSamples, quantity: Quantity = "total") -> Noise | None:
    """Return the interval of the noise floor at a point; None if it is unknown."""
    noise_floor = stats.estimate_noise_floor(point.baselines(quantity))
    if noise_floor is None or noise_floor.sample_count < stats.COVERING_ROUND_COUNT:
        return None
    return Noise(noise_floor.low, noise_floor.high)


def estimate_cost(
    point: PointSamples, samples: ArmSamples, quantity: Quantity = "total"
) -> Difference | None:
    """Return an arm's overhead; None without a baseline or a common round."""
    overhead = stats.estimate_paired_overhead(
        samples.times.series(quantity), point.baselines(quantity)
    )
    return None if overhead is None else Difference(overhead, estimate_noise(point, quantity))


def estimate_difference(
    point: PointSamples, arm: ArmSamples, other_arm: ArmSamples
) -> Difference | None:
    """Return the difference of an arm from another one, paired round by round.

    Both were measured in the same rounds, so their ratio needs no baseline. It divides one time by
    one time, as the noise floor does. ``compare`` says the same of two arms of one run.
    """
    ratios = stats.compute_paired_ratios(arm.times.total, [other_arm.times.total])
    if not ratios.size:
        return None
    change = compute_paired_change(make_median_sample(np.log(ratios)))
    iqr = stats.estimate(ratios).iqr
    estimate = stats.Estimate(change.middle, change.low, change.high, iqr, change.sample_count)
    return Difference(estimate, estimate_noise(point))
