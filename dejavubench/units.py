"""Ground floor: quantities as people write them, read and printed. Needs the standard library alone."""

from __future__ import annotations

import math
import re

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_EXPONENTS = {"s": 0, "ms": -3, "us": -6, "µs": -6, "μs": -6, "ns": -9}  # the micro sign and the Greek letter
_PREFIXES = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


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


def latency(value: object) -> float:
    """``5us``, ``1.5 ms``, ``800ns`` or ``0`` in seconds; without a unit it is refused.

    Raises:
        ValueError: it is none of these.
    """
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us|µs|μs|ns)", text)
    if text == "0":
        return 0.0
    if not match:
        raise ValueError(f"{value!r} is not a latency such as 5us, 0.1ms or 0")
    return float(f"{match[1]}e{_EXPONENTS[match[2]]}")


def rate(value: object) -> float:
    """``25GB/s``, ``23.3GiB/s`` or ``200Gbit/s`` (``Gb/s``, ``Gbps``) in bytes a second: B is a byte, b a bit.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[kKMGT]i?)?)(B|bit|b)(?:/s|ps)\s*", str(value))
    number = float(match[1]) if match else 0.0
    if not match or number <= 0:
        raise ValueError(f"{value!r} is not a rate such as 25GB/s, 23.3GiB/s or 200Gbit/s")
    prefix, unit = match[2], match[3]
    base = 1024 if prefix.endswith("i") else 1000
    return number * base ** _PREFIXES[prefix.removesuffix("i")] / (1 if unit == "B" else 8)


def address(value: object) -> tuple[str, int]:
    """``host:port``, ``[::1]:port`` or ``:port`` (of this host's loopback) as host and port.

    Raises:
        ValueError: it is none of these.
    """
    host, colon, port = str(value).strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError(f"{value!r} is not an address such as 10.0.0.2:7601, host:7601 or [::1]:7601")
    try:
        host.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{value!r} is not an address such as host:7601: {host!r} is no name") from None
    return host.strip("[]") or "127.0.0.1", int(port)


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
