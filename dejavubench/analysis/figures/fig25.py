"""Fig 25: overhead of a request with its whole KV cache streamed, to each destination."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, QuickRun, list_streaming_arms
from dejavubench.analysis.figures.shared_columns import is_loopback
from dejavubench.analysis.figures.style import (
    ERROR_BARS,
    GRID,
    NOISE_GREY,
    TEXT_SIZE,
    choose_filling,
    errors_of,
    make_panels,
)
from dejavubench.analysis.figures.totals import TotalRow, is_told, make_total_rows
from dejavubench.analysis.number_texts import (
    MINUS,
    format_ms,
    format_percent_interval,
    format_signed_percent,
)
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations, find_destination

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

BAR_HEIGHT = 0.62
"""Height of a bar; arms are 1 apart."""

ROW_INCHES = 0.36
"""Height of a row: two lines of a label, and a gap."""

LABEL_LETTERS = 20
"""Letters of a label's line; a longer label would take the panel's width."""

OVERHEAD_POINTS = 10
"""Distance of the overheads' left edge from the panel."""

TOTAL_POINTS = 178
"""Distance of the times' right edge from the panel."""


class Fig25(Figure):
    """A bar per arm for the overhead, with the numbers beside it; a panel per point."""

    name = "fig25"
    title = "Like Fig 25 of the paper: a request with its whole KV cache streamed"
    row = TotalRow
    method = (
        "Overhead: TOTAL divided by the geometric mean of the same round's none TOTALs, less one, "
        "median over rounds. TOTAL of none: geometric mean of the medians of none and none#2. "
        "Right column: TOTAL of none times 1 + overhead; the tables have medians. Noise floor: "
        "interval of the overhead of none#2 over none. An overhead is told from noise if its "
        "interval excludes 0 and it exceeds the farther end of the noise floor."
    )
    mixed_sizes = ("ubatch_size", "input_len", "output_len")
    quick_run = QuickRun(2, "--rounds 6 --ubatch-size 2 --input-len 128 --output-len 16")

    def fits(self, run: Run) -> bool:
        """Return whether the streaming arms have a single level."""
        return len({arm.level for arm in list_streaming_arms(run)}) == 1

    def rows(self, run: Run) -> list[TotalRow]:
        """Return one row per point and arm, with an overhead for the arms that stream."""
        return make_total_rows(run)

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw one panel per point, with one row per arm that streams."""
        groups = frame.groupby([*self.mixed_sizes, "run", "point"], sort=False)
        rows_of_points = [point_rows for _, point_rows in groups]
        varying_names = [name for name in self.mixed_sizes if frame[name].nunique() > 1]
        arms_of_points = [
            _sort_arms(point_rows[point_rows["role"] == "streaming"], destinations)
            for point_rows in rows_of_points
        ]
        heights = [1 + len(arm_rows) for arm_rows in arms_of_points]
        picture, axes = make_panels(
            len(arms_of_points),
            1,
            0.5 + sum(0.25 + ROW_INCHES * height for height in heights),
            height_ratios=heights,
            sharex=True,
        )
        for ax, arm_rows, point_rows in zip(
            axes[:, 0], arms_of_points, rows_of_points, strict=True
        ):
            if varying_names:
                ax.set_title(captions.format_panel_title(point_rows, varying_names))
            _draw_overheads(ax, arm_rows, destinations)
            _write_numbers(ax, arm_rows, _compute_none_ms(point_rows))
            _name_rows(ax, arm_rows, point_rows, destinations)
        axes[-1, 0].set_xlabel("overhead over none, paired by round (%)")
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the meaning of grey and of bold."""
        return [captions.grey_sentence(frame), captions.told_from_noise_sentence(frame, "Bold")]


def _sort_arms(arm_rows: pd.DataFrame, destinations: Destinations) -> pd.DataFrame:
    """Return the arms in the order of destinations, not of the seed's rounds; stable for levels."""
    orders = [find_destination(mode, destinations).order for mode in arm_rows["mode"]]
    return arm_rows.assign(order=orders).sort_values("order", kind="stable")


def _compute_none_ms(point_rows: pd.DataFrame) -> float | None:
    """Return TOTAL of none: the geometric mean of the medians of the baselines, if there are."""
    totals_ms = point_rows[point_rows["role"] != "streaming"]["total_ms"].to_numpy(dtype=float)
    return float(np.exp(np.log(totals_ms).mean())) if totals_ms.size else None


