"""Rules that the files of every run keep, and reading a run that keeps them.

A rule is a small function that yields one message for each finding. A run that breaks a rule is
refused, since its numbers cannot be trusted. A finding that only a reader can judge becomes a note
beside the numbers. Killed runs break no rule: their last iteration may lack any record, and their
ranks may have stopped anywhere. A damaged file beside the ranks' own is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from dejavubench.analysis.integrity import (
    header,
    microbatches,
    other_records,
    rank_files,
    rounds,
    sessions,
    side_files,
    text_logs,
)
from dejavubench.records import Note, NoteKind, RecordError, Run, read_run
from dejavubench.records.notes import CHANGED, DAMAGED, IGNORED_FILE

IntegrityRule = Callable[[Run], Iterator[str]]
"""A rule: yields one sentence per finding, which makes the run unreadable."""

NotingRule = Callable[[Run], Iterator[Note]]
"""A rule whose findings only a reader can judge: yields notes."""

STAGES: tuple[tuple[IntegrityRule, ...], ...] = (
    header.RULES,
    rank_files.RULES,
    rounds.NAME_RULES,
    rounds.RULES,
    microbatches.RULES + other_records.RULES,
)
"""Rules in the order in which they are checked; later stages assume that the earlier ones hold."""

NOTING_RULES: tuple[NotingRule, ...] = (
    header.NOTING_RULES + microbatches.NOTING_RULES + text_logs.NOTING_RULES
)
"""Rules whose findings become notes beside the run's tables."""

NOTE_KINDS: tuple[NoteKind, ...] = (DAMAGED, IGNORED_FILE, CHANGED, microbatches.LONG_TIME)
"""Kinds of the notes on a run's files, of these rules and of reading."""

MOST_FINDINGS = 100
"""Number of findings after which a check stops."""


def read_checked(folder: Path) -> Run:
    """Read a run's folder, check it against all rules and add the notes to the run's.

    Raises:
        RecordError: the folder cannot be read, or it breaks a rule. The message names the folder,
            the first finding and the number of further findings.
    """
    try:
        run = read_run(folder)
        check_rules(run, run.sessions)
        notes_of_rules = (rule(session) for session in run.sessions for rule in NOTING_RULES)
        side_files.leave_out_damaged(run)
        run.notes += dict.fromkeys(note for notes in notes_of_rules for note in islice(notes, 1))
    except OSError as error:
        raise RecordError(f"{error.filename or folder}: {error.strerror or error}") from None
    return run


def check_rules(run: Run, session_runs: Iterable[Run]) -> None:
    """Check a run against all rules.

    Args:
        session_runs: its sessions, with the records that are to be checked.

    Raises:
        RecordError: it breaks a rule.
    """
    # Each session is checked for itself: it alone numbers and pairs its rounds.
    for session in session_runs:
        for stage in STAGES:
            _refuse_if_any(run.path, (finding for rule in stage for finding in rule(session)))
    _refuse_if_any(run.path, (finding for rule in sessions.RULES for finding in rule(run)))


def _refuse_if_any(folder: Path, findings: Iterator[str]) -> None:
    """Raise RecordError with the first finding and the number of further ones."""
    complaints = list(islice(findings, MOST_FINDINGS))
    if complaints:
        or_more = "" if len(complaints) < MOST_FINDINGS else " or more"
        further_text = f" (and {len(complaints) - 1}{or_more} further findings)"
        raise RecordError(f"{folder}: {complaints[0]}{further_text if len(complaints) > 1 else ''}")
