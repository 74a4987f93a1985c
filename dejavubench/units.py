"""Times, rates, addresses and sizes: reading them from text, and printing them."""

from __future__ import annotations

import math
import re

from dejavubench.values import format_value, text_of

MIB = 1 << 20
"""Bytes of a MiB."""

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes per element of each data type."""

_SECONDS_BY_UNIT = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
# The micro sign and the Greek letter are two characters.
_EXPONENTS = {"s": 0, "ms": -3, "us": -6, "µs": -6, "μs": -6, "ns": -9}
_PREFIXES = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}

LEAST_FRACTION = 1e-6
LEAST_S, MOST_S = 1e-3, 500 * 3600.0
"""Bounds of a time. A socket on Linux waits for at most 2**31 ms, which is 596 hours."""

MOST_LATENCY_S = 3600.0
LEAST_RATE, MOST_RATE = 1.0, 1e15
"""Bounds of a rate, in bytes per second."""

_NUMBER_PATTERN = r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})"


def parse_fraction(value: object) -> float:
    """Return ``0.5%`` or ``0.005`` as a fraction.

    Raises:
        ValueError: the value is neither, or is a bare number that looks like a percentage.
    """
    text = text_of(value)
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?)[ \t]*(%?)", text)
    number = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not LEAST_FRACTION <= number < 1:
        raise ValueError(
            f"{format_value(value)} is neither a percentage such as 0.5% nor a fraction between 0 "
            "and 1"
        )
    if not text.endswith("%") and number >= 0.1:
        raise ValueError(
            f"{format_value(value)} would be {100 * number:g} %: write {text}% or {100 * number:g}%"
        )
    return number


def parse_seconds(value: object) -> float:
    """Return ``600``, ``600s``, ``10m`` or ``1h`` in seconds.

    Raises:
        ValueError: the value is none of these, or not positive.
    """
    match = re.fullmatch(rf"{_NUMBER_PATTERN}[ \t]*(s|m|min|h)?", text_of(value))
    number = float(match[1]) * _SECONDS_BY_UNIT[match[2] or "s"] if match else 0.0
    if number <= 0:
        raise ValueError(f"{format_value(value)} is not a time such as 90, 90s, 10m or 1h")
    if not LEAST_S <= number <= MOST_S:
        raise ValueError(
            f"{format_value(value)} is not a time from {LEAST_S:g} s to {MOST_S / 3600:g}h"
        )
    return number


def parse_latency(value: object) -> float:
    """Return ``5us``, ``1.5 ms``, ``800ns`` or ``0`` in seconds. Other values need a unit.

    Raises:
        ValueError: the value is none of these.
    """
    text = text_of(value)
    match = re.fullmatch(rf"{_NUMBER_PATTERN}[ \t]*(s|ms|us|µs|μs|ns)", text)
    if text == "0":
        return 0.0
    if not match:
        raise ValueError(f"{format_value(value)} is not a latency such as 5us, 0.1ms or 0")
    latency_s = float(f"{match[1]}e{_EXPONENTS[match[2]]}")
    if latency_s > MOST_LATENCY_S:
        raise ValueError(f"{format_value(value)} is not a latency of at most {MOST_LATENCY_S:g} s")
    return latency_s


def parse_rate(value: object) -> float:
    """Return ``25GB/s``, ``23.3GiB/s`` or ``200Gbit/s`` in bytes per second.

    ``B`` is a byte, ``b`` and ``bit`` are a bit; ``ps`` is the same as ``/s``.

    Raises:
        ValueError: the value is none of these, or not positive.
    """
    match = re.fullmatch(
        rf"{_NUMBER_PATTERN}[ \t]*((?:[kKMGT]i?)?)(B|bit|b)(?:/s|ps)", text_of(value)
    )
    number = float(match[1]) if match else 0.0
    if not match or number <= 0:
        raise ValueError(
            f"{format_value(value)} is not a rate such as 25GB/s, 23.3GiB/s or 200Gbit/s"
        )
    prefix, unit = match[2], match[3]
    base = 1024 if prefix.endswith("i") else 1000
    bytes_per_s = number * base ** _PREFIXES[prefix.removesuffix("i")] / (1 if unit == "B" else 8)
    if not LEAST_RATE <= bytes_per_s <= MOST_RATE:
        raise ValueError(
            f"{format_value(value)} is not a rate from {LEAST_RATE:g}B/s to "
            f"{MOST_RATE / 1e12:g}TB/s"
        )
    return bytes_per_s


def parse_address(value: object) -> tuple[str, int]:
    """Return host and port of ``host:port``, ``[::1]:port`` or ``:port`` (loopback).

    Raises:
        ValueError: the value is none of these.
    """
    host, colon, port = text_of(value).rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_port = re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535
    if not colon or not is_port or (":" in host and not is_bracketed):
        raise ValueError(
            f"{format_value(value)} is not an address such as 10.0.0.2:7601, host:7601 or "
            "[::1]:7601"
        )
    try:
        host.encode("idna")  # the resolver will do the same
        is_host_name = len(host) <= 255 and host.isprintable() and " " not in host
    except UnicodeError:
        is_host_name = False
    if not is_host_name:
        raise ValueError(
            f"{format_value(value)} is not an address such as host:7601: {format_value(host)} is "
            "no name"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def format_binary_nbytes(nbytes: float) -> str:
    """Return bytes with a binary unit and three digits: ``3.30 GiB``."""
    scaled_nbytes, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if scaled_nbytes < 1024:
            break
        scaled_nbytes, unit = scaled_nbytes / 1024, larger
    if scaled_nbytes >= 1e6:
        return f"{scaled_nbytes:.3g} {unit}"
    digits = 0 if unit == "B" or scaled_nbytes >= 100 else 1 if scaled_nbytes >= 10 else 2
    return f"{scaled_nbytes:.{digits}f} {unit}"


def format_duration(duration_s: float) -> str:
    """Return a duration with a suitable unit: ``350 ms``, ``3.5 s``, ``12 min``, ``3.1 h``."""
    if duration_s < 1:
        return f"{duration_s * 1e3:.0f} ms"
    if duration_s < 120:
        return f"{duration_s:.1f} s" if duration_s < 10 else f"{duration_s:.0f} s"
    if duration_s < 2 * 3600:
        return f"{duration_s / 60:.0f} min"
    if duration_s < 48 * 3600:
        return f"{duration_s / 3600:.1f} h"
    day_count = duration_s / 86400
    return f"{day_count:.1f} days" if day_count < 1e6 else f"{day_count:.2g} days"


def format_count_of(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 rank``, ``2 ranks``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
