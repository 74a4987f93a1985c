"""Checks before another session measures what a run lacks: its end must be able to read the run."""

from __future__ import annotations

from pathlib import Path

from dejavubench.analysis.hostrounds import require_of_run
from dejavubench.analysis.integrity import check_rules
from dejavubench.records import RecordError, Run, RunHeader, TimedChunks
from dejavubench.records.chunktimes import chunk_files, times_of_source
from dejavubench.records.conditions import condition_files, read_host
from dejavubench.records.reading import read_sessions
from dejavubench.records.wholerounds import together, trimmed


def check_continuable(folder: Path) -> None:
    """Read all of a run's files as the end of a further session will, and check them.

    A report can leave damaged chunk times and conditions out. More rounds must not be added to
    them.

    Raises:
        RecordError: a line cannot be read, or the run breaks a rule. The message names the file.
    """
    try:
        sessions = read_sessions(folder)
        # A crash may leave more in one rank's file than in another's. A further session sets
        # records behind the last whole iteration aside, so they must not refuse the run.
        check_rules(together(sessions), trimmed(sessions))
        for session in sessions:
            _check_conditions(session)
        for path, rank in chunk_files(folder):
            _check_chunks(path, rank, sessions[0].header)
    except OSError as error:
        raise RecordError(f"{error.filename or folder}: {error.strerror or error}") from None


def _check_conditions(session: Run) -> None:
    for path in condition_files(session.path, session.number):
        log = read_host(path)
        if log is not None:
            require_of_run(log, session)


def _check_chunks(path: Path, rank: int, header: RunHeader) -> None:
    points, arms = {point.id for point in header.points}, {arm.name for arm in header.arms}
    # A killed run has times of arms without any whole iteration, so run.json is what counts here.
    for item in times_of_source(path, rank):
        times = item.times
        if isinstance(item, TimedChunks) and (times.point not in points or times.arm not in arms):
            raise RecordError(
                f"{path} names point {times.point}, arm {times.arm}, which run.json does not"
            )
