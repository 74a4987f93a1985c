"""The declaration of an option: its default, its help, and facts for the rest of the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

OptionGroup = Literal["Workload", "Model", "Streaming", "Measurement", "Machine"]
"""The sections of the help, in order."""

PURE = ConfigDict(extra="forbid", frozen=True, defer_build=True)
"""Configuration of every group. Its schema is built at the first value: ``--help`` stays fast."""


FLAGS = {"resume": "--restart-request"}
"""Flags that are not spelt like their option's key, which records keep."""


def flag_of(key: str) -> str:
    """Return the flag of an option."""
    return FLAGS.get(key, "--" + key.replace("_", "-"))


class _Kept:
    """The value of a resumed run is that of the killed one."""


KEPT = _Kept()


@dataclass(frozen=True)
class OptionInfo:
    """The notes on an option.

    Attributes:
        group: the section of the help.
        metavar: how the help names a value; empty for a switch.
        measured: whether another value is another measurement. Off: the experiment's hash leaves it
            out.
        added: whether the first hashes were made before there was this option. The hash leaves its
            default out, so that such an experiment keeps its hash.
        when_resumed: the value of a run that resumes one request, or KEPT.
        fixed_when_resumed: whether a resumed run refuses any other value.
        is_text: whether a comma is part of the value, and not the sign of a list.
        stated: whether reports name the value anyway: as a size, as an arm, or in the title. Off:
            they name any value but the default among the run's settings.
    """

    group: OptionGroup
    metavar: str
    measured: bool
    added: bool
    when_resumed: Any
    fixed_when_resumed: bool
    is_text: bool
    stated: bool


def option(
    group: OptionGroup,
    default: Any,
    metavar: str,
    text: str,
    *,
    measured: bool = True,
    added: bool = False,
    when_resumed: Any = KEPT,
    reset_when_resumed: bool = False,
    fixed_when_resumed: bool = False,
    is_text: bool = False,
    stated: bool = False,
    min_length: int | None = None,
) -> Any:
    """Return a field that is also a flag. ``text`` is its help."""
    resumed = default if reset_when_resumed else when_resumed
    info = OptionInfo(
        group=group,
        metavar=metavar,
        measured=measured,
        added=added,
        when_resumed=resumed,
        fixed_when_resumed=fixed_when_resumed,
        is_text=is_text,
        stated=stated,
    )
    return Field(
        default,
        description=text,
        json_schema_extra={"option": info},  # type: ignore[dict-item]  # read by info_of() alone
        validate_default=True,
        min_length=min_length,
    )


def info_of(field: FieldInfo) -> OptionInfo:
    """Return the notes of :func:`option` on a field."""
    extra: Any = field.json_schema_extra
    info: OptionInfo = extra["option"]
    return info
