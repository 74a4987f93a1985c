"""Reports as tables for people, as markdown, csv or json.

Tables and markdown show two narrow blocks or more per run, and the notes. json holds every
column of every table, csv those of one table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from dejavubench.analysis import markdown
from dejavubench.analysis.columns import flat
from dejavubench.analysis.tables import layout
from dejavubench.analysis.tables.layout import TextLine, wrapped
from dejavubench.analysis.tables.longtables import LONG_TABLES
from dejavubench.analysis.tables.precision import NOT_REACHED
from dejavubench.analysis.tables.report import RunReport
from dejavubench.analysis.tables.rows import frame
from dejavubench.analysis.tables.tableschema import TABLE_SCHEMA

if TYPE_CHECKING:
    from rich.console import Console


WARNINGS = (
    "FAILED",
    "INTERRUPTED",
    "INCOMPLETE",
    "CHANGED",
    "LOST",
    "NOISY",
    "NO MPS",
    NOT_REACHED,
    *("DISTURBED", "THROTTLED", "PATH"),
)
"""First words of notes that are shown in red."""


def write(reports: Sequence[RunReport], style: str, out: IO[str], table: str = "arms") -> None:
    """Write reports as ``csv``, ``json`` or ``markdown``; :func:`show` prints tables.

    Args:
        table: rows of csv: ``arms``, or the name of one of the long tables. json has all of them.
    """
    if style == "csv":
        out.write(_csv(reports, table))
    elif style == "json":
        documents = [
            {
                "run": item.title,
                "header": item.header,
                "notes": item.notes,
                "rows": [flat(row) for row in item.rows],
                **{name: [flat(row) for row in rows] for name, rows in item.long.items()},
                "schema_version": TABLE_SCHEMA,
            }
            for item in reports
        ]
        json.dump(documents, out, indent=2, allow_nan=False, ensure_ascii=False)
        out.write("\n")
    else:
        out.write("\n".join(as_markdown(item) for item in reports))


def _csv(reports: Sequence[RunReport], table: str) -> str:
    if table == "arms":
        return frame(row for item in reports for row in item.rows).to_csv(index=False)
    row_class = next(each.row for each in LONG_TABLES if each.name == table)
    rows = (row for item in reports for row in item.long.get(table, []))
    return frame(rows, row_class).to_csv(index=False)


def as_markdown(item: RunReport) -> str:
    lines = [f"## {item.title}", ""]
    if item.settings:
        lines += [f"Settings: `{item.settings}`", ""]
    for block in item.blocks:
        rows = [cells for group in block.groups for cells in group]
        table = markdown.table(block.columns, rows, block.leading)
        lines += [f"**{block.title}**", "", *table, ""]
    return "\n".join([*lines, *(f"- {note}" for note in item.notes)]) + "\n"


def show(reports: Sequence[RunReport], screen: Console) -> None:
    """Print reports on a rich console, within its width."""
    for number, item in enumerate(reports):
        layout.show([*([TextLine("")] if number else []), *lines(item, screen.width)], screen)


def lines(item: RunReport, width: int) -> list[TextLine]:
    """Return a report as lines of at most ``width`` columns, unless a word is longer."""
    shown = [TextLine(text, "bold") for text in wrapped(item.title, width)]
    if item.settings:
        shown += map(TextLine, wrapped(f"settings: {item.settings}", width, indent="  "))
    for block in item.blocks:
        shown += [*layout.lines(block, width), TextLine("")]
    for note in item.notes:
        style = "red" if note.startswith(WARNINGS) else ""
        shown += [TextLine(text, style) for text in wrapped(note, width, indent="  ")]
    return shown
