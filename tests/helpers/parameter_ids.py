"""Ids of parametrised tests, for conftest.py: they show the values which pytest would only number.

A number, a boolean or None stands beside the name of its parameter: ``rows=4``, ``far=True``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import is_dataclass

from pydantic import BaseModel

LONGEST = 60
"""Characters of one parameter's id; the rest is cut off. pytest numbers longer texts."""


def parameter_id(value: object, parameter: str) -> str | None:
    """Return the id of one parameter's value; None for a value that pytest shows itself."""
    text = _text(value)
    if text is None:
        return None
    if not text:
        text = f"no {parameter}"
    elif _needs_name(value):
        text = f"{parameter}={text}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _needs_name(value: object) -> bool:
    """Return whether a value says nothing without the name of its parameter."""
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return all(_needs_name(element) for element in value)
    return value is None or (isinstance(value, int | float) and not hasattr(value, "name"))


def _text(value: object) -> str | None:
    name = getattr(value, "name", None)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(name, str):
        return name
    if _needs_name(value) and not isinstance(value, Sequence | Set):
        return str(value)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_element_text(element)}" for key, element in value.items())
    if isinstance(value, Set):
        return " ".join(sorted(map(_element_text, value)))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return " ".join(map(_element_text, value))
    if is_dataclass(value) and not isinstance(value, type):
        return " ".join(f"{key}={_element_text(element)}" for key, element in vars(value).items())
    if type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    return None


def _element_text(value: object) -> str:
    return _text(value) or getattr(value, "__name__", None) or str(value)
