"""From the paths of a command line to runs and text logs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dejavubench.records import RUN_FILE, RecordError, Run, read_run

DEPTH = 3
"""How many folders below a given one run folders are looked for."""


def find(paths: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Runs and text logs behind ``paths``: run folders, folders of run folders, files. Each once, in order.

    Raises:
        RecordError: a path does not exist, holds no run, or a run cannot be read.
    """
    folders: dict[Path, Path] = {}
    logs: dict[Path, Path] = {}
    for path in paths:
        if path.is_file():
            logs.setdefault(path.resolve(), path)
        elif path.is_dir():
            for folder in _run_folders(path):
                folders.setdefault(folder.resolve(), folder)
        else:
            raise RecordError(f"{path} does not exist")
    return [read_run(folder) for folder in folders.values()], list(logs.values())


def _run_folders(folder: Path) -> list[Path]:
    if (folder / RUN_FILE).exists():
        return [folder]
    found = sorted(file.parent for depth in range(1, DEPTH + 1) for file in folder.glob("*/" * depth + RUN_FILE))
    if not found:
        raise RecordError(f"{folder} holds no run: neither it nor a folder in it has a {RUN_FILE}")
    return found
