"""Fig 2: time of a prompt and of one token against the prompt's length, without streaming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, QuickRun, list_streaming_arms
from dejavubench.analysis.figures.framing import add_legend
from dejavubench.analysis.figures.shared_columns import (
    estimate_series,
    list_shown_arms,
    split_estimate,
)
from dejavubench.analysis.figures.style import (
    GRID,
    LETTER_WIDTH,
    LINES,
    MARKERS,
    TEXT_SIZE,
    collect_legend,
    errors_of,
    make_ordered_colours,
    make_panels,
    tick_each_decade,
)
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.process_columns import (
    POINT_COLUMNS,
    SETTING_COLUMNS,
    SettingColumns,
    Sizes,
)
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

PANEL_INCHES = 1.7
"""Width of a panel's axis, roughly."""

FEWEST_FOR_A_LINE = 3
"""Prompt lengths from which a line joins them. Two points would make any curve look straight."""

_QUANTITIES = (
    ("prompt", "_ms", "prompt time (ms)"),
    ("token", "_ms", "time per token (ms)"),
    ("prompt_over_token", "", "prompt / token time (×)"),
)


@dataclass(kw_only=True)
class PromptTokenRow:
    """Fig 2 and Appendix A: one row per point, of the first baseline."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm."]
    samples: Annotated[int, "Measured rounds."]
    prompt_ms: Annotated[float | None, "Time of the prompt phase, median over rounds."]
    prompt_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    prompt_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    token_ms: Annotated[float | None, "Time of one decode step, median over rounds."]
    token_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    token_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    prompt_over_token: Annotated[float | None, "Prompt time over token time, paired by round."]
    prompt_over_token_low: Annotated[float | None, "Lower end of its 95 % interval."]
    prompt_over_token_high: Annotated[float | None, "Upper end of its 95 % interval."]
    setting: SettingColumns


class Fig2(Figure):
    """Rows are models, columns prompt ms, token ms and their ratio; a line per batch."""

    name = "fig2"
    title = "Like Fig 2 of the paper: time of a prompt and of one token, no streaming"
    row = PromptTokenRow
    method = (
        "Medians over rounds. The ratio divides a round's prompt time by its median token time."
    )
    reading = "The ratio is paired by round."
    mixed_sizes = (*POINT_COLUMNS, *SETTING_COLUMNS)
    quick_run = QuickRun(1, "--rounds 3 --model gpt2,opt-125m --input-len 32,128 --output-len 8")

    def fits(self, run: Run) -> bool:
        """Return whether no arm streams."""
        return not list_streaming_arms(run)

    def rows(self, run: Run) -> list[PromptTokenRow]:
        """Return one row per point: median prompt, median token, and the median of their ratios."""
        rows = []
        for point, arm in list_shown_arms(run):
            if arm.info.role != "baseline" or not arm.times.prompt:
                continue
            ratios = (
                # Round by round, like an overhead: drift cancels.
                stats.compute_paired_ratios(arm.times.prompt, [arm.times.token])
                if arm.times.token
                else ()
            )
            prompt, prompt_low, prompt_high = split_estimate(estimate_series(arm.times.prompt))
            token, token_low, token_high = split_estimate(estimate_series(arm.times.token))
            ratio, ratio_low, ratio_high = split_estimate(
                stats.estimate(ratios) if len(ratios) else None
            )
            rows.append(
                PromptTokenRow(
                    run=run.path.name,
                    point=point.info.id,
                    sizes=Sizes.of_point(point.info),
                    arm=arm.info.name,
                    samples=len(arm.times.total),
                    prompt_ms=prompt,
                    prompt_low_ms=prompt_low,
                    prompt_high_ms=prompt_high,
                    token_ms=token,
                    token_low_ms=token_low,
                    token_high_ms=token_high,
                    prompt_over_token=ratio,
                    prompt_over_token_low=ratio_low,
                    prompt_over_token_high=ratio_high,
                    setting=SettingColumns.of_point(point.info),
                )
            )
        return rows

    def draw(self, frame: pd.DataFrame, _: Destinations) -> Picture:
        """Draw a row of three panels per model, with one line per batch over the prompt length."""
        # Batch and prompt length are lines and axis; any other size that varies gets a row.
        other_names = [
            name for name in self.mixed_sizes if name not in ("ubatch_size", "input_len")
        ]
        varying_names = [
            "model",
            *(name for name in other_names if name != "model" and frame[name].nunique() > 1),
        ]
        rows_of_panels = [panel_rows for _, panel_rows in frame.groupby(varying_names, sort=False)]
        picture, axes = make_panels(len(rows_of_panels), 3, 0.1 + 1.95 * len(rows_of_panels))
        batches = sorted(frame["ubatch_size"].unique())
        colours = make_ordered_colours(len(batches))
        for row, panel_rows in zip(axes, rows_of_panels, strict=True):
            row[0].set_title(captions.format_panel_title(panel_rows, varying_names))
            for ax, (name, unit, label) in zip(row, _QUANTITIES, strict=True):
                for batch_index, (batch, colour) in enumerate(zip(batches, colours, strict=True)):
                    points = panel_rows[panel_rows["ubatch_size"] == batch].sort_values("input_len")
                    _draw_points(ax, points, (name, unit), batch_index, colour)
                _set_length_ticks(ax, sorted(panel_rows["input_len"].unique()))
                # Of the whole frame, so that all rows of a column have one kind of axis.
                _scale_values(ax, frame[f"{name}{unit}"].dropna())
                ax.set_ylabel(label)
        add_legend(picture, *collect_legend(axes.flat))
        return picture


def _draw_points(
    ax: Axes, points: pd.DataFrame, quantity: tuple[str, str], batch_index: int, colour: str
) -> None:
    """Draw one batch: its points on their ticks, joined only where a curve is known."""
    name, unit = quantity
    points = points[points[f"{name}{unit}"].notna()]
    if points.empty:
        return
    is_joined = len(points) >= FEWEST_FOR_A_LINE
    ax.errorbar(
        points["input_len"],
        points[f"{name}{unit}"].astype(float),
        yerr=errors_of(points, name, unit),
        color=colour,
        marker=MARKERS[batch_index % len(MARKERS)],
        linestyle=LINES[batch_index % len(LINES)] if is_joined else "none",
        markersize=5,
        linewidth=1.2,
        capsize=2.5,
        label=f"batch {points['ubatch_size'].iloc[0]}",
    )


def _set_length_ticks(ax: Axes, lengths: Sequence[int]) -> None:
    """Put a tick at each length, on a log axis if that sets the closest two further apart."""
    linear_distance = _find_closest_distance(lengths)
    log_distance = _find_closest_distance([math.log(length) for length in lengths])
    if log_distance > linear_distance:
        ax.set_xscale("log", base=2)
    ax.set_xticks([], minor=True)
    ax.set_xticks(lengths, [str(length) for length in lengths])
    if (
        max(linear_distance, log_distance) * PANEL_INCHES
        < (len(str(lengths[-1])) + 1) * LETTER_WIDTH * TEXT_SIZE / 72
    ):
        ax.tick_params(axis="x", labelrotation=90)
    # Room for markers at the first and the last length.
    ax.margins(x=0.15)
    ax.set_xlabel("prompt length (tokens)")


def _find_closest_distance(values: Sequence[float]) -> float:
    """Return the smallest distance of two neighbours, relative to the whole axis with margins."""
    if len(values) < 2:
        return 1.0
    return min(b - a for a, b in pairwise(values)) / (1.3 * (values[-1] - values[0]))


def _scale_values(ax: Axes, values: pd.Series) -> None:
    """Begin the axis at zero, or make it log if the values span more than a factor of 30."""
    ax.grid(axis="y", **GRID)
    if len(values) and values.max() > 30 * values.min() > 0:
        ax.set_yscale("log")
        tick_each_decade(ax.yaxis)
    else:
        data_top = ax.dataLim.y1  # −inf where nothing was drawn
        ax.set_ylim(0, 1.1 * data_top if data_top > 0 else None)


FIGURE = Fig2()
