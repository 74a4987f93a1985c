"""Checks before another session measures what a run lacks: its end must be able to read the run."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.integrity import check_rules
from dejavubench.analysis.integrity.side_files import check_chunks, check_host
from dejavubench.records import RecordError, Run
from dejavubench.records.chunk_times import list_chunk_files
from dejavubench.records.conditions import list_condition_files
from dejavubench.records.whole_rounds import join_sessions, trim_sessions


def check_can_continue(sessions: Sequence[Run]) -> None:
    """Check a run, and the files beside its ranks' own, as the end of a further session will.

    A report can leave damaged chunk times and conditions out. More rounds must not be added to
    them.

    Args:
        sessions: the sessions of a folder, as they were written.

    Raises:
        RecordError: a line cannot be read, or the run breaks a rule. The message names the file.
    """
    folder = sessions[0].path
    try:
        # A crash may leave more in one rank's file than in another's. A further session sets
        # records behind the last whole iteration aside, so they must not refuse the run.
        check_rules(join_sessions(sessions), trim_sessions(sessions))
        for session in sessions:
            for path in list_condition_files(folder, session.number):
                check_host(path, session)
        for path, rank in list_chunk_files(folder):
            check_chunks(path, rank, sessions[0].header)
    except OSError as error:
        raise RecordError(f"{error.filename or folder}: {error.strerror or error}") from None
