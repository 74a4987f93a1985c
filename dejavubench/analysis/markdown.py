"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """Return a table's lines; the first ``left`` columns are aligned left, the others right."""
    align = ["---" if column_index < left else "---:" for column_index in range(len(headings))]
    return [line(headings), line(align), *map(line, rows)]


def line(cells: Iterable[str]) -> str:
    """Return one row of a table."""
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
