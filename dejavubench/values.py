"""Single values from flags, TOML and JSON, read strictly.

Each reader takes any object. It returns a valid value, or raises ValueError with one line that
shows the value.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

LARGEST_COUNT = 2**31 - 1
"""The largest count."""

LONGEST_VALUE = 60
"""The most characters of a value in a message."""

NAME_NBYTES = 255
"""The longest name of a file or folder on Linux, in bytes."""

PATH_NBYTES = 4095
"""The longest path that Linux opens, in bytes."""

_WHOLE_PATTERN = re.compile(r"[ \t]*([+-]?[0-9]+)[ \t]*")
_NUMBER_PATTERN = re.compile(r"[ \t]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t]*")
_MOST_DIGITS = 20
"""No number here has more digits. Python reads and prints at most 4,300."""


def format_value(value: object) -> str:
    """Return a value as messages show it: on one line, shortened."""
    try:
        text = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    except RecursionError:
        return "a value nested too deeply"
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[: LONGEST_VALUE // 2]}… ({len(text)} characters)"


def parse_count(value: object, least: int = 1, most: int = LARGEST_COUNT) -> int:
    """Return a whole number from ``least`` to ``most``, given as an integer or ASCII digits.

    Raises:
        ValueError: the value is no whole number, or out of range.
    """
    if isinstance(value, str) and (match := _WHOLE_PATTERN.fullmatch(value)):
        # A longer number need not be exact: it is out of range, on the side of its sign.
        digits = match[1]
        count = (
            int(digits)
            if len(digits) <= _MOST_DIGITS
            else (-1 if digits[0] == "-" else 1) * 10**_MOST_DIGITS
        )
    # In Python true is an integer.
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise ValueError(f"must be a whole number, not {format_value(value)}")
    if count < least:
        raise ValueError(f"must be {_describe_bound(least)}, not {format_value(value)}")
    if count > most:
        raise ValueError(f"must be at most {most}, not {format_value(value)}")
    return count


def _describe_bound(least: int) -> str:
    return "greater than 0" if least == 1 else f"at least {least}"


def parse_number(value: object) -> float:
    """Return a finite number, given as an integer, a float, or text such as ``1e-3``.

    Raises:
        ValueError: the value is no finite number.
    """
    converted: float | None = None
    if isinstance(value, str) and len(value) < 100 and (match := _NUMBER_PATTERN.fullmatch(value)):
        converted = float(match[1])
    elif isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300
    ):
        converted = float(value)
    if converted is None or not abs(converted) < float("inf"):
        raise ValueError(f"must be a number, not {format_value(value)}")
    return converted


def text_of(value: object) -> str:
    """Return a string or number as text without blanks around it; empty for anything else."""
    if isinstance(value, str):
        return value.strip(" \t")
    if isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300
    ):
        return str(value)
    return ""


def parse_path(value: object) -> Path:
    """Return a path that the system could open.

    Raises:
        ValueError: the value is no path, is not UTF-8, is too long, or has control characters.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"must be a path, not {format_value(value)}")
    text = str(value)
    if not text.strip():
        raise ValueError(f"must be a path, not {format_value(text)}")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError(
            f"{format_value(text)} is not a path: it has a control character, such as a line break"
        )
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{format_value(text)} is not UTF-8, so records cannot hold it") from None
    if len(encoded) > PATH_NBYTES or max(map(len, encoded.split(os.sep.encode()))) > NAME_NBYTES:
        raise ValueError(
            f"{format_value(text)}: File name too long: a name has at most {NAME_NBYTES} bytes, "
            f"a path {PATH_NBYTES}"
        )
    return Path(value)


def format_one_line(text: str, most: int = 300) -> str:
    """Return text of another program on one line, shortened to ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
