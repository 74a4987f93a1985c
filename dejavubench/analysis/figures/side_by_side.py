"""A comparison as a picture: times of A beside those of B, and the changes with their intervals.

It is drawn by ``dejavubench compare --figure``, not by ``figures``: it needs two operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.comparison import change_result, change_sentences
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.facts.arm_destinations import run_destinations
from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.style import (
    GRID,
    OKABE_ITO,
    TEXT_SIZE,
    WIDTH,
    errors_of,
    make_panels,
)
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.records.destination_info import Destinations

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

BAR_WIDTH = 0.36
"""Width of a bar; two stand at each arm."""

CHANGES = (
    ("time_change", "time", "o", OKABE_ITO[0]),
    ("overhead_change", "overhead", "s", "#333333"),
)
"""Changes below the bars: start of the column's name, label, marker and colour."""


class SideBySide:
    """Above the times of A and B, below the change of time and overhead; a column per point.

    Args:
        limit_pct: drawn where a gate was asked for.
    """

    def __init__(self, limit_pct: float | None) -> None:
        self._limit_pct = limit_pct

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw times of A and B above, and changes below, one column of panels per point."""
        rows_of_points = [point_rows for _, point_rows in frame.groupby("point_b", sort=False)]
        arms = max(len(point_rows) for point_rows in rows_of_points)
        # Many points make it wider than a page's text, so that they stay side by side.
        width = max(WIDTH, len(rows_of_points) * (1.0 + 1.1 * arms))
        picture, axes = make_panels(
            2, len(rows_of_points), 5.2, width=width, height_ratios=(3, 2), sharex="col"
        )
        for column, point_rows in enumerate(rows_of_points):
            times_ax = axes[0, column]
            changes_ax = axes[1, column]
            if len(rows_of_points) > 1:
                times_ax.set_title(str(point_rows["point_b"].iloc[0]), loc="left")
            _draw_times(times_ax, point_rows)
            self._draw_changes(changes_ax, point_rows)
            changes_ax.set_xticks(
                range(len(point_rows)), [_wrap_arm(name) for name in point_rows["arm"]]
            )
        axes[0, 0].set_ylabel("ms")
        axes[1, 0].set_ylabel("change from A to B (%)")
        axes[0, 0].legend(loc="lower right")
        axes[1, 0].legend(loc="best")
        return picture

    def _draw_changes(self, ax: Axes, point_rows: pd.DataFrame) -> None:
        """Draw the changes of time and overhead with their intervals, and the limit."""
        ax.axhline(0.0, color="black", linewidth=0.7)
        if self._limit_pct is not None:
            label = f"limit {self._limit_pct:g} %"
            ax.axhline(self._limit_pct, color="#D55E00", linewidth=0.9, linestyle="--", label=label)
        for shift, (name, label, marker, colour) in zip((-0.12, 0.12), CHANGES, strict=True):
            values = point_rows[f"{name}_pct"].to_numpy(dtype=float)
            xs = np.arange(len(point_rows)) + shift
            ax.errorbar(
                xs,
                values,
                yerr=errors_of(point_rows, name, "_pct"),
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=4,
                label=label,
            )
            for x, value in zip(xs, values, strict=True):
                if not np.isnan(value):
                    _write_beside(ax, x, value, to_left=shift < 0)
        ax.margins(x=0.12, y=0.15)
        ax.grid(axis="y", **GRID)


def _write_beside(ax: Axes, x: float, value: float, to_left: bool) -> None:
    ax.annotate(
        format_signed_percent(value),
        (x, value),
        xytext=(-6 if to_left else 6, 0),
        textcoords="offset points",
        ha="right" if to_left else "left",
        va="center",
        fontsize=TEXT_SIZE,
    )


def _draw_times(ax: Axes, point_rows: pd.DataFrame) -> None:
    """Draw the times of A and B, two bars at each arm."""
    xs = np.arange(len(point_rows))
    edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
    for shift, name, colour, hatch in ((-1, "a", "#CCCCCC", ""), (1, "b", "#777777", "//")):
        values = point_rows[f"{name}_ms"].to_numpy(dtype=float)
        ax.bar(
            xs + shift * BAR_WIDTH / 2,
            values,
            width=BAR_WIDTH,
            color=colour,
            hatch=hatch,
            label=name.upper(),
            **edge,
        )
    ax.grid(axis="y", **GRID)


def _wrap_arm(arm_name: str) -> str:
    return arm_name.replace(" → ", " →\n")


def make_drawing(comparison: Comparison) -> Drawing:
    """Return a comparison as a drawing, with what a reader must know in the text below it."""
    import pandas as pd

    runs = [*comparison.a.runs, *comparison.b.runs]
    sentences = [
        change_result.describe_result(comparison),
        *(
            f"{change_sentences.describe_operand(operand)}."
            for operand in (comparison.a, comparison.b)
        ),
        captions.describe_machine(comparison.a.runs[0]),
        *(note.text for note in change_sentences.make_notes(comparison)),
        _differences_sentence(comparison.differences),
    ]
    return Drawing(
        figure=SideBySide(100 * comparison.limit if comparison.is_gated else None),
        name="comparison",
        title=change_sentences.make_title(comparison),
        frame=pd.DataFrame([values_by_column(row) for row in comparison.rows]),
        caption=" ".join(sentence for sentence in sentences if sentence),
        destinations={mode: info for run in runs for mode, info in run_destinations(run).items()},
    )


def _differences_sentence(differences: Sequence[object]) -> str:
    return f"A and B also differ in {'; '.join(map(str, differences))}." if differences else ""
