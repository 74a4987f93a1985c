"""Numbers as text for people; a missing one is a dash."""

from __future__ import annotations

import math

MINUS = "−"
"""The minus sign, U+2212, which is as wide as a digit."""


def value_or_dash(value: float | None, spec: str) -> str:
    """Write a number by a format specification; a missing one as a dash."""
    return "–" if value is None else format(value, spec)


def rate_text(value: float | None, decimals: int) -> str:
    """Write a rate with some decimals; a small one has three significant digits."""
    if value is None:
        return "–"
    if 0 < abs(value) < 1:
        # 0.0123: log10 is −1.9, its floor −2, so 4 decimals show three digits.
        shown_decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{shown_decimals}f}"
    return f"{value:.{decimals}f}"


def ms_text(value: float | None) -> str:
    """Milliseconds with about four digits."""
    if value is None:
        return "–"
    return (
        f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"
    )


def nbytes_text(value: float | None) -> str:
    """Bytes in decimal units, as GB/s are."""
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def format_count(value: float | None) -> str:
    """Write a count with separators of thousands; two decimals if it is not whole."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def signed_percent(value: float) -> str:
    """Write a percentage with its sign, without the unit: +0.42, +31.5, +9,150."""
    size = abs(value)
    return format_signed(value, 2 if size < 10 else 1 if size < 100 else 0)


def format_signed(percent: float, decimals: int) -> str:
    """Write a percentage with its sign, without the unit; one that rounds to 0 has no sign."""
    text = f"{abs(percent):,.{decimals}f}"
    # "−0.00" would be read as faster, "+0.00" as slower.
    if float(text.replace(",", "")) == 0:
        return text
    return f"{'+' if percent >= 0 else MINUS}{text}"


def span_text(low: float | None, high: float | None) -> str:
    """Write an interval of percentages; nothing where there is none."""
    return "" if low is None or high is None else f"[{signed_percent(low)}, {signed_percent(high)}]"


def slowdown_text(value: float) -> str:
    """Write a factor: 0.98×, 1.40×, 13.4×, 131×."""
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×" if value < 100 else f"{value:,.0f}×"


def noise_range_text(low: float, high: float) -> str:
    """Write the interval of a noise floor in percent, with the digits of tables: −0.79 to +65.3."""
    return f"{signed_percent(low)} to {signed_percent(high)}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """Write a percentage with its interval: +0.42 [−0.10, +0.91]."""
    return f"{signed_percent(value)} {span_text(low, high)}".rstrip()


def interval_of(low: float | None, high: float | None) -> str:
    """Write an interval of milliseconds."""
    return "–" if low is None else f"[{ms_text(low)}, {ms_text(high)}]"


def four_digits(value: float | None) -> str:
    """Write a rate with about four digits."""
    if value is None:
        return "–"
    return rate_text(value, 3 if value < 10 else 1 if value < 1000 else 0)


def three_digits(value: float) -> str:
    """Return a speed with three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
