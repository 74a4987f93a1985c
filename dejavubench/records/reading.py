"""Reading a run's folder: its header, its ranks' files, and who exited first."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from dejavubench.records.digest import Digest
from dejavubench.records.fieldtypes import Line, RecordError
from dejavubench.records.header import SCHEMA, RunHeader
from dejavubench.records.linefile import check_regular, first_of, numbered_lines, record_of
from dejavubench.records.names import RUN_FILE, rank_file, rank_of
from dejavubench.records.notes import IGNORED_FILE, Note
from dejavubench.records.ranks import End, FirstExit, PhaseMark
from dejavubench.records.schema import RECORD, Record
from dejavubench.records.seals import broken_seals

T = TypeVar("T", bound=Line)


@dataclass
class RankLog:
    """One rank's records in the order they were written.

    Attributes:
        lines: line number of each record in the file.
        torn: whether a crash cut off the last line.
        altered: whether the lines differ from those that the End record's digest was made of.
    """

    path: Path
    rank: int
    records: list[Record] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    torn: bool = False
    altered: bool = False

    def of(self, record_class: type[T]) -> Iterator[T]:
        return (record for record in self.records if isinstance(record, record_class))

    def all_placed(self) -> Iterator[tuple[str, Record]]:
        """Yield each record with its file and line."""
        for line, record in zip(self.lines, self.records, strict=True):
            yield f"{self.path.name}:{line}", record

    def placed(self, record_class: type[T]) -> Iterator[tuple[str, T]]:
        """Yield each record of one kind with its file and line."""
        return (
            (where, record)
            for where, record in self.all_placed()
            if isinstance(record, record_class)
        )

    @property
    def ended(self) -> bool:
        return any(isinstance(record, End) for record in self.records)

    @property
    def last_phase(self) -> PhaseMark | None:
        return next((r for r in reversed(self.records) if isinstance(r, PhaseMark)), None)


@dataclass
class Run:
    """A run's folder, read.

    Attributes:
        first_exits: ranks that were the first of their host to exit without an End record.
        hung: maps a rank that hung to the reason why it is believed to hang.
        notes: findings about the files, such as changes after the run.
    """

    path: Path
    header: RunHeader
    ranks: list[RankLog]
    first_exits: frozenset[int] = frozenset()
    hung: dict[int, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def of(self, record_class: type[T]) -> Iterator[tuple[int, T]]:
        """Yield (rank, record) of one kind over all ranks."""
        return ((log.rank, record) for log in self.ranks for record in log.of(record_class))


def read_rank(path: Path) -> RankLog:
    """Read one rank's file; a torn last line is tolerated.

    Raises:
        RecordError: the file, or a line other than a torn last one, cannot be read.
    """
    rank = rank_of(path.name)
    if rank is None:
        raise RecordError(f"{path} is not named like a rank's file, such as {rank_file(0)}")
    log, digest = RankLog(path, rank), Digest()
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        record = record_of(path, number, line, RECORD)
        if record is None:
            log.torn = True
            continue
        log.records.append(record)
        log.lines.append(number)
        # An End record's digest covers the lines before it, so compare before adding its own line.
        if isinstance(record, End) and record.digest is not None:
            log.altered = record.digest != digest.hex()
        digest.add(line)
    return log


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        RecordError: no readable ``run.json``, another schema version, or a broken line.
    """
    path = folder / RUN_FILE
    # A dangling link is a damaged run, not a folder without one: reading it names the reason.
    if not path.is_symlink() and not path.exists():
        raise RecordError(f"{folder} is not a run's folder: it has no {RUN_FILE}")
    content = _content(path)
    header = _header(path, content)
    names = sorted(file.name for file in folder.iterdir() if file.name.startswith("rank-"))
    ranks = [read_rank(folder / name) for name in names if rank_of(name) is not None]
    exits = [
        exited for file in folder.glob("first-exit-*.json") if (exited := _read_first_exit(file))
    ]
    first = frozenset(rank for exited in exits for rank in exited.ranks)
    hung = {rank: why for exited in exits for rank, why in exited.hung.items()}
    altered = [log.path.name for log in ranks if log.altered]
    ends = ((log.rank, end) for log in ranks for end in log.of(End))
    notes = [*_left_out(names), *broken_seals(folder, content, altered, ends)]
    return Run(path=folder, header=header, ranks=ranks, first_exits=first, hung=hung, notes=notes)


def _left_out(names: list[str]) -> list[Note]:
    return [
        IGNORED_FILE.note(f"{name} is ignored: a rank's file is named like {rank_file(0)}")
        for name in names
        if name.endswith(".jsonl") and rank_of(name) is None
    ]


def _header(path: Path, content: bytes) -> RunHeader:
    try:
        document = from_json(content.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA or isinstance(version, bool):  # True == 1 in Python
        raise RecordError(f"{path} has schema version {version}; this program reads {SCHEMA}")
    try:
        return RunHeader.model_validate(document, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path}: {first_of(error)}") from None


def _content(path: Path) -> bytes:
    """Return the bytes of a regular file."""
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None


def _read_first_exit(path: Path) -> FirstExit | None:
    """Return who exited first; None if a full disk cut the file short."""
    try:
        return FirstExit.model_validate_json(_content(path))
    except (ValidationError, RecordError):
        return None
