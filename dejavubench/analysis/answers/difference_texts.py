"""Differences of arms as text: the digits of the tables, signs where they matter."""

from __future__ import annotations

import math

from dejavubench.analysis.answers.judgement import Difference, Judgement, Noise
from dejavubench.analysis.number_texts import (
    format_noise_range,
    format_signed_percent,
    format_unsigned_percent,
)

LEAST_SHOWN = 0.5e-4
"""Fraction below which a table prints 0.00 %."""

LOPSIDED_PCT = 15.0
"""Noise, in percent, from which both ends of its interval are written: −0.79 to +65.3 %."""


def format_with_range(difference: Difference, more_decimal_count: int = 0) -> str:
    """Return ``+2.52 % (1.35 to 4.93)``, with the digits of the table.

    Ends of both signs carry their signs.
    """
    estimate = difference.estimate
    median, low, high = (
        format_signed_percent(100 * fraction, more_decimal_count + int(_looks_zero(fraction)))
        for fraction in (estimate.median, estimate.low, estimate.high)
    )
    if math.isnan(estimate.low):
        return f"{median} % (1 round)"
    if estimate.low >= 0:
        low, high = low.removeprefix("+"), high.removeprefix("+")
    has_too_few = difference.judgement is Judgement.TOO_FEW
    few_text = f" over {estimate.sample_count} rounds" if has_too_few else ""
    return f"{median} % ({low} to {high}{few_text})"


def _looks_zero(fraction: float) -> bool:
    """Return whether a difference would be printed as 0: an interval would seem to touch it."""
    return 0 < abs(fraction) < LEAST_SHOWN


def format_median(difference: Difference) -> str:
    """Return ``+0.07 %``, with the decimals of :func:`format_with_range`."""
    return format_with_range(difference).partition(" (")[0]


def format_noise_of(difference: Difference) -> str:
    """Return the noise of a difference as text; see :func:`format_noise`."""
    assert difference.noise is not None
    return format_noise(difference.noise)


def format_cost_and_noise(cost: Difference) -> tuple[str, str]:
    """Return a cost beyond its noise, and the noise, so that the cost is the larger number."""
    assert cost.noise is not None
    cost_text = format_unsigned_percent(100 * cost.estimate.median)
    reach = format_unsigned_percent(100 * cost.noise.reach)
    # "+11.0 %, beyond ±11.0 %" contradicts itself.
    more_decimal_count = int(_number_of(cost_text) <= _number_of(reach))
    return format_with_range(cost, more_decimal_count), format_noise(cost.noise, more_decimal_count)


def _number_of(text: str) -> float:
    return float(text.replace(",", ""))


def format_noise(noise: Noise, more_decimal_count: int = 0) -> str:
    """Return noise as ``±2.83 %``; large noise as the table's interval."""
    # A factor up and the same factor down differ in percent as soon as the noise is large. The
    # rule takes both for noise: "either way".
    if 100 * math.expm1(noise.log_reach) >= LOPSIDED_PCT:
        return f"{format_noise_range(100 * noise.low, 100 * noise.high)} %, either way"
    return f"±{format_unsigned_percent(100 * noise.reach, more_decimal_count)} %"
