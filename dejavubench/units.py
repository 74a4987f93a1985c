"""Ground floor: quantities as people write them, read and printed. Needs the standard library alone."""

from __future__ import annotations

import math
import re

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def fraction(value: object) -> float:
    """``0.5%`` or ``0.005`` as a fraction; a bare number that is more likely meant as a percentage is refused.

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 < number < 1:
        raise ValueError(f"{value!r} is neither a percentage such as 0.5% nor a fraction between 0 and 1")
    if not text.endswith("%") and number >= 0.1:
        raise ValueError(f"{value!r} would be {100 * number:g} %: write {text}% or {100 * number:g}%")
    return number


def seconds(value: object) -> float:
    """``600``, ``600s``, ``10m`` or ``1h`` in seconds.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*(s|m|min|h)?\s*", str(value))
    try:
        number = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ValueError(f"{value!r} is not a time such as 90, 90s, 10m or 1h")
    return number


def nbytes_text(nbytes: float) -> str:
    """Bytes with a binary unit, three digits: ``3.30 GiB``."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def seconds_text(value: float) -> str:
    """A duration with the unit that suits it: ``350 ms``, ``3.5 s``, ``12 min``, ``3.1 h``."""
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    if value < 2 * 3600:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 48 * 3600 else f"{value / 86400:.1f} days"


def count_text(number: int, what: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {what}" + ("" if number == 1 else "s")
