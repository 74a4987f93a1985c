"""How the values of an experiment's fields are read, for pydantic: any object in, a sane value out, or ValueError.

The message is one line that shows the value. Fields whose value depends on this machine are read in
:mod:`dejavubench.config.experiment`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator

from dejavubench import units, values
from dejavubench.config.points import Mode
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.values import shown

UNLIMITED = "unlimited"
"""A link that nothing slows."""

COLDEST, HOTTEST = 1e-3, 1e3
"""Bounds of a temperature above 0. Logits divided by much less are beyond fp32."""

LEAST_TOP_P = 1e-6
LONGEST_NOTE = 10_000
MOST_ROUNDS = 1_000_000


def as_list(value: Any) -> Any:
    """A TOML list, a comma-separated string or one value, as a tuple without repeats."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not items or "" in items:
        raise ValueError("name at least one, and none of them empty")
    if any(isinstance(item, bool) for item in items):
        raise ValueError("true and false are no values of this list")
    return _no_twins(items)


def _no_twins(items: tuple[Any, ...]) -> tuple[Any, ...]:
    texts = [item if isinstance(item, str) else shown(item) for item in items]
    if len(set(texts)) != len(texts):
        listed = ", ".join(texts)
        raise ValueError(
            f"{listed if len(listed) <= values.LONGEST else shown(listed)}: something is named twice"
        )
    return items


def as_counts(value: Any) -> Any:
    """Counts are compared as numbers: ``1,01`` names one twice."""
    return _no_twins(tuple(map(values.whole, as_list(value))))


def as_levels(value: Any) -> Any:
    levels = tuple(values.text_of(item) or item for item in as_list(value))
    for level in levels:
        if level not in tuple(LEVELS):
            raise ValueError(f"there is no level {shown(level)}; levels are {', '.join(LEVELS)}")
    return levels


def as_modes(value: Any) -> Any:
    modes = as_list(value) if value != "" else ("",)
    known = [mode for mode in get_args(Mode) if not mode.startswith("swap-")]  # these are --swap's
    for mode in modes:
        if mode not in known:
            what = f"there is no destination {shown(mode)}" if mode else "no destination is named"
            raise ValueError(f"{what}; choose one or more of {', '.join(known)}")
    return modes


def as_peers(value: Any) -> Any:
    peers = () if value in ((), []) else as_list(value)
    for peer in peers:
        units.address(peer)
    return peers


def as_stores(value: Any) -> Any:
    return () if value in ((), []) else as_list(value)


def as_link(value: Any) -> Any:
    if value not in (None, UNLIMITED):
        units.rate(value)
    return value


def as_path(value: Any) -> Any:
    """The value itself: pydantic makes the Path, from JSON too."""
    if value is not None:
        values.path(value)
    return value


def as_temperature(value: Any) -> float:
    found = values.number(value)
    if found != 0 and not COLDEST <= found <= HOTTEST:
        raise ValueError(
            f"must be 0 (the most likely token) or from {COLDEST:g} to {HOTTEST:g}, not {shown(value)}"
        )
    return found


def as_top_p(value: Any) -> Any:
    if value is None:
        return None
    found = values.number(value)
    if not LEAST_TOP_P <= found <= 1:
        raise ValueError(f"must be from {LEAST_TOP_P:g} to 1, not {shown(value)}")
    return found


def as_text(value: Any) -> Any:
    if isinstance(value, str) and any(
        ord(character) < 32 and character not in "\n\t" for character in value
    ):
        raise ValueError(f"{shown(value)} holds a control character")
    if isinstance(value, str) and len(value) > LONGEST_NOTE:
        raise ValueError(f"{shown(value)} is longer than {LONGEST_NOTE} characters")
    if isinstance(value, str) and any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise ValueError(f"{shown(value)} is not in UTF-8")
    return value


def unless_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``none`` as a flag's value takes back what the file says."""
    return lambda value: None if value in (None, "none") else read(value)


# ---- types of fields ----

Count = Annotated[int, BeforeValidator(values.whole)]
Counts = Annotated[tuple[int, ...], BeforeValidator(as_counts)]
MaybeCount = Annotated[int | None, BeforeValidator(unless_none(values.whole))]
Folder = Annotated[Path | None, BeforeValidator(as_path)]
Rounds = Annotated[int, BeforeValidator(partial(values.whole, most=MOST_ROUNDS))]
