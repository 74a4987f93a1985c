"""Numbers as text for people; a missing one is a dash."""

from __future__ import annotations

import math
from collections.abc import Collection

MINUS = "−"
"""The minus sign, U+2212, which is as wide as a digit."""


def format_counts(counts: Collection[int]) -> str:
    """Write the smallest and the largest of some counts, as one number if they are equal."""
    if not counts:
        return "–"
    smallest, largest = min(counts), max(counts)
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest}"


def format_or_dash(value: float | None, spec: str) -> str:
    """Write a number by a format specification; a missing one as a dash."""
    return "–" if value is None else format(value, spec)


def format_rate(rate: float | None, decimal_count: int) -> str:
    """Write a rate with some decimals; a small one has three significant digits."""
    if rate is None:
        return "–"
    if 0 < abs(rate) < 1:
        # 0.0123: log10 is −1.9, its floor −2, so 4 decimals show three digits.
        shown_decimal_count = max(decimal_count, 2 - math.floor(math.log10(abs(rate))))
        return f"{rate:.{shown_decimal_count}f}"
    return f"{rate:.{decimal_count}f}"


def format_ms(ms: float | None, total_ms: float | None = None) -> str:
    """Write milliseconds with about four digits.

    Args:
        total_ms: gives the decimals, if ``ms`` is a part of it that stands beside it.
    """
    if ms is None:
        return "–"
    size_ms = abs(ms if total_ms is None else total_ms)
    return f"{ms:.3f}" if size_ms < 1 else f"{ms:.2f}" if size_ms < 100 else f"{ms:.1f}"


def format_nbytes(nbytes: float | None) -> str:
    """Write bytes in decimal units, as rates are in GB/s."""
    if nbytes is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} B"


def format_count(count: float | None) -> str:
    """Write a count with separators of thousands; two decimals if it is not whole."""
    if count is None:
        return "–"
    return f"{count:,.0f}" if count == round(count) else f"{count:,.2f}"


def format_signed_percent(percent: float, more_decimal_count: int = 0) -> str:
    """Write a percentage with its sign, without the unit: +0.42, +31.5, +9,150.

    Args:
        more_decimal_count: for a sentence on two numbers that differ but would look equal.
    """
    text = format_unsigned_percent(percent, more_decimal_count)
    # "−0.00" would be read as faster, "+0.00" as slower.
    if float(text.replace(",", "")) == 0:
        return text
    return f"{'+' if percent >= 0 else MINUS}{text}"


def format_unsigned_percent(percent: float, more_decimal_count: int = 0) -> str:
    """Write the size of a percentage as :func:`format_signed_percent` does, without its sign.

    Its size alone gives its decimals, in every table and sentence.
    """
    size_pct = abs(percent)
    decimal_count = 2 if size_pct < 10 else 1 if size_pct < 100 else 0
    return f"{size_pct:,.{decimal_count + more_decimal_count}f}"


def format_percent_interval(low: float | None, high: float | None) -> str:
    """Write an interval of percentages; nothing where there is none."""
    return (
        ""
        if low is None or high is None
        else f"[{format_signed_percent(low)}, {format_signed_percent(high)}]"
    )


def format_slowdown(factor: float) -> str:
    """Write a factor: 0.98×, 1.40×, 13.4×, 131×."""
    return (
        f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×" if factor < 100 else f"{factor:,.0f}×"
    )


def format_noise_range(low: float, high: float) -> str:
    """Write the interval of a noise floor in percent, with the digits of tables: −0.79 to +65.3."""
    return f"{format_signed_percent(low)} to {format_signed_percent(high)}"


def format_percent_with_interval(percent: float, low: float | None, high: float | None) -> str:
    """Write a percentage with its interval: +0.42 [−0.10, +0.91]."""
    return f"{format_signed_percent(percent)} {format_percent_interval(low, high)}".rstrip()


def format_ms_interval(low: float | None, high: float | None) -> str:
    """Write an interval of milliseconds."""
    return "–" if low is None else f"[{format_ms(low)}, {format_ms(high)}]"


def format_4_digits(rate: float | None) -> str:
    """Write a rate with about four digits."""
    if rate is None:
        return "–"
    return format_rate(rate, 3 if rate < 10 else 1 if rate < 1000 else 0)


def format_3_digits(speed: float) -> str:
    """Return a speed with three digits, without an exponent."""
    return f"{float(f'{speed:.3g}'):,.0f}" if speed >= 100 else f"{speed:.3g}"
