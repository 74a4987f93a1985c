"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left_columns: int
) -> list[str]:
    """Return a table's lines; the first ``left_columns`` are aligned left, the others right."""
    alignments = [
        "---" if column_index < left_columns else "---:" for column_index in range(len(headings))
    ]
    return [make_row(headings), make_row(alignments), *map(make_row, rows)]


def make_row(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    escaped_cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped_cells)} |"
