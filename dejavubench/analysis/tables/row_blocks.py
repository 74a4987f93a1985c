"""Tables of rows for people, made of cells; the cells that tell a run's points apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from dejavubench.analysis.tables.headings import SIZE_HEADINGS
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS, Row
from dejavubench.analysis.tables.text_cells import (
    ARM_CELL,
    POINT_CELL,
    SETTING_CELLS,
    SIZE_CELLS,
    Cell,
)
from dejavubench.analysis.tables.text_tables import Block


def make_varying_cells(rows: list[Row]) -> list[Cell]:
    """Return the cells that tell a run's points apart: id, sizes and settings that vary."""
    first_cells = [POINT_CELL] if len({row.point for row in rows}) > 1 else []
    cells = (*SIZE_CELLS.values(), *SETTING_CELLS.values())
    return [*first_cells, *(cell for cell in cells if len({cell.write(row) for row in rows}) > 1)]


def describe_common_sizes(rows: list[Row]) -> str:
    """Return in words the sizes that all points of a run have in common."""
    sizes = {name: {getattr(row.sizes, name) for row in rows} for name in POINT_COLUMNS}
    return ", ".join(
        f"{SIZE_HEADINGS[name]} {value}"
        for name, values in sizes.items()
        if len(values) == 1 and (value := next(iter(values)))
    )


def sources_of(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    """Return by heading the names of the columns that cells are made from."""
    return {cell.heading: cell.columns for cell in cells}


def make_block(
    title: str, rows: Sequence[Row], point_cells: Sequence[Cell], cells: Sequence[Cell]
) -> Block:
    """Make a table of rows, led by what varies and by the arm's name.

    Args:
        point_cells: from :func:`make_varying_cells`, of all rows of the run.
    """
    leading_cells = [*point_cells, ARM_CELL]
    columns = [*leading_cells, *cells]
    table = Block(
        title, [cell.heading for cell in columns], len(leading_cells), sources=sources_of(columns)
    )
    for _, point_rows in groupby(rows, key=lambda row: row.point):
        table.groups.append([])
        for row in point_rows:
            texts = [cell.write(row) for cell in cells] if row.ok else [row.status]
            texts += ["–"] * (len(cells) - len(texts))
            table.groups[-1].append([*(cell.write(row) for cell in leading_cells), *texts])
    return table
