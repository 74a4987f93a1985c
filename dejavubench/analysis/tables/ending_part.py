"""Part of a report: how a run ended, with ranks without an End record, failures and torn files."""

from __future__ import annotations

from dejavubench.analysis import integrity
from dejavubench.analysis.facts.source_ranks import count_ranks
from dejavubench.analysis.tables.report_part import RunPart, make_notes_alone
from dejavubench.records import (
    ArmFailure,
    End,
    Note,
    NoteKind,
    PhaseMark,
    RankFailure,
    RankInfo,
    RankLog,
    Run,
)
from dejavubench.records.notes import CHANGED
from dejavubench.records.sessions import continue_command

INTERRUPTED = NoteKind("interrupted", "error")
"""Kind of the note on a run that Ctrl-C ended; its numbers are whole as far as they go."""

FAILED = NoteKind("failed", "error")
"""Kind of the notes on ranks that recorded an error, hung or ended with status failed."""

INCOMPLETE = NoteKind("incomplete", "error")
"""Kind of the notes on ranks without an End record, or without a file."""

UNFINISHED = NoteKind("unfinished", "warning")
"""Kind of the note that the run is still going or was killed: the records tell no difference."""

REST = NoteKind("rest", "info")
"""Kind of the note with the command that measures what is missing."""

TORN_LINE = NoteKind("torn-line", "warning")
"""Kind of the notes on files whose last line is cut off."""


def is_complete(run: Run) -> bool:
    """Return whether every known rank has written its End record in the last session."""
    session = run.last_session
    return (
        bool(session.ranks)
        and all(log.has_ended for log in session.ranks)
        and not _list_absent_ranks(session)
    )


def make_notes(run: Run) -> list[Note]:
    """Return one note per finding, the most important first; none for a run that ended well."""
    session = run.last_session  # an earlier session's end was not the run's
    if not session.ranks:
        return [INCOMPLETE.note("INCOMPLETE: no rank has written a record"), *run.notes]
    failures = [(log, failure) for log in session.ranks for failure in log.records_of(RankFailure)]
    interrupted_logs = [log for log, failure in failures if _is_interrupt(failure)]
    # Ranks are interrupted together, or follow the one that was: one of them is enough.
    findings = [
        INTERRUPTED.note(f"INTERRUPTED: {_name_rank(log)}, {_describe_place(log.last_phase)}")
        for log in interrupted_logs[:1]
    ]
    findings += [
        FAILED.note(f"FAILED: {_name_rank(log)}, {failure.phase}: {failure.error}")
        for log, failure in failures
        if not _is_interrupt(failure)
    ]
    silent_logs = [
        log for log in session.ranks if not log.has_ended and not any(log.records_of(RankFailure))
    ]
    if interrupted_logs:
        silent_logs = [log for log in silent_logs if log.rank in session.hung_ranks]
    # A recorded failure names the culprit; ranks that exited first only followed it.
    first_ranks = set() if failures or session.hung_ranks else session.first_exits
    silent_logs.sort(
        key=lambda log: (log.rank not in session.hung_ranks, log.rank not in first_ranks)
    )
    for log in silent_logs:
        if log.rank in session.hung_ranks:
            hang = f"hung {_describe_place(log.last_phase)}: {session.hung_ranks[log.rank]}"
            findings.append(FAILED.note(f"FAILED: {_name_rank(log)} {hang}"))
            continue
        verb_phrase = "was the first to stop," if log.rank in first_ranks else "stopped"
        stop = f"{verb_phrase} {_describe_place(log.last_phase)}, without an End record"
        findings.append(INCOMPLETE.note(f"INCOMPLETE: {_name_rank(log)} {stop}"))
    findings += [
        INCOMPLETE.note(f"INCOMPLETE: rank {rank} has no file")
        for rank in sorted(_list_absent_ranks(session))
    ]
    if silent_logs and not interrupted_logs:
        findings.append(
            UNFINISHED.note(
                "The run is still going or was killed. The numbers are those recorded so far."
            )
        )
    if silent_logs or interrupted_logs:
        findings += note_continue(session)
    findings += _note_torn_lines(session)
    is_explained = failures or any(True for _ in session.records_of(ArmFailure))
    is_unexplained = (
        any(end.status == "failed" for end in _find_end_records(session)) and not is_explained
    )
    if is_unexplained:
        findings.append(
            FAILED.note(
                "FAILED: a rank ended with status failed; see the failed verification below"
            )
        )
    return findings + run.notes


