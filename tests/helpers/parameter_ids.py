"""Ids of parametrised tests that show the values which pytest would only number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass

LONGEST = 60
"""Characters of one parameter's id; the rest is cut off. pytest numbers longer texts."""


def parameter_id(value: object) -> str | None:
    """Return the id of one parameter; None for a value that pytest shows itself."""
    text = _text(value)
    return text if text is None or len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _text(value: object) -> str | None:
    name = getattr(value, "name", None)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(name, str):
        return name
    if isinstance(value, Mapping):
        return " ".join(f"{key}={element}" for key, element in value.items())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return " ".join(_text(element) or str(element) for element in value)
    if is_dataclass(value):
        return " ".join(f"{key}={element}" for key, element in vars(value).items())
    if type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    return None
