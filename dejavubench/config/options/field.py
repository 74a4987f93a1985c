"""The declaration of an option: its default, its help, and facts for the rest of the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.fields import FieldInfo

OptionGroup = Literal["Workload", "Model", "Streaming", "Measurement", "Machine"]
"""The sections of the help, in order."""

OPTIONS_CONFIG = ConfigDict(extra="forbid", frozen=True, defer_build=True)
"""Configuration of every group. Its schema is built at the first value: ``--help`` stays fast."""


FLAGS = {"resume": "--restart-request"}
"""Flags that are not spelt like their option's key, which records keep."""


def flag_of(key: str) -> str:
    """Return the flag of an option."""
    return FLAGS.get(key, "--" + key.replace("_", "-"))


class _Kept:
    """Type of :data:`KEPT`."""


KEPT = _Kept()
"""Marks an option whose value a restarted run takes over from the killed one."""


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
        value_on_restart: the value of a run that restarts a request, or KEPT.
        fixed_on_restart: whether a run that restarts a request refuses any other value.
        is_text: whether a comma is part of the value, and not the sign of a list.
        stated: whether reports name the value anyway: as a size, as an arm, or in the title. Off:
            they name any value but the default among the run's settings.
    """

    group: OptionGroup
    metavar: str
    measured: bool
    added: bool
    value_on_restart: Any
    fixed_on_restart: bool
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
    value_on_restart: Any = KEPT,
    reset_on_restart: bool = False,
    fixed_on_restart: bool = False,
    is_text: bool = False,
    stated: bool = False,
    min_length: int | None = None,
) -> Any:
    """Return a field that is also a flag. ``text`` is its help."""
    on_restart = default if reset_on_restart else value_on_restart
    info = OptionInfo(
        group=group,
        metavar=metavar,
        measured=measured,
        added=added,
        value_on_restart=on_restart,
        fixed_on_restart=fixed_on_restart,
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
    schema_extra: Any = field.json_schema_extra
    info: OptionInfo = schema_extra["option"]
    return info
