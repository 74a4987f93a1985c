"""Heat map: overhead over batch and prompt length, a panel per arm."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, list_streaming_arms
from dejavubench.analysis.figures.shared_columns import is_loopback
from dejavubench.analysis.figures.style import NOISE_GREY, TEXT_SIZE, WIDTH, make_panels
from dejavubench.analysis.figures.totals import TotalRow, is_told, make_total_rows
from dejavubench.analysis.number_texts import format_percent_interval, format_signed_percent
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations, find_destination

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

CELL_WIDTH = 0.93
"""Inches of a cell that has room for an interval."""

CELL_HEIGHT = 0.42
"""Inches of a cell that has room for two lines of text."""

MOST_ACROSS = 3
"""Panels side by side."""

DARKEST_SHARE = 0.5
"""Share of the colour map that is used: black text can be read on all of it."""


class HeatMap(Figure):
    """Rows of a panel are batches, columns prompt lengths; a panel for the noise and per arm."""

    name = "heat_map"
    title = "Overhead of streaming over batch and prompt length"
    row = TotalRow
    method = (
        "Overhead: TOTAL divided by the geometric mean of the same round's none TOTALs, less one, "
        "median over rounds. An overhead is told from noise if its interval excludes 0 and it "
        "exceeds the farther end of the noise floor of its own point."
    )
    reading = "Values are overheads over none in %, paired by round; the more colour, the higher."
    mixed_sizes = ("ubatch_size", "input_len")

    def fits(self, run: Run) -> bool:
        """Return whether some arm streams and both batch and prompt length are swept."""
        points = run.header.points
        sizes_of_axes = [
            {point.ubatch_size for point in points},
            {point.input_len for point in points},
        ]
        return bool(list_streaming_arms(run)) and all(len(values) > 1 for values in sizes_of_axes)

    def rows(self, run: Run) -> list[TotalRow]:
        """Return the rows of Fig 25, one per point and arm."""
        return make_total_rows(run)

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw the noise, then one panel per arm: batches by prompt lengths, by overhead."""
        streaming_rows = frame[frame["role"] == "streaming"]
        orders = [find_destination(mode, destinations).order for mode in streaming_rows["mode"]]
        streaming_rows = streaming_rows.assign(order=orders).sort_values("order", kind="stable")
        rows_of_arms = [arm_rows for _, arm_rows in streaming_rows.groupby("arm", sort=False)]
        grid = _Grid(*(sorted(frame[name].unique()) for name in self.mixed_sizes))
        panel_count = len(rows_of_arms) + captions.has_noise(frame)
        fitting_count = int((WIDTH - 0.4) / (len(grid.lengths) * CELL_WIDTH))
        panels_across = max(1, min(panel_count, MOST_ACROSS, fitting_count))
        panels_down = -(-panel_count // panels_across)
        # Narrow cells have room for the value alone.
        shows_intervals = (WIDTH - 0.4) / (panels_across * len(grid.lengths)) >= CELL_WIDTH
        height = 0.1 + panels_down * (0.65 + CELL_HEIGHT * len(grid.batches))
        picture, axes = make_panels(panels_down, panels_across, height)
        for ax in axes.flat[panel_count:]:
            ax.set_axis_off()
        free_axes = iter(axes.flat)
        if captions.has_noise(frame):
            points = frame.drop_duplicates([*self.mixed_sizes])
            _draw_noise(next(free_axes), points, grid, shows_intervals)
        shade = _choose_shades(frame)
        for ax, arm_rows in zip(free_axes, rows_of_arms, strict=False):
            _draw_arm(ax, arm_rows, grid, shade, shows_intervals)
            ax.set_title(_format_panel_title(arm_rows.iloc[0], destinations))
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the meaning of the grey panel and of frames."""
        return [captions.grey_sentence(frame), captions.told_from_noise_sentence(frame, "A frame")]


@dataclass(frozen=True)
class _Grid:
    """Sizes of the rows and columns of all panels."""

    batches: Sequence[int]
    lengths: Sequence[int]

    def cells(
        self, arm_rows: pd.DataFrame
    ) -> Iterator[tuple[tuple[int, int], Mapping[Hashable, Any] | None]]:
        """Yield each cell's column and row, and its row of the data, if there is one."""
        by_size = {
            (row["ubatch_size"], row["input_len"]): row for row in arm_rows.to_dict("records")
        }
        for row_index, batch in enumerate(self.batches):
            for column_index, length in enumerate(self.lengths):
                yield (column_index, row_index), by_size.get((batch, length))

    def set_axes(self, ax: Axes) -> None:
        """Name the rows and columns of a panel."""
        ax.set_xlim(-0.5, len(self.lengths) - 0.5)
        ax.set_ylim(len(self.batches) - 0.5, -0.5)  # the smallest batch at the top
        ax.set_xticks(range(len(self.lengths)), [str(length) for length in self.lengths])
        ax.set_yticks(range(len(self.batches)), [str(batch) for batch in self.batches])
        ax.set_xlabel("prompt length (tokens)")
        ax.set_ylabel("batch")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)


