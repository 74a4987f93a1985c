"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left_column_count: int
) -> list[str]:
    """Return a table's lines; the first ``left_column_count`` columns are aligned left."""
    alignments = [
        "---" if column_index < left_column_count else "---:"
        for column_index in range(len(headings))
    ]
    return [make_row(headings), make_row(alignments), *map(make_row, rows)]


def make_row(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    escaped_cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped_cells)} |"
