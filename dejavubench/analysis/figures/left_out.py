"""The sentence of a caption that names what is not shown, and why."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from dejavubench.analysis.tables import run_rows
from dejavubench.analysis.tables.row_blocks import make_varying_cells
from dejavubench.analysis.tables.text_cells import POINT_CELL
from dejavubench.records import Run
from dejavubench.units import format_count_of

MOST_NAMED_POINTS = 2
"""Points that a caption names of those that are not shown for one reason."""


def left_out_sentence(runs: Sequence[Run]) -> str:
    """Return which arms are not shown, and why."""
    arms_by_status: dict[str, list[str]] = {}
    for run in runs:
        rows = run_rows.run_rows(run)
        size_cells = [cell for cell in make_varying_cells(rows) if cell is not POINT_CELL]
        for _, of_point in groupby(rows, key=lambda row: row.point):
            point_rows = list(of_point)
            sizes = ", ".join(f"{cell.heading} {cell.write(point_rows[0])}" for cell in size_cells)
            for status in dict.fromkeys(row.status for row in point_rows if not row.ok):
                arm_names = [row.arm for row in point_rows if row.status == status]
                group_text = _format_group(
                    sizes, arm_names, are_all=len(arm_names) == len(point_rows)
                )
                arms_by_status.setdefault(status, []).append(group_text)
    clauses = [f"{status}: {_join_first_texts(texts)}" for status, texts in arms_by_status.items()]
    return f"Not shown: {'; '.join(clauses)}." if clauses else ""


def _format_group(sizes: str, arm_names: Sequence[str], are_all: bool) -> str:
    """Return the arms of one point and the sizes that tell it apart, as far as both are needed."""
    arms = "all arms" if are_all else ", ".join(arm_names)
    if are_all and sizes:
        return sizes
    return f"{arms} of {sizes}" if sizes else arms


def _join_first_texts(texts: Sequence[str]) -> str:
    """Return the first texts, and how many more there are."""
    shown_text = "; ".join(texts[:MOST_NAMED_POINTS])
    further_count = len(texts) - MOST_NAMED_POINTS
    if further_count <= 0:
        return shown_text
    return f"{shown_text}; and {format_count_of(further_count, 'more point')}"
