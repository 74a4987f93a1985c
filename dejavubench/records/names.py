"""Names of the files in a run's folder."""

from __future__ import annotations

import re

RUN_FILE = "run.json"

_RANK_FILE = re.compile(r"rank-([0-9]{4,9})\.jsonl")
_CHUNK_FILE = re.compile(r"chunks-([0-9]{4,9})\.jsonl")


def rank_file(rank: int) -> str:
    return f"rank-{rank:04d}.jsonl"


def rank_of(name: str) -> int | None:
    """Return the rank whose file has this name; None if the name is not that of a rank's file."""
    match = _RANK_FILE.fullmatch(name)
    return int(match[1]) if match and rank_file(int(match[1])) == name else None


def chunk_file(rank: int) -> str:
    """Return the name of the file with the times of a rank's chunks."""
    return f"chunks-{rank:04d}.jsonl"


def chunk_file_rank(name: str) -> int | None:
    """Return the rank whose chunks the file has; None if the name is not that of such a file."""
    match = _CHUNK_FILE.fullmatch(name)
    return int(match[1]) if match and chunk_file(int(match[1])) == name else None


def first_exit_file(lowest: int) -> str:
    """Return the name of the :class:`FirstExit` file of the host with this lowest rank."""
    return f"first-exit-{lowest:04d}.json"


def text_log(point: str, arm: str, several_points: bool) -> str:
    """Return the name of the file with an arm's text lines."""
    name = arm.replace("/", "-")
    return f"{point}-{name}.log" if several_points else f"{name}.log"
