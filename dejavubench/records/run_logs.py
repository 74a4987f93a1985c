"""The records of a run in memory: those of one rank, and those of all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dejavubench.records.field_types import Line
from dejavubench.records.header import RunHeader
from dejavubench.records.notes import Note
from dejavubench.records.ranks import End, PhaseMark
from dejavubench.records.schema import Record
from dejavubench.records.sessions import PointStart, SessionHeader

LineT = TypeVar("LineT", bound=Line)

IterationPlace = tuple[int, int]
"""Number of a point in the header, and number of an iteration there."""


@dataclass(frozen=True)
class RankLog:
    """One rank's records in the order they were written.

    Attributes:
        line_numbers: line number of each record in the file.
        is_torn: whether a crash cut off the last line.
        is_altered: whether the lines differ from those that the End record's digest was made of.
    """

    path: Path
    rank: int
    records: tuple[Record, ...] = ()
    line_numbers: tuple[int, ...] = ()
    is_torn: bool = False
    is_altered: bool = False
    _by_class: dict[type[Line], list[tuple[int, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def records_of(self, record_class: type[LineT]) -> Iterator[LineT]:
        """Yield the records of one kind, in the order of the file."""
        return (record for _, record in self._with_line_numbers(record_class))

    def all_with_places(self) -> Iterator[tuple[str, Record]]:
        """Yield each record with its file and line."""
        for line_number, record in zip(self.line_numbers, self.records, strict=True):
            yield f"{self.path.name}:{line_number}", record

    def with_places(self, record_class: type[LineT]) -> Iterator[tuple[str, LineT]]:
        """Yield each record of one kind with its file and line."""
        return (
            (f"{self.path.name}:{line_number}", record)
            for line_number, record in self._with_line_numbers(record_class)
        )

    def _with_line_numbers(self, record_class: type[LineT]) -> list[tuple[int, LineT]]:
        """Return line number and record of each one of a kind."""
        # A report asks for few kinds many times, so each is searched for once.
        if record_class not in self._by_class:
            self._by_class[record_class] = [
                (line_number, record)
                for line_number, record in zip(self.line_numbers, self.records, strict=True)
                if isinstance(record, record_class)
            ]
        return self._by_class[record_class]

    @property
    def has_ended(self) -> bool:
        """Whether the rank wrote an End record, and so ended by itself."""
        return any(True for _ in self.records_of(End))

    @property
    def last_phase(self) -> PhaseMark | None:
        """The newest phase mark; it tells where a rank that did not end was."""
        marks = list(self.records_of(PhaseMark))
        return marks[-1] if marks else None


@dataclass
class Run:
    """A run's folder, read: one session of it, or all of them as one run.

    Attributes:
        number: number of the session; of all together, that of the last one.
        session: what the session's own file says; None for the first session.
        joined_sessions: the sessions of a continued run, each as it is checked; empty for any other
            run.
        last_place: place of the last iteration that counts; None if all of them do. See
            :mod:`dejavubench.records.whole_rounds`.
        first_exits: ranks that were the first of their host to exit without an End record.
        hung_ranks: maps a rank that hung to the reason why it is believed to hang.
        notes: findings about the files, such as changes after the run.
        sealed_files: names of the files beside the ranks' own that are as the run has left them.
        damaged_files: files beside the ranks' own that cannot be read, by name, with the reason. A
            report leaves them out. Only a check of the run fills it.
    """

    path: Path
    header: RunHeader
    ranks: list[RankLog]
    first_exits: frozenset[int] = frozenset()
    hung_ranks: dict[int, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    sealed_files: frozenset[str] = frozenset()
    damaged_files: dict[str, str] = field(default_factory=dict)
    number: int = 1
    session: SessionHeader | None = None
    joined_sessions: list[Run] = field(default_factory=list)
    last_place: IterationPlace | None = None

    @property
    def sessions(self) -> list[Run]:
        """The sessions, in their order; the run itself if there is only one."""
        return self.joined_sessions or [self]

    @property
    def last_session(self) -> Run:
        """The last session, which tells how the run ended."""
        return self.sessions[-1]

    def holds(self, point_id: str, iteration: int) -> bool:
        """Return whether an iteration of this session counts."""
        # Places are pairs, point before iteration, and compare in the order of measuring.
        return self.last_place is None or self.place(point_id, iteration) <= self.last_place

    def place(self, point_id: str, iteration: int) -> IterationPlace:
        """Return the place of an iteration in the order in which sessions measure."""
        point_index = next(
            (index for index, point in enumerate(self.header.points) if point.id == point_id), -1
        )
        return point_index, iteration

    def start_of(self, point_id: str) -> PointStart | None:
        """Return the task of this session at a point; None if it leaves the point out."""
        if self.number > 1:
            return None if self.session is None else self.session.start_of(point_id)
        # The first session has no file of its own: run.json says what it was to measure.
        requested_points = self.header.asked_points
        if requested_points is not None and point_id not in requested_points:
            return None
        return PointStart(point=point_id, iteration=0, round=0, rounds=self.header.rounds)

    def records_of(self, record_class: type[LineT]) -> Iterator[tuple[int, LineT]]:
        """Yield (rank, record) of one kind over all ranks."""
        return ((log.rank, record) for log in self.ranks for record in log.records_of(record_class))
