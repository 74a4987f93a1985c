"""Tables as lines of text that fit a width and break no word.

A table that is too wide goes on below itself by whole columns. Each part repeats the columns that
tell its rows apart. Headings take two lines where that saves a part. A cell is wrapped between
words, and only if it alone is wider than a part. A word that is wider than the whole width is left
as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

COLUMN_GAP = "  "
"""Stands between two columns."""

KEYS_SHARE = 0.6
"""Share of the width that the columns which name rows may take; wider cells are wrapped."""

MOST_HEADING_LINES = 2
"""Lines of a wrapped heading."""


@dataclass
class Block:
    """A table as text.

    Attributes:
        leading_column_count: number of columns at the left that name the rows; they are aligned
            left.
        groups: rows of cells, one group for each point.
        breaks: numbers of columns that begin another part, if there must be several.
        sources: names of the columns of csv and json that a heading's cells are made from, by
            heading. A page links a heading to their meanings.
    """

    title: str
    columns: list[str]
    leading_column_count: int
    groups: list[list[list[str]]] = field(default_factory=list)
    breaks: tuple[int, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TextLine:
    """A line of text.

    Attributes:
        style: of rich, such as ``bold``; it shows on a terminal only.
    """

    text: str
    style: str = ""


def show(text_lines: Iterable[TextLine], screen: Console) -> None:
    """Print lines on a rich console, neither cropped nor broken."""
    from rich.text import Text

    for line in text_lines:
        screen.print(Text(line.text, style=line.style), soft_wrap=True)


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text between words. A longer word, such as a path, gets a line of its own.

    Args:
        indent: begins every line but the first.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for gap, word in _split_words(paragraph):
            if line.strip() and len(line) + len(gap) + len(word) > width:
                lines.append(line)
                line = indent + word
            else:
                line += gap + word
        lines.append(line)
    return lines


def make_lines(block: Block, width: int) -> list[TextLine]:
    """Return a table's title and its parts, with a blank line between two parts."""
    columns = [_Column(block, column_index) for column_index in range(len(block.columns))]
    text_lines = (
        [TextLine(text, "italic") for text in wrap(block.title, width)] if block.title else []
    )
    for group_index, group in enumerate(_list_part_columns(block, columns, width)):
        text_lines += [TextLine("")] if group_index else []
        text_lines += _make_part_lines(block, [columns[index] for index in group])
    return text_lines


def _split_words(text: str) -> list[tuple[str, str]]:
    """Return each word with the blanks before it. A number with its % is one word."""
    return re.findall(r"(\s*)(\S+(?: %\S*)?)", text)


class _Column:
    """A column of a block, in lines of text.

    Attributes:
        heading: its lines.
        cells: the lines of each cell, row by row.
    """

    def __init__(self, block: Block, column_index: int) -> None:
        self.is_left_aligned = column_index < block.leading_column_count
        self.text = block.columns[column_index]
        self.heading = self.text.split("\n")
        self.cells = [row[column_index].split("\n") for group in block.groups for row in group]

    @property
    def width(self) -> int:
        return max(self._cells_width, *map(len, self.heading))

    @property
    def _cells_width(self) -> int:
        return max((len(line) for cell in self.cells for line in cell), default=0)

    def fold_heading(self) -> None:
        """Give the heading two lines, as narrow as they can be, if the cells are narrower."""
        if len(self.heading) > 1:  # its lines were given
            return
        narrowest_width = max(
            self._cells_width, *(len(word) for _, word in _split_words(self.text)), 1
        )
        for width in range(narrowest_width, len(self.text)):
            # The narrowest width that still gives two lines: words decide, so try each.
            folded_lines = wrap(self.text, width)
            if len(folded_lines) <= MOST_HEADING_LINES:
                self.heading = folded_lines
                return

    def shrink(self, width: int) -> None:
        """Wrap cells and heading between words."""
        if self.width > width:
            self.heading = [piece for line in self.heading for piece in wrap(line, width)]
            self.cells = [
                [piece for line in cell for piece in wrap(line, width)] for cell in self.cells
            ]


# ---- which columns stand side by side ----


