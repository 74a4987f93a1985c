"""Differences of arms as text: decimals by the width of the interval, signs where they matter."""

from __future__ import annotations

import math

from dejavubench.analysis.answers.judgement import Difference, Judgement, Noise
from dejavubench.analysis.number_texts import format_signed, noise_range_text
from dejavubench.analysis.numbers import stats

DECIMALS = ((5.0, 0), (0.3, 1), (0.015, 2))
"""Least half-width of an interval, in percent, for each number of decimals."""

REACH_DECIMALS = ((10.0, 0), (1.0, 1), (0.01, 2))
"""Least reach of the noise, in percent, for each number of decimals."""

LOPSIDED_PCT = 15.0
"""Noise, in percent, from which both ends of its interval are written: −0.79 to +65.3 %."""

MOST_DECIMALS = 3
"""Most decimals with which two values are written until they differ."""


def decimals_of(estimate: stats.Estimate) -> int:
    """Return the decimals of percentages that an interval justifies, so that its ends differ."""
    # Of a lopsided interval the narrower side tells how exactly the median is known.
    side_widths = (estimate.high - estimate.median, estimate.median - estimate.low)
    half_width_pct = 100 * (min(side_widths) or (estimate.high - estimate.low) / 2)
    if abs(estimate.median) >= 1:  # a request takes twice as long, or more
        return 0
    if math.isnan(half_width_pct):
        half_width_pct = abs(estimate.median)
    return next(
        (decimals for least_half_width, decimals in DECIMALS if half_width_pct >= least_half_width),
        MOST_DECIMALS,
    )


def _range_decimals(estimate: stats.Estimate) -> int:
    """Return the decimals of an estimate with its interval."""
    decimals = decimals_of(estimate)
    # An end that is not 0 must not be printed as 0: the interval would seem to touch it. Nor must
    # the median: "−0 %" is no number.
    fractions = (estimate.median, estimate.low, estimate.high)
    if any(0 < abs(100 * fraction) < 0.5 * 10**-decimals for fraction in fractions):
        return min(MOST_DECIMALS, decimals + 1)
    return decimals


def with_range(difference: Difference, more_digits: int = 0) -> str:
    """Return ``+2.5 % (1.4 to 4.9)``. Ends of both signs carry their signs."""
    estimate = difference.estimate
    decimals = _range_decimals(estimate) + more_digits
    signed_median = f"{format_signed(100 * estimate.median, decimals)} %"
    if math.isnan(estimate.low):
        return f"{signed_median} (1 round)"
    low, high = 100 * estimate.low, 100 * estimate.high
    if low >= 0:
        range_text = f"{low:,.{decimals}f} to {high:,.{decimals}f}"
    else:
        range_text = f"{format_signed(low, decimals)} to {format_signed(high, decimals)}"
    has_too_few = difference.judgement is Judgement.TOO_FEW
    return (
        f"{signed_median} ({range_text}{f' over {estimate.samples} rounds' if has_too_few else ''})"
    )


def median_text(difference: Difference) -> str:
    """Return ``+0.07 %``, with the decimals of :func:`with_range`."""
    return with_range(difference).partition(" (")[0]


def reach_text(difference: Difference) -> str:
    """Return the noise of a difference as text; see :func:`noise_text`."""
    assert difference.noise is not None
    return noise_text(difference.noise)


def cost_and_noise(cost: Difference) -> tuple[str, str]:
    """Return a cost beyond its noise, and the noise, so that the cost is the larger number."""
    assert cost.noise is not None
    cost_pct = 100 * abs(cost.estimate.median)
    noise_pct = 100 * cost.noise.reach
    shown_cost = f"{cost_pct:.{_range_decimals(cost.estimate)}f}"
    shown_noise = f"{noise_pct:.{noise_decimals(noise_pct)}f}"
    # "+11 %, beyond ±11 %" contradicts itself.
    more_digits = int(float(shown_cost) <= float(shown_noise))
    return with_range(cost, more_digits), noise_text(cost.noise, more_digits)


def noise_text(noise: Noise, more_digits: int = 0) -> str:
    """Return noise as ``±2.8 %``, with about two digits; large noise as the table's interval."""
    reach_pct = 100 * noise.reach
    # A factor up and the same factor down differ in percent as soon as the noise is large. The
    # rule takes both for noise: "either way".
    if 100 * math.expm1(noise.log_reach) >= LOPSIDED_PCT:
        return f"{noise_range_text(100 * noise.low, 100 * noise.high)} %, either way"
    return f"±{reach_pct:.{noise_decimals(reach_pct) + more_digits}f} %"


def noise_decimals(noise_pct: float) -> int:
    """Return the decimals of noise of this size, so that it has about two digits."""
    return next(
        (decimals for least_reach, decimals in REACH_DECIMALS if noise_pct >= least_reach),
        MOST_DECIMALS,
    )
