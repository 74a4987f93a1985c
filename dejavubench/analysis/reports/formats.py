"""Reports as tables for people, as markdown, csv or json.

Tables and markdown show narrow blocks and the notes: those of the whole report, or of a short
one (:meth:`~dejavubench.analysis.reports.report.RunReport.without_long_tables`). json holds
every column of every table, csv those of one table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from dejavubench.analysis import markdown
from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.reports.report import RunReport
from dejavubench.analysis.reports.report_order import ROW_CLASSES
from dejavubench.analysis.reports.table_schema import TABLE_SCHEMA
from dejavubench.analysis.tables import text_tables
from dejavubench.analysis.tables.process_columns import make_frame
from dejavubench.analysis.tables.text_tables import TextLine, wrap
from dejavubench.records import Severity

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Severity, str] = {"error": "red", "warning": "red", "info": ""}
"""Styles of notes on a terminal."""


def write(reports: Sequence[RunReport], style: str, out: IO[str], table: str = "arms") -> None:
    """Write reports as ``csv``, ``json`` or ``markdown``; :func:`show` prints tables.

    Args:
        table: rows of csv: ``arms``, or the name of a part that has rows. json has all of them.
    """
    if style == "csv":
        out.write(_to_csv(reports, table))
    elif style == "json":
        documents = [
            {
                "run": report.title,
                "header": report.header,
                "notes": report.note_texts,
                "rows": [values_by_column(row) for row in report.rows],
                **{
                    name: [values_by_column(row) for row in rows]
                    for name, rows in report.rows_of_parts.items()
                },
                "notes_by_kind": [asdict(note) for note in report.notes],
                "schema_version": TABLE_SCHEMA,
            }
            for report in reports
        ]
        json.dump(documents, out, indent=2, allow_nan=False, ensure_ascii=False)
        out.write("\n")
    else:
        out.write("\n".join(as_markdown(report) for report in reports))


def _to_csv(reports: Sequence[RunReport], table: str) -> str:
    if table == "arms":
        return make_frame(row for report in reports for row in report.rows).to_csv(index=False)
    rows = (row for report in reports for row in report.rows_of_parts.get(table, []))
    return make_frame(rows, ROW_CLASSES[table]).to_csv(index=False)


def as_markdown(report: RunReport) -> str:
    """Return one report as markdown: title, settings, parts, then notes."""
    texts = [f"## {report.title}", ""]
    if report.settings:
        texts += [f"Settings: `{report.settings}`", ""]
    for part, content in report.parts:
        if content.sentences:
            texts += [
                f"**{part.heading}**",
                "",
                *([f"*{content.legend}*", ""] if content.legend else []),
                *(f"- {sentence}" for sentence in content.sentences),
            ]
            texts.append("")
        for block in content.blocks:
            rows = [cells for group in block.groups for cells in group]
            table = markdown.make_table(block.columns, rows, block.leading_column_count)
            texts += [f"**{block.title}**", "", *table, ""]
    return "\n".join([*texts, *(f"- {line.text}" for line in report.note_lines)]) + "\n"


def show(reports: Sequence[RunReport], screen: Console) -> None:
    """Print reports on a rich console, within its width."""
    for report_index, report in enumerate(reports):
        text_tables.show(
            [*([TextLine("")] if report_index else []), *make_lines(report, screen.width)], screen
        )


def make_lines(report: RunReport, width: int) -> list[TextLine]:
    """Return a report as lines of at most ``width`` columns, unless a word is longer."""
    text_lines = [TextLine(text, "bold") for text in wrap(report.title, width)]
    if report.settings:
        text_lines += map(TextLine, wrap(f"settings: {report.settings}", width, indent="  "))
    for part, content in report.parts:
        if content.sentences:
            text_lines.append(TextLine(part.heading, "bold"))
            legend = wrap(content.legend, width, indent="  ") if content.legend else ()
            text_lines += [TextLine(text, "dim") for text in legend]
            for sentence in content.sentences:
                text_lines += map(TextLine, wrap(sentence, width, indent="  "))
            text_lines.append(TextLine(""))
        for block in content.blocks:
            text_lines += [*text_tables.make_lines(block, width), TextLine("")]
    for line in report.note_lines:
        texts = wrap(line.text, width, indent="  ")
        text_lines += [TextLine(text, STYLES[line.severity]) for text in texts]
    text_lines += map(
        TextLine, wrap(report.more_text, width, indent="  ") if report.more_text else ()
    )
    return text_lines
