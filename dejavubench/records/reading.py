"""Reading a run's folder: its header, its ranks' files, and who exited first."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from dejavubench.records.archives import unpack_advice
from dejavubench.records.digest import Digest
from dejavubench.records.field_types import Model, RecordError
from dejavubench.records.file_changes import compare_seals
from dejavubench.records.header import SCHEMA, RunHeader
from dejavubench.records.line_file import (
    check_regular,
    find_first_reason,
    number_lines,
    parse_record,
)
from dejavubench.records.names import (
    RUN_FILE,
    name_rank_file,
    name_session_file,
    rank_of,
    rank_of_chunk_file,
    session_of,
    session_of_chunk_file,
    session_of_conditions_file,
    session_of_first_exit_file,
    session_of_rank_file,
)
from dejavubench.records.notes import IGNORED_FILE, Note
from dejavubench.records.ranks import End, FirstExit
from dejavubench.records.run_logs import RankLog, Run
from dejavubench.records.schema import RECORD, Record
from dejavubench.records.sessions import SessionHeader
from dejavubench.records.whole_rounds import LargestNumbers, join_sessions

ModelT = TypeVar("ModelT", bound=Model)


def read_rank(path: Path) -> RankLog:
    """Read one rank's file; a torn last line is tolerated.

    Raises:
        RecordError: the file, or a line other than a torn last one, cannot be read.
    """
    rank = rank_of(path.name)
    if rank is None:
        raise RecordError(f"{path} is not named like a rank's file, such as {name_rank_file(0)}")
    records: list[Record] = []
    lines: list[int] = []
    is_torn = False
    is_altered = False
    digest = Digest()
    for line_number, line in number_lines(path):
        # An editor may have left empty lines; the digest ignores them as well.
        if not line.strip():
            continue
        record = parse_record(path, line_number, line, RECORD)
        if record is None:
            is_torn = True
            continue
        records.append(record)
        lines.append(line_number)
        # An End record's digest covers the lines before it, so compare before adding its own line.
        if isinstance(record, End) and record.digest is not None:
            is_altered = record.digest != digest.hex()
        digest.add(line)
    return RankLog(path, rank, tuple(records), tuple(lines), is_torn, is_altered)


def read_run(folder: Path) -> Run:
    """Read a run's folder; all its sessions are one run.

    Raises:
        RecordError: no readable ``run.json``, another schema version, or a broken line.
    """
    return join_sessions(read_sessions(folder))


def read_sessions(folder: Path) -> list[Run]:
    """Read each session of a run's folder, as it was written.

    Raises:
        RecordError: as :func:`read_run`.
    """
    path = folder / RUN_FILE
    # A dangling link is a damaged run, not a folder without one: reading it names the reason.
    if not path.is_symlink() and not path.exists():
        if not folder.is_dir():
            if (advice := unpack_advice(folder)) is not None:
                raise RecordError(advice)
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise RecordError(f"{folder} {problem}. Give the folder of one run")
        raise RecordError(
            f"{folder} is not a run's folder: it has no {RUN_FILE}. Give the folder of one run"
        )
    # Read once: the header and its digest must be of the same bytes.
    content = _read_content(path)
    header = _read_model(path, content, RunHeader)
    file_names = sorted(file.name for file in folder.iterdir())
    sessions = [
        _read_session(folder, file_names, session_number, content, header)
        for session_number in list_session_numbers(file_names)
    ]
    # First, since records of that file may be missing everywhere below.
    sessions[0].notes[:0] = _note_left_out(file_names)
    return sessions


def list_session_numbers(file_names: list[str]) -> list[int]:
    """Return the sessions that have left a file, by the names of a folder's files."""
    # A session that was killed early may have left any of its files, so all kinds count.
    sessions = {1}
    for name in file_names:
        if rank_of(name) is not None:
            sessions.add(session_of_rank_file(name))
        elif rank_of_chunk_file(name) is not None:
            sessions.add(session_of_chunk_file(name))
        else:
            sessions |= {session_of(name) or 1, session_of_conditions_file(name) or 1}
    return sorted(sessions)


