"""For tests of damaged records: runs to be damaged, and the command that must notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from dejavubench.records import name_rank_file
from helpers import cli_calls
from helpers.mutations import edit_header, edit_lines, edit_record
from helpers.synthetic_runs import AGAIN, NONE, arm_of, write_run

ARMS = [NONE, AGAIN, arm_of("mpi"), arm_of("host"), arm_of("disk")]
Edit = Callable[[Path], Any]


def process_run(*arguments: object) -> Result:
    return cli_calls.call("process", *arguments)


def rows_of(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout)[0]["rows"]


def older_run(folder: Path) -> Path:
    """Write a run as older programs did, so that only the rules can tell what is wrong with it."""
    return write_run(
        folder, ARMS, rounds=4, sealed=False, experiment={"target_overhead": 0.02, "verify": True}
    )


def header_edit(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return lambda folder: edit_header(folder, change)


def record_edit(
    kind: str, rank: int = 0, /, place: dict[str, Any] | None = None, **values: Any
) -> Edit:
    return lambda folder: edit_record(
        folder, rank, kind, lambda entry: entry.update(values), **(place or {})
    )


def lines_edit(change: Callable[[list[str]], list[str]], rank: int = 0) -> Edit:
    return lambda folder: edit_lines(folder, rank, change)


def copy_file(name: str, copy: str) -> Edit:
    return lambda folder: shutil.copy(folder / name, folder / copy)


def swap_rank_files(folder: Path) -> None:
    path_of_rank_0, path_of_rank_1, spare_path = (
        folder / name_rank_file(0),
        folder / name_rank_file(1),
        folder / "aside",
    )
    path_of_rank_0.rename(spare_path)
    path_of_rank_1.rename(path_of_rank_0)
    spare_path.rename(path_of_rank_1)


def drop_record(kind: str, **place: Any) -> Callable[[list[str]], list[str]]:
    """Return a change that leaves out the first line of a kind with these values."""

    def change(text: list[str]) -> list[str]:
        entries = [json.loads(line) for line in text]
        expected = place | {"kind": kind}
        line_index = next(n for n, entry in enumerate(entries) if expected.items() <= entry.items())
        return text[:line_index] + text[line_index + 1 :]

    return change


MPI = {"arm": "mpi@3", "iteration": 3}