def _choose_shades(frame: pd.DataFrame) -> Callable[[float], Any]:
    """Return the colours of overheads: white is none or a gain, so that colour means cost."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    # Up to the noise at least, so that noise alone is never dark.
    noise = frame[["noise_floor_low_pct", "noise_floor_high_pct"]].abs().max().max()
    highest_pct = max(float(frame["overhead_pct"].max()), np.nan_to_num(noise), 1e-9)
    scale = Normalize(0.0, highest_pct, clip=True)
    return lambda overhead_pct: colormaps["Blues"](DARKEST_SHARE * float(scale(overhead_pct)))


def _draw_noise(ax: Axes, points: pd.DataFrame, grid: _Grid, shows_intervals: bool) -> None:
    """Draw the noise floor of each point, on the grey that is noise in all figures."""
    for cell, row in grid.cells(points):
        _fill_cell(ax, cell, NOISE_GREY)
        _write_value(ax, cell, row, "noise_floor", shows_intervals)
    grid.set_axes(ax)
    ax.set_title("noise floor")


def _draw_arm(
    ax: Axes,
    arm_rows: pd.DataFrame,
    grid: _Grid,
    shade: Callable[[float], Any],
    shows_intervals: bool,
) -> None:
    """Draw one arm: colours, values, intervals, and frames around what is told from noise."""
    for cell, row in grid.cells(arm_rows):
        overhead_pct = np.nan if row is None else float(row["overhead_pct"])
        if not np.isnan(overhead_pct):
            _fill_cell(ax, cell, shade(overhead_pct))
        stands_out = row is not None and is_told(row)
        _write_value(ax, cell, row, "overhead", shows_intervals, is_bold=stands_out)
        if stands_out:
            _frame_cell(ax, cell)
    grid.set_axes(ax)


def _fill_cell(ax: Axes, cell: tuple[int, int], colour: Any) -> None:
    from matplotlib.patches import Rectangle

    column_index, row_index = cell
    # A white edge parts the cells. The report's page takes an edged patch for an area.
    area = {"facecolor": colour, "edgecolor": "white", "linewidth": 1.0, "zorder": 0.5}
    ax.add_patch(Rectangle((column_index - 0.5, row_index - 0.5), 1.0, 1.0, **area))


def _frame_cell(ax: Axes, cell: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    column_index, row_index = cell
    outline: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 1.6, "zorder": 3}
    ax.add_patch(Rectangle((column_index - 0.46, row_index - 0.44), 0.92, 0.88, **outline))


def _write_value(
    ax: Axes,
    cell: tuple[int, int],
    row: Mapping[Hashable, Any] | None,
    quantity: str,
    shows_intervals: bool,
    is_bold: bool = False,
) -> None:
    """Write a value, and its interval below it if there is room and one is known."""
    value, low, high = (
        np.nan if row is None else float(row[f"{quantity}{suffix}_pct"])
        for suffix in ("", "_low", "_high")
    )
    if np.isnan(value):
        ax.text(*cell, "not\nmeasured", ha="center", va="center", color="#555555")
        return
    with_interval = shows_intervals and not np.isnan(low)
    weight = "bold" if is_bold else "normal"
    _write_in_cell(
        ax, format_signed_percent(value), cell, 5 if with_interval else 0, fontweight=weight
    )
    if with_interval:
        _write_in_cell(ax, format_percent_interval(low, high), cell, -6)


def _write_in_cell(
    ax: Axes, text: str, cell: tuple[float, float], points: float, **style: Any
) -> None:
    """Write a line of text some points above or below the middle of a cell."""
    ax.annotate(
        text,
        cell,
        xytext=(0, points),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=TEXT_SIZE,
        **style,
    )


def _format_panel_title(row: pd.Series, destinations: Destinations) -> str:
    """Return the arm in words: destination, durability or hosts, and level."""
    details = [row["durability"], row["hosts"]]
    shown_details = [
        detail
        for detail in details
        if isinstance(detail, str) and detail != "local" and not is_loopback(detail)
    ]
    label = find_destination(row["mode"], destinations).label
    level_text = f", level {row['level']}" if isinstance(row["level"], str) else ""
    return f"{label}{level_text}" + (f" ({', '.join(shown_details)})" if shown_details else "")


FIGURE = HeatMap()
