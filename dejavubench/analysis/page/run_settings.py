"""Settings, machine and commands of a run, as a page shows them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from dejavubench.analysis.facts.source_ranks import count_ranks
from dejavubench.analysis.number_texts import format_counts, format_nbytes
from dejavubench.analysis.page.contents import Fact, RunSettings
from dejavubench.records import Run
from dejavubench.records.whole_rounds import find_requested_round_count

PROGRAM = "dejavubench"

BYTE_KEYS = ("memory_available",)
"""Keys in bytes whose names do not say so."""


def collect_settings(run: Run, option_meanings: Mapping[str, str]) -> RunSettings:
    """Return the settings of a run.

    Args:
        option_meanings: the help of each option, by its key.
    """
    header = run.header
    options = [
        Fact(key, option_meanings.get(key, ""), _format_option(run, key, value))
        for key, value in header.experiment.items()
    ]
    commands = [
        _make_command_line(
            run_session.session.command if run_session.session else header.command,
            count_ranks(run),
        )
        for run_session in run.sessions
    ]
    files = [argument for argument in header.command if PurePath(argument).suffix == ".toml"]
    return RunSettings(
        flags=header.settings,
        options=options,
        commands=list(dict.fromkeys(commands)),
        configuration=files[0] if files else None,
        machine=list(_list_facts(header.facts)),
    )


def _format_option(run: Run, key: str, value: Any) -> str:
    """Return an option's value; the rounds are those that all sessions were asked for."""
    text = _format_value(key, value)
    if key != "rounds":
        return text
    round_counts = [
        find_requested_round_count(run.sessions, point.id)
        for point in run.header.points
        if point.skipped is None
    ]
    if set(round_counts) <= {run.header.rounds}:
        return text
    return f"{format_counts(round_counts)} by run --continue, {text} at first"


def _make_command_line(arguments: Sequence[str], process_count: int) -> str:
    """Return a command line that starts the program by its name, under a launcher."""
    return shlex.join(["mpirun", "-n", str(process_count), PROGRAM, *arguments[1:]])


def _list_facts(model: BaseModel, prefix: str = "") -> Iterator[Fact]:
    """Yield the keys that have a value, with their meanings; unknown keys of newer programs too."""
    for key, field in type(model).model_fields.items():
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            yield from _list_facts(value, f"{key}.")
        elif value not in (None, "", [], {}):
            yield Fact(
                f"{prefix}{key}", _as_sentence(field.description or ""), _format_value(key, value)
            )
    for key, value in (model.model_extra or {}).items():
        yield Fact(f"{prefix}{key}", "", _format_value(key, value))


def _as_sentence(text: str) -> str:
    # A value in bytes is shown with a unit that suits it.
    return (text[:1].upper() + text[1:]).removesuffix(", in bytes")


def _format_value(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key.endswith("_nbytes") or key in BYTE_KEYS):
        return format_nbytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(name, entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format_value(key, entry) for entry in value) or "–"
    return " ".join(str(value).split())
