"""Which rounds of a run count, and which are missing.

A round, or a warm-up, is one iteration of every arm. It is **whole** if every rank has written all
its records of every arm. Arms that were skipped or have failed are not needed.

Of each session these records count, once another session has followed:

- all of them, if the session ended well;
- those up to its last whole iteration, if it was cut short. The next session measures the rest.

So every round that counts has all its arms, and has them from one session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dejavubench.records.header import RunHeader
from dejavubench.records.iterations import (
    HandoverAtSink,
    Iteration,
    IterationRecord,
    Microbatch,
    SinkActivity,
    Swapping,
    Verification,
)
from dejavubench.records.ranks import ArmFailure, End, PhaseMark, RankFailure, RankInfo, Skipped
from dejavubench.records.run_logs import IterationPlace, RankLog, Run
from dejavubench.records.schema import Record
from dejavubench.records.sessions import PointStart

NO_PLACE: IterationPlace = (-1, -1)
"""The last place of a session that has no whole iteration."""

RECORDS_OF_LAST_SESSION = (RankInfo, RankFailure, End)
"""Records that tell of a process; of several processes of a rank the last one counts."""


@dataclass(frozen=True)
class LargestNumbers:
    """Highest iteration and round that any file of a run names at a point; −1 if none does.

    The next session numbers its own from there on, so that no number is used twice.
    """

    iteration: int = -1
    round: int = -1


# ---- which iterations are whole ----


def list_whole_arms(header: RunHeader, point_id: str, sessions: Iterable[Run]) -> list[str]:
    """Return the arms of a point's whole rounds: all that were neither skipped nor failed."""
    arms_given_up = {
        (record.point, record.arm)
        for run in sessions
        for log in run.ranks
        for record in log.records
        if isinstance(record, Skipped | ArmFailure)
    }
    return [arm.name for arm in header.arms if (point_id, arm.name) not in arms_given_up]


def find_whole_iterations(run: Run, sessions: Iterable[Run]) -> dict[str, list[int]]:
    """Return the numbers of the whole iterations of one session by point, warm-ups included.

    Args:
        sessions: all sessions of the run. An arm that failed in one of them is needed in none.
    """
    header = run.header
    counts_by_rank = {log.rank: Counter(_list_record_keys(log)) for log in run.ranks}
    ranks = range(_count_ranks(header))
    all_sessions = list(sessions)
    whole_by_point: dict[str, list[int]] = {}
    for point in header.points:
        arms = list_whole_arms(header, point.id, all_sessions)
        # Rank 0 takes part in every iteration, so what it has no record of was not measured.
        measured_iterations = {key[2] for key in counts_by_rank.get(0, ()) if key[0] == point.id}
        whole_by_point[point.id] = [
            iteration
            for iteration in sorted(measured_iterations)
            if arms
            and all(
                counts_by_rank.get(rank, Counter())[point.id, arm, iteration]
                == _count_expected(header, rank, arm)
                for rank in ranks
                for arm in arms
            )
        ]
    return whole_by_point


def _count_ranks(header: RunHeader) -> int:
    point = header.points[0]
    # Records of the first programs do not name the number of ranks.
    return header.facts.ranks or point.tensor_para_size * point.pipeline_para_size


def _list_record_keys(log: RankLog) -> Iterator[tuple[str, str, int]]:
    """Yield point, arm and iteration of each record that a whole iteration needs."""
    needed_records = (Microbatch, Iteration, SinkActivity, Swapping, HandoverAtSink)
    for record in log.records:
        if isinstance(record, needed_records) or (isinstance(record, Verification) and record.ok):
            yield record.point, record.arm, record.iteration


def _count_expected(header: RunHeader, rank: int, arm_name: str) -> int:
    """Return the number of records of a whole iteration that a rank writes for an arm."""
    point = header.points[0]
    if rank >= point.tensor_para_size * point.pipeline_para_size:  # a sink
        # Its activity and, if it goes on with the requests, the hand-over.
        return 1 + bool(point.handed_over)
    is_swapping = any(arm.name == arm_name and arm.is_swapping for arm in header.arms)
    # Rank 0 also writes the iteration's own record, and the outcome of its verification.
    own_records = 1 + bool(header.experiment.get("verify")) if rank == 0 else 0
    return point.pipeline_para_size + is_swapping + own_records


# ---- several sessions as one run ----


def join_sessions(sessions: Sequence[Run]) -> Run:
    """Return all sessions of a run as one, with the records that count."""
    if len(sessions) == 1:
        return sessions[0]
    trimmed_sessions = trim_sessions(sessions)
    last_session = trimmed_sessions[-1]
    # Of all sessions: a rank that died early may have no file in the last one.
    ranks = sorted({log.rank for run in trimmed_sessions for log in run.ranks})
    return replace(
        last_session,
        ranks=[_join_logs(rank, trimmed_sessions) for rank in ranks],
        notes=[note for run in trimmed_sessions for note in run.notes],
        sealed_files=frozenset(name for run in trimmed_sessions for name in run.sealed_files),
        joined_sessions=trimmed_sessions,
        last_place=None,
    )


def trim_sessions(sessions: Sequence[Run]) -> list[Run]:
    """Return each session with the records that count once another session has followed."""
    return [_trim_session(run, sessions) for run in sessions]


