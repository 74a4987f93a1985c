"""Contents of a page, ready for its templates: texts, tables, pictures and downloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from markupsafe import Markup

from dejavubench.analysis.tables.report_part import NoteLine
from dejavubench.records import Note

LONGEST_LINE = 24
"""Characters of a cell that stay on one line on paper."""


class CellKind(StrEnum):
    """Kind of a cell. Sorting puts numbers before texts, and missing values last."""

    NUMBER = "number"
    TEXT = "text"
    MISSING = "missing"


@dataclass(frozen=True)
class PageCell:
    """A cell of a table.

    Attributes:
        value: the number to sort by; None unless ``kind`` is a number.
    """

    text: str
    kind: CellKind
    value: float | None = None

    @property
    def pieces(self) -> tuple[str, ...]:
        """The value and its interval in brackets, which a narrow page sets on a line each."""
        value, _, interval = self.text.partition(" [")
        if not value or not interval.endswith("]"):
            return (self.text,)
        return value, f"[{interval}"

    @property
    def is_long(self) -> bool:
        """Whether paper, which cannot be scrolled, may break the text into lines."""
        return len(self.text) > LONGEST_LINE


@dataclass(frozen=True)
class PageHeading:
    """A heading of a column.

    Attributes:
        anchor: id of its meaning on the page; None if the registry of columns does not have it.
        is_leading: whether the column names the rows.
    """

    text: str
    anchor: str | None
    is_leading: bool


@dataclass(frozen=True)
class PageTable:
    """A table that a reader can sort.

    Attributes:
        anchor: unique on the page.
        groups: rows of cells, one group for each point.
        subtitle: stands below the title, such as the sizes that all rows have in common.
    """

    title: str
    anchor: str
    headings: Sequence[PageHeading]
    groups: Sequence[Sequence[Sequence[PageCell]]]
    subtitle: str = ""


@dataclass(frozen=True)
class PagePicture:
    """A figure.

    Attributes:
        svg: an element that can stand in HTML, with a title and ids that are unique on the page.
    """

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class PageStatements:
    """Sentences of one part of the report, and a legend of their words; it may be empty."""

    heading: str
    anchor: str
    sentences: Sequence[str]
    legend: str = ""


@dataclass(frozen=True)
class PageDownload:
    """A file inside the page.

    Attributes:
        address: a ``data:`` address, which needs no network.
        nbytes: size of the file, in bytes.
        description: what it shows, in words.
        notes: what its reader must know.
    """

    name: str
    address: Markup
    nbytes: int
    description: str
    notes: Sequence[str]


@dataclass(frozen=True)
class Fact:
    """One key of the settings or of the machine.

    Attributes:
        key: as the record spells it.
        meaning: in words; empty if it is not known.
    """

    key: str
    meaning: str
    value: str


@dataclass(frozen=True)
class RunSettings:
    """Settings, commands and machine of a run.

    Attributes:
        flags: options that differ from their defaults; None in older records.
        options: all options as recorded.
        commands: command of each session.
        configuration: the file that the command names; None if it names none.
        machine: facts about the place of the run.
    """

    flags: Sequence[str] | None
    options: Sequence[Fact]
    commands: Sequence[str]
    configuration: str | None
    machine: Sequence[Fact]


@dataclass(frozen=True)
class PageRun:
    """The section of one run or text log.

    Attributes:
        anchor: begins all ids of the section.
        summary: what was run, in one line.
        difference: what tells the run from the others of the page, for its contents.
        errors: notes of severity error, which a reader must know before the answer.
        warnings: notes of severity warning, which stand below the first statements.
        statements: parts in sentences, such as the answer.
        no_picture: why there is no figure; empty if there is one.
        tables: main tables.
        more_tables: tables of the long report.
        notes: as people read them: those on noise share a line.
        settings: None for a text log.
        download: the trace of a median round; None if there is none.
        no_download: why there is no trace.
    """

    title: str
    anchor: str
    folder: str
    summary: str
    difference: str = ""
    errors: Sequence[Note] = ()
    warnings: Sequence[str] = ()
    statements: Sequence[PageStatements] = ()
    pictures: Sequence[PagePicture] = ()
    no_picture: str = ""
    tables: Sequence[PageTable] = ()
    more_tables: Sequence[PageTable] = ()
    notes: Sequence[NoteLine] = ()
    settings: RunSettings | None = None
    download: PageDownload | None = None
    no_download: str = ""


@dataclass(frozen=True)
class ColumnMeaning:
    """Meaning of one column of csv and json."""

    name: str
    meaning: str


@dataclass(frozen=True)
class HeadingMeaning:
    """Meaning of a heading: the columns that its cells are made from."""

    anchor: str
    heading: str
    columns: Sequence[ColumnMeaning]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        pictures: figures that hold several runs.
        no_pictures: why runs that belong in one figure are not drawn together.
        left_out: a message for each run or file that cannot be shown.
        meanings: of the headings of all tables, in the order in which they first appear.
    """

    title: str
    runs: Sequence[PageRun]
    pictures: Sequence[PagePicture] = ()
    no_pictures: str = ""
    left_out: Sequence[str] = ()
    meanings: Sequence[HeadingMeaning] = field(default_factory=list)
