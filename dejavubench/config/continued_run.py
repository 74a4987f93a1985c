"""A run that another session goes on with: what is missing in its folder, and its experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dejavubench.config.experiment import OPTIONS, Experiment
from dejavubench.config.options.field import flag_of
from dejavubench.errors import UsageError
from dejavubench.records import (
    Ceiling,
    Iteration,
    PointStart,
    RankInfo,
    RecordError,
    Run,
    RunHeader,
    Verification,
)
from dejavubench.records.line_file import number_lines, parse_record
from dejavubench.records.names import name_tokens_file
from dejavubench.records.reading import find_largest_numbers, read_sessions
from dejavubench.records.whole_rounds import (
    find_requested_round_count,
    join_sessions,
    list_missing_rounds,
    list_whole_arms,
    list_whole_rounds,
    trim_sessions,
)

CHANGEABLE_OPTIONS = ("ceilings", "peer", "rank_timeout", "rounds")
"""Options that a further session may give anew: no single round depends on them."""


class _Request(BaseModel):
    """Keys of a line of ``tokens.jsonl`` that a further session reads."""

    point: str
    ubatch: int
    request: int
    tokens: list[int]


_REQUEST = TypeAdapter(_Request)

CheckSessions = Callable[[Sequence[Run]], None]
"""Raises RecordError if the end of a further session could not read these earlier ones."""


@dataclass(frozen=True, kw_only=True)
class ContinuedRun:
    """The run that a further session goes on with.

    Attributes:
        folder: the folder of the run, as an absolute path.
        header: what its ``run.json`` says.
        starts: what is missing, in the order of the points; empty if nothing is.
        earlier_iterations: rank 0's records of the rounds of earlier sessions that count, by point.
        hosts: host of each rank in earlier sessions.
        sessions: numbers of the earlier sessions.
        tokens: tokens that earlier sessions generated without streaming, by point and request.
        round_count: rounds that its points shall have in all sessions together; the most of any
            point.
        added_round_count: the same number, if this session was asked for more than earlier ones.
    """

    folder: Path
    header: RunHeader
    starts: tuple[PointStart, ...]
    earlier_iterations: Mapping[str, tuple[Iteration, ...]]
    hosts: Mapping[int, str]
    sessions: tuple[int, ...]
    tokens: Mapping[str, Mapping[tuple[int, int], tuple[int, ...]]]
    round_count: int
    added_round_count: int | None = None


def find_continued_run(
    folder: Path,
    only_points: Sequence[str] | None,
    check: CheckSessions | None = None,
    round_count: int | None = None,
    ceilings: bool = False,
) -> ContinuedRun:
    """Return the run of a folder, and what is missing there.

    Args:
        only_points: ids of points; None: all of them.
        check: a further check of the run, which is given what was read of it.
        round_count: rounds that each of these points shall have; None: as many as before.
        ceilings: a point without ceilings gets a round more, as they are measured after a round.

    Raises:
        UsageError: no session can go on with it; the message says why.
    """
    try:
        sessions = read_sessions(folder)
        # Numbers of torn lines count, too: no number may have two meanings.
        unfinished_ids = _list_points_without_ceilings(sessions) if ceilings else ()
        starts = list_missing_rounds(
            sessions, find_largest_numbers(folder), only_points, round_count, unfinished_ids
        )
        round_counts = _count_rounds_of_points(sessions, only_points)
        tokens = _read_tokens(folder, [run.number for run in sessions])
    except (RecordError, OSError) as error:
        raise UsageError(f"--continue: {error}") from None
    header = sessions[0].header
    check_points(only_points, [point.id for point in header.points])
    if header.experiment.get("resume"):
        raise UsageError(
            f"--continue: {folder} went on with one request of {header.experiment['resume']}, "
            "which has no rounds. Use --restart-request to go on with that request"
        )
    _refuse_wrong_bytes(folder, sessions)
    if check is not None:
        try:
            check(sessions)
        except RecordError as error:
            raise UsageError(f"--continue: {error}") from None
    if round_count is not None and round_counts:
        _refuse_fewer_rounds(folder, round_counts, round_count)
    joined_run = join_sessions(sessions)
    return ContinuedRun(
        folder=folder.absolute(),
        header=header,
        starts=tuple(starts),
        earlier_iterations={
            point.id: _list_whole_iterations(joined_run, sessions, point.id)
            for point in header.points
        },
        hosts={rank: info.host for run in sessions for rank, info in run.records_of(RankInfo)},
        sessions=tuple(run.number for run in sessions),
        tokens=tokens,
        round_count=round_count or max(round_counts.values(), default=header.rounds),
        added_round_count=round_count,
    )


def _list_points_without_ceilings(sessions: Sequence[Run]) -> frozenset[str]:
    """Return the ids of the points for which no session has measured a ceiling."""
    measured_ids = {ceiling.point for run in sessions for _, ceiling in run.records_of(Ceiling)}
    # A ceiling of older records names no point: it is of the whole run.
    point_ids = {point.id for point in sessions[0].header.points}
    return frozenset() if None in measured_ids else frozenset(point_ids - measured_ids)


def _count_rounds_of_points(
    sessions: Sequence[Run], only_points: Sequence[str] | None
) -> dict[str, int]:
    """Return the rounds that each point has or shall have, by its id; of skipped points none."""
    header = sessions[0].header
    trimmed_sessions = trim_sessions(sessions)
    return {
        point.id: max(
            find_requested_round_count(sessions, point.id),
            # With --precision a point may have more rounds than were asked for.
            len(
                list_whole_rounds(
                    trimmed_sessions, point.id, list_whole_arms(header, point.id, sessions)
                )
            ),
        )
        for point in header.points
        if not point.skipped and (only_points is None or point.id in only_points)
    }


def _refuse_fewer_rounds(folder: Path, round_counts: Mapping[str, int], round_count: int) -> None:
    """Refuse a number of rounds that would leave out some that were measured or asked for."""
    point_id, largest_round_count = max(
        round_counts.items(), key=lambda id_and_rounds: id_and_rounds[1]
    )
    if round_count < largest_round_count:
        raise UsageError(
            f"--rounds {round_count} is fewer than the {largest_round_count} rounds that "
            f"{point_id} of {folder} has or was asked for, and rounds can only be added. Give "
            f"{largest_round_count} or more, or leave --rounds out"
        )


def _refuse_wrong_bytes(folder: Path, sessions: Sequence[Run]) -> None:
    for run in sessions:
        for _, check in run.records_of(Verification):
            if not check.ok or check.tokens_equal is False:
                raise UsageError(
                    f"--continue: verification failed in {folder}: {check.point} {check.arm}, "
                    f"iteration {check.iteration}. No more rounds can fix that: start a new run"
                )


def _list_whole_iterations(
    joined_run: Run, sessions: Sequence[Run], point_id: str
) -> tuple[Iteration, ...]:
    arms = list_whole_arms(joined_run.header, point_id, sessions)
    rounds = set(list_whole_rounds([joined_run], point_id, arms))
    return tuple(
        iteration
        for _, iteration in joined_run.records_of(Iteration)
        if iteration.point == point_id and iteration.round in rounds
    )


def _read_tokens(
    folder: Path, sessions: Sequence[int]
) -> dict[str, dict[tuple[int, int], tuple[int, ...]]]:
    """Return the new tokens of each request that earlier sessions have written whole.

    Raises:
        RecordError: a line other than a torn last one cannot be read.
    """
    tokens: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {}
    for session_number in sessions:
        path = folder / name_tokens_file(session_number)
        for line_number, line in number_lines(path) if path.exists() else ():
            request = parse_record(path, line_number, line, _REQUEST)
            if request is not None:
                tokens_of_point = tokens.setdefault(request.point, {})
                key = request.ubatch, request.request
                tokens_of_point.setdefault(key, tuple(request.tokens))
    return tokens


def check_points(only_points: Sequence[str] | None, existing_ids: Sequence[str]) -> None:
    """Refuse ids of points that a run does not have.

    Raises:
        UsageError: there is such an id; the message names those that exist.
    """
    for point_id in only_points or ():
        if point_id not in existing_ids:
            id_range = (
                existing_ids[0]
                if len(existing_ids) == 1
                else f"{existing_ids[0]} to {existing_ids[-1]}"
            )
            raise UsageError(f"--points: there is no point {point_id!r}; this run has {id_range}")


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuse flags that would make a further session another measurement.

    Raises:
        UsageError: there is such a flag.
    """
    for key in overrides:
        if key not in CHANGEABLE_OPTIONS:
            *first_flags, last_flag = map(flag_of, CHANGEABLE_OPTIONS)
            raise UsageError(
                f"{flag_of(key)} cannot be combined with --continue: the settings are those of the "
                f"run. Only {', '.join(first_flags)} and {last_flag} may be given anew. Drop "
                f"{flag_of(key)}, or start a new run"
            )


def values_of(continued_run: ContinuedRun) -> dict[str, Any]:
    """Return the options of a run, without those that this program no longer has."""
    return {
        key: value
        for key, value in continued_run.header.experiment.items()
        if key in Experiment.model_fields and key in OPTIONS
    }
