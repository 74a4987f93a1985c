"""Parts of a report: what each shows, and the data of a run that they share.

Public names: :data:`RunPart`, :class:`ReportPart`, :class:`PartContent`, :class:`RunData`,
:func:`make_notes_alone`.
The parts themselves stand in :data:`~dejavubench.analysis.reports.report_order.REPORT_PARTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, get_args

from dejavubench.analysis.breakdown.chunk_bill import ChunkFiles, read_chunk_files
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.host_rounds import HostRounds, join_sessions, read_session_rounds
from dejavubench.analysis.facts.samples import PointSamples
from dejavubench.analysis.tables.process_columns import NO_ROUNDS, Row
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import Note, NoteKind, Run, Severity

DataT = TypeVar("DataT")
"""The data that a part reads: :class:`RunData`, or those of a text log."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the lowest to the highest."""


@dataclass(frozen=True)
class PartContent:
    """The content of one part for one run; all of it may be empty.

    Attributes:
        sentences: paragraphs under the part's heading, before its tables.
        blocks: tables for people.
        notes: stand below the tables of all parts.
        rows: rows of the part's own table in csv and json.
        legend: explains words of the sentences, and stands right above them; empty if nothing
            needs it.
    """

    sentences: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    legend: str = ""


class NoteLine(NamedTuple):
    """A note, or several of one subject, as a line for people.

    Attributes:
        severity: the highest of its notes.
    """

    severity: Severity
    text: str


@dataclass(frozen=True)
class ReportPart(Generic[DataT]):
    """A part of a report. It has no content where older records lack what it needs.

    Attributes:
        name: unique. With ``row`` it is the key in json, and the name for ``process --table``.
        heading: the part's subject in a few words.
        content: makes the content from the data.
        kinds: kinds of the notes that it may write.
        row: dataclass of its rows, whose fields are the columns of csv and json; None if it has no
            rows of its own.
        is_long: whether its tables, and its notes of severity info, are in the long report alone.
        first_word: people read its notes on one line, which begins with this word; empty: on a line
            each.
    """

    name: str
    heading: str
    content: Callable[[DataT], PartContent]
    kinds: tuple[NoteKind, ...] = ()
    row: type[Any] | None = None
    is_long: bool = False
    first_word: str = ""

    def short_content(self, content: PartContent) -> PartContent:
        """Return the content for the short report."""
        if not self.is_long:
            return content
        notes = [note for note in content.notes if note.severity != "info"]
        return PartContent(notes=notes, rows=content.rows)

    def note_lines(self, content: PartContent) -> list[NoteLine]:
        """Return the notes as people read them."""
        notes = content.notes
        if not self.first_word or not notes:
            return [NoteLine(note.severity, note.text) for note in notes]
        worst_severity = max((note.severity for note in notes), key=SEVERITIES.index)
        texts = "; ".join(note.text for note in notes)
        return [NoteLine(worst_severity, f"{self.first_word}: {texts}")]


def make_notes_alone(make: Callable[[DataT], list[Note]]) -> Callable[[DataT], PartContent]:
    """Return the function of a part that has notes alone."""
    return lambda data: PartContent(notes=make(data))


class RunData:
    """A run, and what the parts of its report read of it: each made once, when first asked for.

    All but ``run`` raise RecordError if a record names a point or an arm that the header does not
    have. Files beside the ranks' that a check of the run found damaged are left out.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._contents: dict[str, PartContent] = {}

    @cached_property
    def points(self) -> dict[str, PointSamples]:
        """Samples by the point's id. Records are collected once, at the first use."""
        return collect(self.run)

    @cached_property
    def hosts(self) -> list[HostRounds]:
        """Conditions of each host that recorded some, over all sessions."""
        return join_sessions(self.session_hosts)

    @cached_property
    def session_hosts(self) -> list[HostRounds]:
        """Conditions of each host in each session."""
        return read_session_rounds(self.run)

    @cached_property
    def chunk_files(self) -> ChunkFiles:
        """The bills of chunks and the sampled extents, from one pass over their files."""
        return read_chunk_files(self.run, self.points)

    @cached_property
    def rows(self) -> list[Row]:
        """One row for each point and arm, measured or not."""
        return run_rows(self.run, self.points, self.hosts)

    @cached_property
    def reached_rows(self) -> list[Row]:
        """The rows of points with a measured round; a note names the others."""
        reached_ids = {row.point for row in self.rows if row.status != NO_ROUNDS}
        return [row for row in self.rows if row.point in reached_ids]

    def content(self, part: RunPart) -> PartContent:
        """Return a part's content, for the report and for parts that build on it."""
        if part.name not in self._contents:
            self._contents[part.name] = part.content(self)
        return self._contents[part.name]


RunPart = ReportPart[RunData]
"""A part of the report of a run."""
