"""Names of the files in a run's folder.

A session that goes on with a run has a number from 2 on, which its files' names end in. The first
session's files have no number.
"""

from __future__ import annotations

import re

RUN_FILE = "run.json"
"""File that describes a run and its first session."""

_RANK_FILE_PATTERN = re.compile(
    r"(rank|chunks|conditions)-([0-9]{4,9})(?:\.s([2-9]|[1-9][0-9]{1,3}))?\.jsonl"
)
_SESSION_FILE_PATTERN = re.compile(r"run\.s([2-9]|[1-9][0-9]{1,3})\.json")

_FIRST_EXIT_PATTERN = re.compile(r"first-exit-[0-9]+(?:\.s([2-9]|[1-9][0-9]{1,3}))?\.json")

MOST_SESSIONS = 9999
"""Largest number of a session that file names hold."""


def _suffix_of(session: int) -> str:
    return "" if session == 1 else f".s{session}"


def name_session_file(session: int) -> str:
    """Return the name of the file that describes a session, which is ``run.json`` for the first."""
    return f"run{_suffix_of(session)}.json"


def session_of(name: str) -> int | None:
    """Return the session that a file describes; None if it is the first's, or no such file."""
    match = _SESSION_FILE_PATTERN.fullmatch(name)
    return int(match[1]) if match else None


def name_rank_file(rank: int, session: int = 1) -> str:
    """Return the name of a rank's file of records in one session."""
    return f"rank-{rank:04d}{_suffix_of(session)}.jsonl"


def rank_of(name: str) -> int | None:
    """Return the rank whose file has this name; None if the name is not that of a rank's file."""
    return _parse_rank_and_session(name, "rank")[0]


def session_of_rank_file(name: str) -> int:
    """Return the session of a rank's file."""
    return _parse_rank_and_session(name, "rank")[1]


def name_chunk_file(rank: int, session: int = 1) -> str:
    """Return the name of the file with the times of a rank's chunks."""
    return f"chunks-{rank:04d}{_suffix_of(session)}.jsonl"


def rank_of_chunk_file(name: str) -> int | None:
    """Return the rank whose chunks the file has; None if the name is not that of such a file."""
    return _parse_rank_and_session(name, "chunks")[0]


def session_of_chunk_file(name: str) -> int:
    """Return the session of a file with the times of chunks."""
    return _parse_rank_and_session(name, "chunks")[1]


def name_conditions_file(rank: int, session: int = 1) -> str:
    """Return the name of the file that a host's first rank writes."""
    return f"conditions-{rank:04d}{_suffix_of(session)}.jsonl"


def session_of_conditions_file(name: str) -> int | None:
    """Return the session of a file of conditions; None if the name is not that of such a file."""
    rank, session = _parse_rank_and_session(name, "conditions")
    return None if rank is None else session


def name_first_exit_file(lowest_rank: int, session: int = 1) -> str:
    """Return the name of the :class:`~dejavubench.records.ranks.FirstExit` file of one host.

    Args:
        lowest_rank: the lowest rank of the host.
    """
    return f"first-exit-{lowest_rank:04d}{_suffix_of(session)}.json"


def session_of_first_exit_file(name: str) -> int | None:
    """Return the session of a FirstExit file; None if the name is not that of such a file."""
    match = _FIRST_EXIT_PATTERN.fullmatch(name)
    return int(match[1] or 1) if match else None


def name_text_log_file(
    point_id: str, arm_name: str, has_several_points: bool, session: int = 1
) -> str:
    """Return the name of the file with an arm's text lines."""
    name = arm_name.replace("/", "-") + _suffix_of(session)
    return f"{point_id}-{name}.log" if has_several_points else f"{name}.log"


def name_tokens_file(session: int = 1) -> str:
    """Return the name of the file with the requests and the tokens generated without streaming."""
    return f"tokens{_suffix_of(session)}.jsonl"


def _parse_rank_and_session(name: str, kind: str) -> tuple[int | None, int]:
    match = _RANK_FILE_PATTERN.fullmatch(name)
    if match is None or match[1] != kind:
        return None, 1
    rank, session = int(match[2]), int(match[3] or 1)
    # Only one spelling of a number is a name: 0001, but not 00001.
    return (rank, session) if name == f"{kind}-{rank:04d}{_suffix_of(session)}.jsonl" else (None, 1)
