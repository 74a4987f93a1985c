"""Part of a report: the sessions of a run that was gone on with."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from dejavubench.analysis.facts.host_rounds import format_round_numbers
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import Iteration, Note, NoteKind, Run
from dejavubench.records.destination_info import NO_STREAMING

SESSION = NoteKind("session", "info")
"""Kind of the notes on a run that took several sessions."""

MOST_POINTS = 8
"""Points that a note names one by one."""


def make_notes(run: Run) -> list[Note]:
    """Return one note per session, and one per point that several sessions measured."""
    if not run.joined_sessions:
        return []
    lines = [
        f"session {session.number}, started {_describe_start(session)}: {_describe_rounds(session)}"
        for session in run.joined_sessions
    ]
    return list(map(SESSION.note, [*lines, *_describe_baselines(run)]))


def _describe_start(session: Run) -> str:
    if session.number == 1:
        return session.header.started_utc
    return session.session.started_utc if session.session is not None else "at an unknown time"


def _describe_rounds(session: Run) -> str:
    rounds: dict[str, dict[int, None]] = defaultdict(dict)
    for _, iteration in session.records_of(Iteration):
        if iteration.round is not None:
            rounds[iteration.point][iteration.round] = None
    texts = [
        f"{point_id} rounds {format_round_numbers(list(round_numbers))}"
        for point_id, round_numbers in rounds.items()
    ]
    if len(texts) > MOST_POINTS:
        texts[MOST_POINTS:] = [f"{len(texts) - MOST_POINTS} more points"]
    return "; ".join(texts) or "no round that counts"


def _describe_baselines(run: Run) -> list[str]:
    """Describe the speed of the model alone in each session of a point: no pair mixes sessions."""
    baseline_names = {arm.name for arm in run.header.arms if arm.mode == NO_STREAMING}
    totals_ms: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for session in run.joined_sessions:
        for _, iteration in session.records_of(Iteration):
            if iteration.round is not None and iteration.arm in baseline_names:
                totals_ms[iteration.point][session.number].append(iteration.total_ms)
    return [
        f"{point_id}: TOTAL of {NO_STREAMING} was "
        + ", ".join(
            f"{median(session_totals):.4g} ms in session {session_number}"
            for session_number, session_totals in by_session.items()
        )
        + "; overheads are paired within each session"
        for point_id, by_session in totals_ms.items()
        if len(by_session) > 1
    ]


SESSIONS = RunPart(
    "sessions",
    "the sessions",
    make_notes_alone(lambda run_data: make_notes(run_data.run)),
    (SESSION,),
)