def _list_part_columns(block: Block, columns: Sequence[_Column], width: int) -> list[list[int]]:
    """Return the numbers of the columns of each part."""
    if _measure_width(columns) <= width:
        return [list(range(len(columns)))]
    # Cheapest first: two lines of headings, then narrower keys, then several parts.
    for column in columns:
        column.fold_heading()
    if _measure_width(columns) <= width:
        return [list(range(len(columns)))]
    keys = _find_keys(block)
    _shrink_keys([columns[column_index] for column_index in keys], width)
    spare_width = (
        width - _measure_width([columns[column_index] for column_index in keys]) - len(COLUMN_GAP)
    )
    for column_index, column in enumerate(columns):
        if column_index not in keys:
            column.shrink(spare_width)
    # Parts that repeat the fewest columns are narrow; parts that repeat all leading ones read
    # better. So the latter win unless they need more parts.
    by_keys = _partition(columns, keys, block.breaks, width)
    leading_indices = list(range(block.leading_column_count))
    widest_width = max(
        (column.width for column in columns[block.leading_column_count :]), default=0
    )
    if (
        _measure_width(columns[: block.leading_column_count]) + len(COLUMN_GAP) + widest_width
        > width
    ):
        return by_keys
    by_leading = _partition(columns, leading_indices, block.breaks, width)
    return by_leading if len(by_leading) <= len(by_keys) else by_keys


def _find_keys(block: Block) -> list[int]:
    """Return the fewest leading columns that tell the rows apart, the first one if possible."""
    keys = list(range(block.leading_column_count))
    rows = [row for group in block.groups for row in group]

    def count_distinct(columns: Sequence[int]) -> int:
        return len({tuple(row[column_index] for column_index in columns) for row in rows})

    for column_index in [*range(1, block.leading_column_count), 0]:
        fewer_keys = [key for key in keys if key != column_index]
        if fewer_keys and count_distinct(fewer_keys) == count_distinct(keys):
            keys = fewer_keys
    return keys


def _shrink_keys(keys: Sequence[_Column], width: int) -> None:
    """Wrap the widest of the columns that every part repeats, if they leave too little room."""
    excess_width = _measure_width(keys) - int(KEYS_SHARE * width)
    if excess_width > 0:
        widest_key = max(keys, key=lambda column: column.width)
        widest_key.shrink(max(1, widest_key.width - excess_width))


def _partition(
    columns: Sequence[_Column], repeated_indices: list[int], breaks: Sequence[int], width: int
) -> list[list[int]]:
    """Cut the columns into parts of at most this width, each with the repeated columns."""
    column_groups = [list(repeated_indices)]
    for column_index in range(len(columns)):
        if column_index in repeated_indices:
            continue
        wider_group = sorted([*column_groups[-1], column_index])
        # A part holds at least one column of its own, however wide that is.
        is_full = (
            column_index in breaks
            or _measure_width([columns[index] for index in wider_group]) > width
        )
        if is_full and len(column_groups[-1]) > len(repeated_indices):
            wider_group = sorted([*repeated_indices, column_index])
            column_groups.append(wider_group)
        column_groups[-1] = wider_group
    return column_groups


def _measure_width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(COLUMN_GAP) * (len(columns) - 1)


# ---- one part ----


def _make_part_lines(block: Block, columns: Sequence[_Column]) -> list[TextLine]:
    """Return the lines of one part; a blank line parts groups of several rows."""
    height = max(len(column.heading) for column in columns)
    heading = [[""] * (height - len(column.heading)) + column.heading for column in columns]
    text_lines = [TextLine(text, "bold") for text in _join_columns(columns, heading)]
    text_lines.append(TextLine("─" * _measure_width(columns)))
    row = 0
    for group_index, group in enumerate(block.groups):
        if group_index and len(group) > 1:
            text_lines.append(TextLine(""))
        for cells in group:
            style = "red" if "FAILED" in cells else "dim" if "SKIPPED" in cells else ""
            texts = _join_columns(columns, [column.cells[row] for column in columns])
            text_lines += [TextLine(text, style) for text in texts]
            row += 1
    return text_lines


def _join_columns(columns: Sequence[_Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of cells that stand side by side."""
    text_lines = []
    for line_index in range(max(map(len, cells))):
        texts = []
        for column, cell in zip(columns, cells, strict=True):
            text = cell[line_index] if line_index < len(cell) else ""
            texts.append(
                text.ljust(column.width) if column.is_left_aligned else text.rjust(column.width)
            )
        text_lines.append(COLUMN_GAP.join(texts).rstrip())
    return text_lines
