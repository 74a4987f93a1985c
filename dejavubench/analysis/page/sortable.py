"""Tables of a report as tables of a page: cells with the numbers that they are sorted by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dejavubench.analysis.columns import Column, columns_of
from dejavubench.analysis.number_texts import MINUS
from dejavubench.analysis.page.contents import (
    CellKind,
    ColumnMeaning,
    HeadingMeaning,
    PageCell,
    PageHeading,
    PageTable,
)
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import ReportPart
from dejavubench.analysis.tables.text_tables import Block

MISSING_TEXTS = ("", "–")
"""Cells without a value."""

UNIT_NBYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
"""Units that cells of one column may differ in, with their bytes."""

FIRST_COLUMNS = {"overhead_pct", "token_overhead_pct", "p99_overhead_pct", "verdict"}
"""Columns that a page shows right behind the names of the rows, where a phone has room for them."""

NUMBER_PATTERN = re.compile(
    rf"(?:noise )?(?P<sign>[+{MINUS}-]?)(?P<digits>\d[\d,]*(?:\.\d+)?)"
    r"(?: (?P<unit>[kMG]?B)\b|(?=[\s×%]|$))"
)
"""A number at the beginning of a cell: ``+4.36 [+0.31, +6.15]``, ``noise −2.27``, ``1.5 GB``."""


def cell_of(text: str) -> PageCell:
    """Return a cell with the number that its text begins with."""
    if text.strip() in MISSING_TEXTS:
        return PageCell(text, CellKind.MISSING)
    match = NUMBER_PATTERN.match(text)
    if match is None:
        return PageCell(text, CellKind.TEXT)
    value = float(match["digits"].replace(",", "")) * UNIT_NBYTES.get(match["unit"] or "", 1.0)
    return PageCell(text, CellKind.NUMBER, -value if match["sign"] in (MINUS, "-") else value)


class Meanings:
    """The meanings of the headings of a page's tables, each once."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, tuple[Column, ...]], HeadingMeaning] = {}

    def all(self) -> list[HeadingMeaning]:
        """Return the meanings in the order in which headings asked for them."""
        return list(self._entries.values())

    def anchor_of(self, part: ReportPart[Any], block: Block, heading: str) -> str | None:
        """Return the id of a heading's meaning; None if the registry of columns lacks it."""
        columns = tuple(_find_columns(part, block.sources.get(heading, ())))
        if not columns:
            return None
        key = heading, columns
        if key not in self._entries:
            slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
            self._entries[key] = HeadingMeaning(
                anchor=f"meaning-{len(self._entries) + 1}-{slug}",
                heading=_join_lines(heading),
                columns=[
                    ColumnMeaning(column.name, column.meaning)
                    for column in _drop_interval_ends(columns)
                ],
            )
        return self._entries[key].anchor


def _find_columns(part: ReportPart[Any], column_names: Sequence[str]) -> list[Column]:
    """Return columns by their names, of the part's own rows if these have all of them."""
    for row_class in (part.row, Row):
        by_name = (
            {} if row_class is None else {column.name: column for column in columns_of(row_class)}
        )
        if column_names and set(column_names) <= set(by_name):
            return [by_name[name] for name in column_names]
    return []


INTERVAL_END_PATTERN = re.compile(r"_(low|high)_[a-z]+$")
"""Columns of the ends of an interval, which a cell shows in brackets."""


def _drop_interval_ends(columns: Sequence[Column]) -> Sequence[Column]:
    """Return the columns without ends of intervals, unless there is nothing else."""
    return [column for column in columns if not INTERVAL_END_PATTERN.search(column.name)] or columns


def page_heading(text: str) -> str:
    """Return a part's heading; a terminal has capitals where a page has a larger font."""
    return text.capitalize() if text.isupper() else text[:1].upper() + text[1:]


def make_tables(
    part: ReportPart[Any], blocks: Sequence[Block], prefix: str, meanings: Meanings
) -> list[PageTable]:
    """Return the tables of a part of a report.

    Args:
        prefix: begins the ids of the tables.
        meanings: gets those of the headings.
    """
    tables = [
        _make_table(part, block, f"{prefix}-{table_number}", meanings)
        for table_number, block in enumerate(blocks, start=1)
    ]
    if len(tables) == 1 and not tables[0].title.startswith(part.heading):
        # The title of a terminal's table may be its sizes; a page has a heading above them.
        return [replace(tables[0], title=page_heading(part.heading), subtitle=tables[0].title)]
    return tables


def _make_table(part: ReportPart[Any], block: Block, anchor: str, meanings: Meanings) -> PageTable:
    order = sorted(range(len(block.columns)), key=lambda index: _rank_column(block, index))
    headings = [
        PageHeading(
            _join_lines(block.columns[index]),
            meanings.anchor_of(part, block, block.columns[index]),
            index < block.leading_column_count,
        )
        for index in order
    ]
    groups = [
        [[cell_of(_join_lines(text)) for text in _order_cells(row, order, block)] for row in group]
        for group in block.groups
    ]
    return PageTable(block.title or part.heading, anchor, headings, groups)


def _rank_column(block: Block, column_index: int) -> int:
    """Return 0 for a column that names the rows, 1 for what a reader looks for first, else 2."""
    if column_index < block.leading_column_count:
        return 0
    sources = block.sources.get(block.columns[column_index], ())
    return 2 if FIRST_COLUMNS.isdisjoint(sources) else 1


def _order_cells(row: Sequence[str], order: Sequence[int], block: Block) -> Sequence[str]:
    """Return the cells of a row in order; a status alone, such as SKIPPED, stays in its place."""
    is_status = all(text in MISSING_TEXTS for text in row[block.leading_column_count + 1 :])
    return row if is_status else [row[index] for index in order]


def _join_lines(text: str) -> str:
    return " ".join(text.split("\n"))
