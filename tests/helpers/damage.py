"""Runs to be damaged, ways to damage them, and the command that must notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from dejavubench.cli.process import process
from dejavubench.records import rank_file
from helpers.mutations import edit_header, edit_lines, edit_record
from helpers.synthetic_runs import AGAIN, NONE, arm, write_run

ARMS = [NONE, AGAIN, arm("mpi"), arm("host"), arm("disk")]
Edit = Callable[[Path], Any]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(process, [str(argument) for argument in arguments])


def shown(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout)[0]["rows"]


def older_run(folder: Path) -> Path:
    """Write a run as older programs did, so that only the rules can tell what is wrong with it."""
    return write_run(
        folder, ARMS, rounds=4, sealed=False, experiment={"target_overhead": 0.02, "verify": True}
    )


def header(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return lambda folder: edit_header(folder, change)


def record(kind: str, rank: int = 0, /, where: dict[str, Any] | None = None, **values: Any) -> Edit:
    return lambda folder: edit_record(
        folder, rank, kind, lambda found: found.update(values), **(where or {})
    )


def lines(change: Callable[[list[str]], list[str]], rank: int = 0) -> Edit:
    return lambda folder: edit_lines(folder, rank, change)


def copied(name: str, to: str) -> Edit:
    return lambda folder: shutil.copy(folder / name, folder / to)


def swapped(folder: Path) -> None:
    first, second, aside = folder / rank_file(0), folder / rank_file(1), folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def without(kind: str, **where: Any) -> Callable[[list[str]], list[str]]:
    """Without the first line of a kind that has these values."""

    def change(text: list[str]) -> list[str]:
        found = [json.loads(line) for line in text]
        wanted = where | {"kind": kind}
        first = next(n for n, item in enumerate(found) if wanted.items() <= item.items())
        return text[:first] + text[first + 1 :]

    return change


MPI = {"arm": "mpi@3", "iteration": 3}