_NUMBERS = {
    key: re.compile(rb'"%s":\s*"?(\w+)' % key.encode()) for key in ("point", "iteration", "round")
}

_HEAD_NBYTES = 300
"""Bytes at the start of a line that hold its numbers.

``model_dump_json`` writes the fields in their order, those of a base class first. So ``point``,
``arm``, ``iteration`` and ``round`` of
:class:`~dejavubench.records.iterations.IterationRecord` stand before all lists of times.
"""


def find_largest_numbers(folder: Path) -> dict[str, LargestNumbers]:
    """Return the largest numbers that any line of a run's files names, whole or torn, by point.

    A new session's numbers begin behind them, so that none has two meanings.

    Raises:
        RecordError: a file cannot be read.
    """
    largest_by_point: dict[str, LargestNumbers] = {}
    for path in sorted(folder.glob("*-*.jsonl")):
        # Files of chunks may have many megabytes, so their lines are searched and not validated.
        for _, line in number_lines(path):
            head = line[:_HEAD_NBYTES]
            point_id, *matched_digits = (
                match and match[1]
                for match in (pattern.search(head) for pattern in _NUMBERS.values())
            )
            if point_id is None:
                continue
            iteration, round_number = (
                int(digits) if digits and digits.isdigit() else -1 for digits in matched_digits
            )
            earlier_numbers = largest_by_point.get(point_id.decode(), LargestNumbers())
            largest_by_point[point_id.decode()] = LargestNumbers(
                max(earlier_numbers.iteration, iteration), max(earlier_numbers.round, round_number)
            )
    return largest_by_point


def _read_session(
    folder: Path, file_names: list[str], session_number: int, content: bytes, header: RunHeader
) -> Run:
    """Read the files of one session.

    Args:
        content: the bytes of ``run.json``, for its digest.
    """
    ranks = [
        read_rank(folder / name)
        for name in file_names
        if rank_of(name) is not None and session_of_rank_file(name) == session_number
    ]
    exits = [
        first_exit
        for name in file_names
        if session_of_first_exit_file(name) == session_number
        and (first_exit := _read_first_exit(folder / name))
    ]
    altered_names = [log.path.name for log in ranks if log.is_altered]
    end_records = ((log.rank, end) for log in ranks for end in log.records_of(End))
    session_header = None
    path = folder / name_session_file(session_number)
    if session_number > 1 and path.exists():  # a session that was killed at its start may have none
        session_header = _read_model(path, _read_content(path), SessionHeader)
    seals = compare_seals(folder, content, altered_names, end_records, session_number)
    return Run(
        path=folder,
        header=header,
        ranks=ranks,
        first_exits=frozenset(rank for first_exit in exits for rank in first_exit.ranks),
        hung_ranks={
            rank: reason for first_exit in exits for rank, reason in first_exit.hung.items()
        },
        notes=seals.notes,
        sealed_files=seals.intact_names,
        number=session_number,
        session=session_header,
    )


def _note_left_out(file_names: list[str]) -> list[Note]:
    return [
        IGNORED_FILE.note(f"{name} is ignored: a rank's file is named like {name_rank_file(0)}")
        for name in file_names
        if name.startswith("rank-") and name.endswith(".jsonl") and rank_of(name) is None
    ]


def _read_model(path: Path, content: bytes, model: type[ModelT]) -> ModelT:
    try:
        # An editor may have put a byte order mark before the text.
        document = from_json(content.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise RecordError(f"{path}: damaged JSON: {error}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA or isinstance(version, bool):  # True == 1 in Python
        raise RecordError(f"{path} has schema version {version}; this program reads {SCHEMA}")
    try:
        return model.model_validate(document, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path}: {find_first_reason(error)}") from None


def _read_content(path: Path) -> bytes:
    """Return the bytes of a regular file."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None


def _read_first_exit(path: Path) -> FirstExit | None:
    """Return who exited first; None if a full disk cut the file short."""
    try:
        return FirstExit.model_validate_json(_read_content(path))
    except (ValidationError, RecordError):
        # The ranks' own files still tell that the run did not end: only the order is lost.
        return None
