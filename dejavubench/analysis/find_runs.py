"""Finding runs and text logs by the paths of a command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dejavubench.analysis.integrity import read_checked
from dejavubench.records import RUN_FILE, RecordError, Run, rank_of, session_of
from dejavubench.records.archives import unpack_advice

GIVE_A_RUN = "Give a folder that run has written, or the folder above such folders"
"""Advice where a path leads to no run."""

MOST_LEVELS = 3
"""Number of levels below a given folder at which run folders are looked for."""


@dataclass
class FoundRuns:
    """Runs and logs behind the paths of a command line, each once and in order.

    Attributes:
        bad: a message for each run or path that cannot be used. It names the path.
    """

    runs: list[Run] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def find(paths: Iterable[Path]) -> FoundRuns:
    """Find run folders, folders of run folders, and files; a damaged run hides no other."""
    found_runs = FoundRuns()
    folders: dict[str, Path] = {}
    logs: dict[str, Path] = {}
    for path in paths:
        try:
            path_kind = _kind_of(path)
            if path_kind == "folder":
                for folder in run_folders(path):
                    # By real path: a run that is named twice, or through a link, is shown once.
                    folders.setdefault(os.path.realpath(folder), folder)
            else:
                logs.setdefault(os.path.realpath(path), path)
        except RecordError as error:
            found_runs.bad.append(str(error))
        except OSError as error:  # a folder that may not be looked into
            found_runs.bad.append(f"{error.filename or path}: {error.strerror or error}")
    for folder in folders.values():
        try:
            found_runs.runs.append(read_checked(folder))
        except RecordError as error:
            found_runs.bad.append(str(error))
    found_runs.logs = list(logs.values())
    return found_runs


def _kind_of(path: Path) -> str:
    """Return ``folder`` or ``log``.

    Raises:
        RecordError: there is nothing, or it is an archive, or a file of a run instead of the run's
            folder.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist. {GIVE_A_RUN}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    name = path.name
    if name == RUN_FILE or rank_of(name) is not None or session_of(name) is not None:
        raise RecordError(
            f"{path} is one of the files of a run. Give the run's folder instead: {path.parent}"
        )
    if (advice := unpack_advice(path)) is not None:
        raise RecordError(advice)
    return "log"


def run_folders(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run's, else the folders of runs below it, sorted.

    Raises:
        RecordError: there is none.
    """
    if (folder / RUN_FILE).is_symlink() or (folder / RUN_FILE).exists():
        return [folder]
    folders = sorted(
        file.parent
        for depth in range(1, MOST_LEVELS + 1)
        for file in folder.glob("*/" * depth + RUN_FILE)
    )
    if not folders:
        raise RecordError(
            f"{folder} holds no run: no {RUN_FILE} in it or in a folder below. {GIVE_A_RUN}"
        )
    return folders