def _trim_session(run: Run, sessions: Sequence[Run]) -> Run:
    """Return a session up to its last whole iteration; all of it if it ended well."""
    if run.ranks and all(log.has_ended for log in run.ranks):
        return run
    whole_by_point = find_whole_iterations(run, sessions)
    places = [
        run.place(point_id, iteration_number)
        for point_id, iteration_numbers in whole_by_point.items()
        for iteration_number in iteration_numbers
    ]
    cut = replace(run, last_place=max(places, default=NO_PLACE))
    return replace(cut, ranks=[_drop_rest(cut, log) for log in run.ranks])


def _drop_rest(run: Run, log: RankLog) -> RankLog:
    counted_records = [
        (line_number, record)
        for line_number, record in zip(log.line_numbers, log.records, strict=True)
        if not isinstance(record, IterationRecord) or run.holds(record.point, record.iteration)
    ]
    return _replace_records(log, counted_records)


def _join_logs(rank: int, trimmed_sessions: Sequence[Run]) -> RankLog:
    logs = [log for run in trimmed_sessions for log in run.ranks if log.rank == rank]
    newest_log = logs[-1]
    numbered_records = [
        (line_number, record)
        for log in logs
        for line_number, record in zip(log.line_numbers, log.records, strict=True)
        if log is newest_log or not isinstance(record, RECORDS_OF_LAST_SESSION)
    ]
    return _replace_records(newest_log, numbered_records)


def _replace_records(log: RankLog, numbered_records: Sequence[tuple[int, Record]]) -> RankLog:
    """Return a log with other records, given with their line numbers."""
    return replace(
        log,
        line_numbers=tuple(line_number for line_number, _ in numbered_records),
        records=tuple(record for _, record in numbered_records),
    )


# ---- which rounds are missing ----


def list_missing_rounds(
    sessions: Sequence[Run],
    largest_numbers: Mapping[str, LargestNumbers],
    only_points: Sequence[str] | None = None,
    requested_round_count: int | None = None,
    unfinished_ids: Collection[str] = (),
) -> list[PointStart]:
    """List the rounds that a further session has to measure, in the order of the points.

    Args:
        sessions: all sessions of the run, as they were written.
        largest_numbers: the highest numbers in the run's files, by point.
        only_points: ids of points; None: all of them.
        requested_round_count: rounds that each point shall have; None: as many as were asked for
            before.
        unfinished_ids: ids of points that need one more round, even if they have all of theirs.
    """
    header = sessions[0].header
    trimmed_sessions = trim_sessions(sessions)
    starts = []
    for point in header.points:
        if point.skipped or (only_points is not None and point.id not in only_points):
            continue
        arms = list_whole_arms(header, point.id, sessions)
        largest_of_point = largest_numbers.get(point.id, LargestNumbers())
        round_count = requested_round_count
        if round_count is None:
            round_count = find_requested_round_count(sessions, point.id)
        missing_count = round_count - len(list_whole_rounds(trimmed_sessions, point.id, arms))
        # With a precision, a point may need more rounds than the fewest.
        is_over = point.id not in unfinished_ids and _is_over(sessions, trimmed_sessions, point.id)
        if arms and (missing_count > 0 or not is_over):
            failed_arms = [
                failure.arm
                for run in sessions
                for _, failure in run.records_of(ArmFailure)
                if failure.point == point.id
            ]
            starts.append(
                PointStart(
                    point=point.id,
                    iteration=largest_of_point.iteration + 1,
                    round=largest_of_point.round + 1,
                    rounds=max(1, missing_count),
                    without=list(dict.fromkeys(failed_arms)),
                )
            )
    return starts


def find_requested_round_count(sessions: Sequence[Run], point_id: str) -> int:
    """Return how many rounds a point shall have: the most that a session was asked for."""
    requested_counts = [
        run.session.rounds
        for run in sessions
        if run.session is not None
        and run.session.rounds is not None
        and run.session.start_of(point_id) is not None
    ]
    return max([sessions[0].header.rounds, *requested_counts])


def list_whole_rounds(
    trimmed_sessions: Iterable[Run], point_id: str, arms: Sequence[str]
) -> list[int]:
    """Return the numbers of a point's whole rounds.

    Args:
        trimmed_sessions: the sessions with the records that count.
        arms: the arms that a whole round has.
    """
    return [
        iteration.round
        for run in trimmed_sessions
        for _, iteration in run.records_of(Iteration)
        if iteration.point == point_id
        and arms
        and iteration.arm == arms[0]
        and iteration.round is not None
    ]


def _is_over(sessions: Sequence[Run], trimmed_sessions: Sequence[Run], point_id: str) -> bool:
    """Return whether ``--precision`` asks for no more rounds of a point that has the fewest.

    A session that had reached the precision went on to another point, or ended.
    """
    if sessions[0].header.experiment.get("precision") is None:
        return True
    for run, trimmed_run in zip(sessions, trimmed_sessions, strict=True):
        is_measured = any(
            iteration.point == point_id for _, iteration in trimmed_run.records_of(Iteration)
        )
        is_complete = all(
            run.holds(iteration.point, iteration.iteration)
            for _, iteration in run.records_of(Iteration)
        )
        if (
            is_measured
            and is_complete
            and run.ranks
            and all(_has_left(log, point_id) for log in run.ranks)
        ):
            return True
    return False


def _has_left(log: RankLog, point_id: str) -> bool:
    """Return whether a rank has left a point, for another one or to end."""
    marks = [mark.point for mark in log.records if isinstance(mark, PhaseMark) and mark.point]
    return log.has_ended or (point_id in marks and marks[-1] != point_id)