def _draw_overheads(ax: Axes, arm_rows: pd.DataFrame, destinations: Destinations) -> None:
    """Draw noise floor, bars and intervals: none in row 0, then the arms."""
    if captions.has_noise(arm_rows):
        low, high = (
            float(arm_rows[f"noise_floor_{suffix}_pct"].iloc[0]) for suffix in ("low", "high")
        )
        ax.axvspan(low, high, color=NOISE_GREY, lw=0, zorder=0.5, label="noise floor")
    row_numbers = np.arange(1, len(arm_rows) + 1)
    values = arm_rows["overhead_pct"].to_numpy(dtype=float)
    for row_number, value, (_, row) in zip(row_numbers, values, arm_rows.iterrows(), strict=True):
        area = choose_filling(find_destination(row["mode"], destinations), row["durability"])
        ax.barh(row_number, value, height=BAR_HEIGHT, label=row["arm"], **area)
    ax.errorbar(values, row_numbers, xerr=errors_of(arm_rows, "overhead", "_pct"), **ERROR_BARS)
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.margins(x=0.06)
    # Upside down: none at the top.
    ax.set_ylim(len(arm_rows) + 0.5, -0.5)
    ax.grid(axis="x", **GRID)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))


def _write_numbers(ax: Axes, arm_rows: pd.DataFrame, none_ms: float | None) -> None:
    """Write overhead and TOTAL of each row to the right of the panel."""
    _write_text(ax, "overhead, %", (1, 1), OVERHEAD_POINTS, above=True)
    # Not "TOTAL", the tables' word for medians: those of an arm and of none are of other rounds.
    _write_text(ax, "none × (1 + overhead), ms", (1, 1), TOTAL_POINTS, above=True, ha="right")
    noise = "no baseline" if none_ms is None else "baseline"
    if captions.has_noise(arm_rows):
        floor_ends = (
            float(arm_rows[f"noise_floor_{suffix}_pct"].iloc[0]) for suffix in ("low", "high")
        )
        noise = f"noise floor {format_percent_interval(*floor_ends)}"
    # On the grey of the band that it names.
    grey = {"facecolor": NOISE_GREY, "edgecolor": "none", "pad": 2.0}
    has_noise = captions.has_noise(arm_rows)
    _write_text(ax, noise, (1, 0), OVERHEAD_POINTS, bbox=grey if has_noise else None)
    _write_text(ax, format_ms(none_ms), (1, 0), TOTAL_POINTS, ha="right")
    for row_number, (_, row) in enumerate(arm_rows.iterrows(), 1):
        value, low, high = (float(row[f"overhead{suffix}_pct"]) for suffix in ("", "_low", "_high"))
        if none_ms is None or np.isnan(value):
            _write_text(ax, "–", (1, row_number), OVERHEAD_POINTS)
            continue
        interval = "" if np.isnan(low) else f" {format_percent_interval(low, high)}"
        weight = "bold" if is_told(row) else "normal"
        text = f"{format_signed_percent(value)}{interval}"
        _write_text(ax, text, (1, row_number), OVERHEAD_POINTS, fontweight=weight)
        _write_text(
            ax, format_ms(none_ms * (1 + value / 100)), (1, row_number), TOTAL_POINTS, ha="right"
        )


def _write_text(
    ax: Axes,
    text: str,
    anchor: tuple[float, float],
    points: float,
    above: bool = False,
    **style: Any,
) -> None:
    """Write a text some points to the right of the panel, in a row or above all rows."""
    coordinates = "axes fraction" if above else ("axes fraction", "data")
    ax.annotate(
        text,
        anchor,
        xycoords=coordinates,
        xytext=(points, 3 if above else 0),
        textcoords="offset points",
        va="bottom" if above else "center",
        fontsize=TEXT_SIZE,
        annotation_clip=False,
        **style,
    )


def _name_rows(
    ax: Axes, arm_rows: pd.DataFrame, point_rows: pd.DataFrame, destinations: Destinations
) -> None:
    """Name the rows; a level is named only where a destination has several."""
    baseline_names = ", ".join(point_rows[point_rows["role"] != "streaming"]["arm"])
    with_levels = arm_rows["mode"].duplicated(keep=False) & (arm_rows["level"].nunique() > 1)
    labels = [
        _label_row(row, with_level, destinations)
        for (_, row), with_level in zip(arm_rows.iterrows(), with_levels, strict=True)
    ]
    ax.set_yticks(range(len(arm_rows) + 1), [baseline_names, *labels])


def _label_row(row: pd.Series, with_level: bool, destinations: Destinations) -> str:
    name = find_destination(row["mode"], destinations).label
    if with_level and isinstance(row["level"], str):
        name += f", level {row['level']}"
    detail = row["durability"] if isinstance(row["durability"], str) else row["hosts"]
    lines = textwrap.wrap(name, LABEL_LETTERS)
    if isinstance(detail, str) and detail != "local" and not is_loopback(detail):
        lines.append(detail)
    return "\n".join(lines)


FIGURE = Fig25()
