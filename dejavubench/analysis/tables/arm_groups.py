"""Lines of a table that belong to arms, in the order of the arms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.text_cells import Cell


def group_by_arm(
    rows: Sequence[Row],
    leading_cells: Sequence[Cell],
    cells_by_arm: Iterable[tuple[tuple[str, str], list[str]]],
) -> list[list[list[str]]]:
    """Return the groups of a table: one for each arm that has lines.

    Args:
        rows: the arms, in the order of the table.
        leading_cells: name the arm at the beginning of each line.
        cells_by_arm: (point, arm), and the other cells of a line.
    """
    lines_by_arm: dict[tuple[str | None, str], list[list[str]]] = defaultdict(list)
    for point_and_arm, cells in cells_by_arm:
        lines_by_arm[point_and_arm].append(cells)
    return [
        [[*(cell.write(row) for cell in leading_cells), *cells] for cells in arm_lines]
        for row in rows
        if (arm_lines := lines_by_arm.get((row.point, row.arm)))
    ]
