"""Files that are made from the registries of columns, of environment keys and of figures.

``python -m dejavubench.analysis.reference columns > docs/reference/columns.md``, and likewise with
the other keys of :data:`PAGES`.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from dejavubench.analysis import markdown
from dejavubench.analysis.columns import Column, columns_of
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.figures.registry import load_figures
from dejavubench.analysis.reports.report_order import ROW_CLASSES
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.tails_part import TAIL_CELLS
from dejavubench.analysis.tables.text_cells import SHOWN_CELLS
from dejavubench.records.environment import (
    EndEnvironment,
    ExternalSink,
    Gpu,
    HostClock,
    NcclLoopback,
    PointEnvironment,
    RankEnvironment,
    RunEnvironment,
)

COLUMNS_INTRODUCTION = """\
# Columns

`dejavubench process --format csv` and `--format json` write one row for each point and arm of a
run. Of a text log they write one row for each rank. A row has all columns below. The table for
people shows some of them, under the heading in the third column. A value that is missing is empty
in csv and `null` in json. Tables with [rows of their own](#columns-of-other-tables) follow.

This page is made by `python -m dejavubench.analysis.reference columns`.
"""

LONG_INTRODUCTION = """\
# Columns of other tables

These tables have several rows for each arm. In json, each stands under its name beside `rows`.
`process --format csv --table NAME` writes one of them.
"""

COMPARISON_INTRODUCTION = """\
# Columns of comparisons

`dejavubench compare --format csv` writes one row for each arm that both sides have. In json these
rows stand under `rows`.
"""

FIGURES_INTRODUCTION = """\
# Columns of the figures' data

`dejavubench figures` writes a csv file beside each figure, with the data that it draws.
"""

ENVIRONMENT_INTRODUCTION = """\
# Keys of the environment

`environment` in `run.json`, and in the first and last record of each rank, says where a run took
place. Older programs recorded fewer keys, so every key may be missing. Readers ignore keys that
they do not know.

This page is made by `python -m dejavubench.analysis.reference environment`.
"""

ENVIRONMENTS = (
    *(RunEnvironment, RankEnvironment, EndEnvironment),
    *(Gpu, PointEnvironment, ExternalSink, NcclLoopback, HostClock),
)
"""The models of the environment's keys, in the order of the page."""


def list_headings() -> dict[str, str]:
    """Return by column its heading in the table for people."""
    return {
        name: cell.heading
        # One column may be in several tables; it has one heading in all of them.
        for cells in (*SHOWN_CELLS.values(), TAIL_CELLS)
        for cell in cells
        for name in cell.columns
    }


def make_columns_page() -> str:
    """Return the text of ``docs/reference/columns.md``."""
    lines = [COLUMNS_INTRODUCTION]
    heading_by_column = list_headings()
    for group, columns in _group_columns(columns_of(Row)):
        rows = [
            [
                f"`{column.name}`",
                column.unit or "",
                heading_by_column.get(column.name, ""),
                column.meaning,
            ]
            for column in columns
        ]
        table = markdown.make_table(
            ("column", "unit", "heading", "meaning"), rows, left_column_count=4
        )
        lines += [
            f"## {_title_of(group)}",
            "",
            _make_paragraph(_summary_of(_GROUP_CLASSES[group])),
            "",
            *table,
            "",
        ]
    lines.append(LONG_INTRODUCTION)
    for name, row_class in ROW_CLASSES.items():
        lines += _section_of(row_class, f" (`{name}`)")
    lines += [COMPARISON_INTRODUCTION, *_section_of(ComparisonRow)]
    lines.append(FIGURES_INTRODUCTION)
    for row in dict.fromkeys(figure.row for figure in load_figures()):
        lines += _section_of(row)
    return "\n".join(lines).rstrip() + "\n"


def _section_of(row: type[Any], name: str = "") -> list[str]:
    """Return the section of a row's class; its docstring begins with the title and a colon."""
    columns = [
        [f"`{column.name}`", column.unit or "", column.meaning] for column in columns_of(row)
    ]
    # "Parts of an overhead: one row for …" becomes a heading and a sentence.
    title, _, explanation = _summary_of(row).partition(": ")
    table = markdown.make_table(("column", "unit", "meaning"), columns, left_column_count=3)
    return [
        f"## {title}{name}",
        "",
        _make_paragraph(explanation[0].upper() + explanation[1:]),
        "",
        *table,
        "",
    ]


def make_environment_page() -> str:
    """Return the text of ``docs/reference/environment.md``."""
    lines = [ENVIRONMENT_INTRODUCTION]
    for model in ENVIRONMENTS:
        rows = [
            [f"`{name}`", _make_sentence(field.description or "")]
            for name, field in model.model_fields.items()
        ]
        table = markdown.make_table(("key", "meaning"), rows, left_column_count=2)
        lines += [
            f"## {_title_of(model.__name__)}",
            "",
            _make_paragraph(_summary_of(model)),
            "",
            *table,
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def make_makefile_text() -> str:
    """Return the figures of ``make figures``, with the ranks and flags of their runs."""
    quick_runs = [
        (figure.name, figure.quick_run) for figure in load_figures() if figure.quick_run is not None
    ]
    lines = [
        "# Runs of `make figures`, made by `python -m dejavubench.analysis.reference makefile`.",
        f"FIGURES := {' '.join(name for name, _ in quick_runs)}",
    ]
    for name, run in quick_runs:
        lines += ["", f"RANKS_{name} := {run.rank_count}", f"QUICK_{name} := {run.flags}"]
    return "\n".join(lines) + "\n"


_GROUP_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Row, *get_type_hints(Row).values())
    if inspect.isclass(kind) and is_dataclass(kind)
}


def _group_columns(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """Put columns of one group together, in the order of the groups' first columns."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.group, []).append(column)
    return list(groups.items())


def _title_of(class_name: str) -> str:
    """Return the words of a class name."""
    phrase = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in class_name)
    return phrase.strip().capitalize()


def _make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _summary_of(described_class: type[Any]) -> str:
    """Return a class's docstring as one paragraph."""
    return " ".join((inspect.getdoc(described_class) or "").split()).replace("``", "`")


def _make_paragraph(text: str) -> str:
    return textwrap.fill(text, 100)


@dataclass(frozen=True)
class MadeFile:
    """A file that is made: its path in the repository, and its text."""

    path: str
    text: Callable[[], str]


PAGES: dict[str, MadeFile] = {
    "columns": MadeFile("docs/reference/columns.md", make_columns_page),
    "environment": MadeFile("docs/reference/environment.md", make_environment_page),
    "makefile": MadeFile("scripts/figures.mk", make_makefile_text),
}
"""The files that are made, by the name that the command line takes."""

if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]].text())