def note_continue(run: Run) -> list[Note]:
    """Return the command that goes on with a run; none for a restarted request, without rounds."""
    if run.header.experiment.get("resume"):
        return []
    command = continue_command(run.path, count_ranks(run))
    return [REST.note(f"To measure what is missing: {command}")]


def list_damage(run: Run) -> list[str]:
    """Return a message for each file of a run that is damaged or was lost, for stderr."""
    session = run.last_session
    # A rank of a job that still goes on, was killed or failed may have no file yet.
    ok_ends = [end for end in _find_end_records(session) if end.status == "ok"]
    all_ended_well = bool(session.ranks) and len(ok_ends) == len(session.ranks)
    missing_ranks = sorted(_list_absent_ranks(session)) if all_ended_well else []
    return [
        *run.damaged_files.values(),
        *(f"{run.path}: rank {rank} has no file" for rank in missing_ranks),
    ]


def describe_health(run: Run) -> str:
    """Return a caption's words on a run; empty if it ended well and its files are unchanged."""
    changed_texts = [note.text for note in run.notes if note.kind == CHANGED.name]
    return " ".join(
        [*_list_incomplete_ranks(run), *(f"{run.path.name}: {text}." for text in changed_texts)]
    )


def _list_incomplete_ranks(run: Run) -> list[str]:
    session = run.last_session
    if not session.ranks or is_complete(session):
        return []
    open_rank_count = sum(not log.has_ended for log in session.ranks) + len(
        _list_absent_ranks(session)
    )
    rank_count = len(session.ranks) + len(_list_absent_ranks(session))
    return [
        f"INCOMPLETE: {open_rank_count} of {rank_count} ranks of {run.path.name} wrote no End "
        "record."
    ]


def _note_torn_lines(run: Run) -> list[Note]:
    return [
        TORN_LINE.note(
            f"{log.path.name}: the last line is cut off, as its process ended while writing it"
        )
        for log in run.ranks
        if log.is_torn
    ]


def _is_interrupt(failure: RankFailure) -> bool:
    return failure.error.startswith(KeyboardInterrupt.__name__)


def _find_end_records(run: Run) -> list[End]:
    return [end for log in run.ranks for end in log.records_of(End)]


def _list_absent_ranks(run: Run) -> set[int]:
    expected_ranks = {peer for _, info in run.records_of(RankInfo) for peer in info.peers}
    expected_ranks |= set(range(int(run.header.environment.get("ranks") or 0)))
    return expected_ranks - {log.rank for log in run.ranks}


def _name_rank(log: RankLog) -> str:
    info = next(log.records_of(RankInfo), None)
    return f"rank {log.rank} ({info.role} on {info.host})" if info else f"rank {log.rank}"


def _describe_place(mark: PhaseMark | None) -> str:
    if mark is None:
        return "before its first phase"
    texts = [
        mark.point and f"point {mark.point}",
        mark.arm and f"arm {mark.arm}",
        None if mark.iteration is None else f"iteration {mark.iteration}",
    ]
    return f"in phase {mark.phase}" + "".join(f", {text}" for text in texts if text)


ENDING = RunPart(
    "ending",
    "how the run ended",
    make_notes_alone(lambda run_data: make_notes(run_data.run)),
    (INTERRUPTED, FAILED, INCOMPLETE, UNFINISHED, REST, TORN_LINE, *integrity.NOTE_KINDS),
)
