"""Damage to the files beside the ranks' own: times of chunks, and conditions of hosts.

The tables of the ranks' own records need neither. So a damaged file is left out and named, and the
run is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from dejavubench.analysis.chunkbill import arm_of
from dejavubench.analysis.hostrounds import require_of_run
from dejavubench.analysis.samples import PointSamples, collect
from dejavubench.records import RecordError, Run, TimedChunks
from dejavubench.records.chunktimes import chunk_files, times_of_source
from dejavubench.records.conditions import condition_files, read_host
from dejavubench.records.notes import DAMAGED, Note


def leave_out_damaged(run: Run) -> None:
    """Name the damaged files in the run, in its sessions and in its notes."""
    damaged = dict(_damaged(run))
    for each in (run, *run.parts):
        each.damaged = damaged
    run.notes[:0] = [_note(message) for message in damaged.values()]


def _note(message: str) -> Note:
    return DAMAGED.note(f"DAMAGED: {message}. The report leaves this file out.")


def _damaged(run: Run) -> Iterator[tuple[str, str]]:
    for session in run.sessions:
        for path in condition_files(run.path, session.number):
            yield from _finding(path, partial(_check_host, session=session))
    points = collect(run)
    for path, rank in chunk_files(run.path):
        # Times of chunks can be larger than memory, and the report reads them once more. A file
        # with the digest of its rank is as the run has left it.
        if path.name not in run.sealed:
            yield from _finding(path, partial(_check_chunks, rank=rank, points=points))


def _finding(path: Path, check: Callable[[Path], None]) -> Iterator[tuple[str, str]]:
    try:
        check(path)
    except RecordError as error:
        message = str(error)
        # A finding about a record's content may not know the file.
        yield path.name, message if str(path) in message else f"{path}: {message}"


def _check_host(path: Path, session: Run) -> None:
    log = read_host(path)
    if log is not None:
        require_of_run(log, session)


def _check_chunks(path: Path, rank: int, points: Mapping[str, PointSamples]) -> None:
    for item in times_of_source(path, rank):
        if isinstance(item, TimedChunks):
            arm_of(rank, item.times, points)
