"""Rules for the sessions of a continued run, beside those that each session keeps for itself."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.analysis.integrity.header import find_wrong_types
from dejavubench.records import Iteration, Run, RunEnvironment
from dejavubench.records.names import name_session_file


def _check_session_files(run: Run) -> Iterator[str]:
    """Check each session's own file against ``run.json``."""
    points = {point.id for point in run.header.points}
    for session in run.joined_sessions:
        session_header = session.session
        name = name_session_file(session.number)
        if session_header is None:
            continue
        if session_header.run_id != run.header.run_id:
            yield (
                f"{name} is of another run: its run_id is {session_header.run_id}, that of "
                f"run.json is {run.header.run_id}"
            )
        if session_header.session != session.number:
            yield f"{name} describes session {session_header.session}"
        unknown_ids = [start.point for start in session_header.starts if start.point not in points]
        if unknown_ids:
            yield f"{name} names point {unknown_ids[0]}, which run.json does not name"
        yield from find_wrong_types(
            RunEnvironment, session_header.environment, f"{name}: environment"
        )


def _check_overlap(run: Run) -> Iterator[str]:
    """Check that no two sessions have measured the same iteration or round."""
    first_sessions: dict[tuple[str, str, str, int], int] = {}
    for session in run.joined_sessions:
        for _, iteration in session.records_of(Iteration):
            numbers_by_noun = {"iteration": iteration.iteration, "round": iteration.round}
            for noun, number in numbers_by_noun.items():
                if number is None:
                    continue
                first_session = first_sessions.setdefault(
                    (iteration.point, iteration.arm, noun, number), session.number
                )
                if first_session != session.number:
                    yield (
                        f"sessions {first_session} and {session.number} both have {noun} {number} "
                        f"of {iteration.point} {iteration.arm}"
                    )


RULES = (_check_session_files, _check_overlap)
