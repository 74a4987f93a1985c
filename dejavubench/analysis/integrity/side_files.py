"""Damage to the files beside the ranks' own: times of chunks, and conditions of hosts.

The tables of the ranks' own records need neither. So a damaged file is left out and named, and the
run is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dejavubench.analysis.facts.host_rounds import require_of_run
from dejavubench.records import RecordError, Run, RunHeader, TimedChunks
from dejavubench.records.chunk_times import list_chunk_files, read_times
from dejavubench.records.conditions import list_condition_files, read_host
from dejavubench.records.notes import DAMAGED, Note


def leave_out_damaged(run: Run) -> None:
    """Name the damaged files in the run, in its sessions and in its notes."""
    damage_by_file = dict(_find_damage(run))
    for session in (run, *run.joined_sessions):
        session.damaged_files = damage_by_file
    run.notes[:0] = [_make_note(message) for message in damage_by_file.values()]


def _make_note(message: str) -> Note:
    return DAMAGED.note(f"DAMAGED: {message}. The report leaves this file out.")


def _find_damage(run: Run) -> Iterator[tuple[str, str]]:
    for session in run.sessions:
        for path in list_condition_files(run.path, session.number):
            yield from _check_file(path, partial(check_host, session=session))
    for path, rank in list_chunk_files(run.path):
        # Times of chunks can be larger than memory, and the report reads them once more. A file
        # with the digest of its rank is as the run has left it.
        if path.name not in run.sealed_files:
            yield from _check_file(path, partial(check_chunks, rank=rank, header=run.header))


def _check_file(path: Path, check: Callable[[Path], None]) -> Iterator[tuple[str, str]]:
    try:
        check(path)
    except RecordError as error:
        yield path.name, str(error)


def check_host(path: Path, session: Run) -> None:
    """Read a file of a host's conditions.

    Raises:
        RecordError: a line cannot be read, or the file is of another run.
    """
    log = read_host(path)
    if log is not None:
        require_of_run(log, session)


def check_chunks(path: Path, rank: int, header: RunHeader) -> None:
    """Read a file of chunks' times. A killed run has times of arms without a whole iteration.

    Raises:
        RecordError: a line cannot be read, or names an arm that ``run.json`` does not.
    """
    points = {point.id for point in header.points}
    arms = {arm.name for arm in header.arms}
    for timed_record in read_times(path, rank):
        times = timed_record.times
        if isinstance(timed_record, TimedChunks) and (
            times.point not in points or times.arm not in arms
        ):
            raise RecordError(
                f"{path} names point {times.point}, arm {times.arm}, which run.json does not"
            )
