"""Heat map: overhead over batch and prompt length, a panel per arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis.figures.figure import Figure, streaming_arms
from dejavubench.analysis.figures.parts import is_loopback
from dejavubench.analysis.figures.style import TEXT_SIZE, WIDTH, panels
from dejavubench.analysis.figures.totals import TotalRow, is_told, make_total_rows
from dejavubench.analysis.number_texts import signed_percent, span_text
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations, shown

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

DARK_SHARE = 0.55
"""Share of the colour map from which on text is white."""


class HeatMap(Figure):
    """Rows of a panel are batches, columns prompt lengths; a panel per arm."""

    name = "heat_map"
    title = "Overhead of streaming over batch and prompt length"
    row = TotalRow
    method = (
        "Overhead: TOTAL divided by the geometric mean of the same round's none TOTALs, less one, "
        "median over rounds. An overhead is told from noise if its interval excludes 0 and it "
        "exceeds the farther end of the noise floor of its own point."
    )
    reading = "Values are in %. A bold one in a frame is told from noise."
    mixed = ("ubatch_size", "input_len")

    def fits(self, run: Run) -> bool:
        """Return whether some arm streams and both batch and prompt length are swept."""
        points = run.header.points
        swept = [{point.ubatch_size for point in points}, {point.input_len for point in points}]
        return bool(streaming_arms(run)) and all(len(values) > 1 for values in swept)

    def rows(self, run: Run) -> list[TotalRow]:
        """Return the rows of Fig 25, one per point and arm."""
        return make_total_rows(run)

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw one panel per arm that streams: batches by prompt lengths, coloured by overhead."""
        from matplotlib.colors import Normalize

        streaming = frame[frame["role"] == "streaming"]
        ranks = [shown(mode, destinations).order for mode in streaming["mode"]]
        streaming = streaming.assign(rank=ranks).sort_values("rank", kind="stable")
        arms = [part for _, part in streaming.groupby("arm", sort=False)]
        batches, lengths = (sorted(frame[name].unique()) for name in self.mixed)
        across = max(
            1, min(len(arms), MOST_ACROSS, int((WIDTH - 0.4) / (len(lengths) * CELL_WIDTH)))
        )
        down = -(-len(arms) // across)
        # Narrow cells have room for the value alone.
        intervals = (WIDTH - 0.4) / (across * len(lengths)) >= CELL_WIDTH
        height = 0.75 + down * (0.65 + CELL_HEIGHT * len(batches))
        picture, axes = panels(down, across, height)
        values = streaming["overhead_pct"].to_numpy(dtype=float)
        # White is no overhead or a gain, so that colour means cost.
        # Up to the noise at least, so that noise alone is never dark.
        noise = frame[["noise_floor_low_pct", "noise_floor_high_pct"]].abs().max().max()
        scale = Normalize(0.0, max(float(np.nanmax(values)), np.nan_to_num(noise), 1e-9))
        for ax, part in zip(axes.flat, arms, strict=False):
            image = _draw_cells(ax, part, (batches, lengths), scale, intervals)
            ax.set_title(_panel_title(part.iloc[0], destinations))
            ax.set_xlabel("prompt length (tokens)")
            ax.set_ylabel("batch")
        for ax in axes.flat[len(arms) :]:
            ax.set_axis_off()
        picture.colorbar(
            image,
            ax=axes,
            label="overhead over none, paired by round (%)",
            location="bottom",
            aspect=60,
            pad=0.02,
        )
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return nothing: the cells say it all."""
        return []


def _draw_cells(
    ax: Axes,
    part: pd.DataFrame,
    sizes: tuple[Sequence[int], Sequence[int]],
    scale: Any,
    intervals: bool,
) -> Any:
    """Draw one arm: colours, values, intervals, and frames around what is told from noise."""
    from matplotlib.patches import Rectangle

    batches, lengths = sizes
    by_size = {(row["ubatch_size"], row["input_len"]): row for _, row in part.iterrows()}
    grid = np.full((len(batches), len(lengths)), np.nan)
    for down, batch in enumerate(batches):
        for across, length in enumerate(lengths):
            row = by_size.get((batch, length))
            value = np.nan if row is None else float(row["overhead_pct"])
            if row is None or np.isnan(value):
                ax.text(across, down, "not\nmeasured", ha="center", va="center", color="#555555")
                continue
            grid[down, across] = value
            stands_out = is_told(row)
            low, high = float(row["overhead_low_pct"]), float(row["overhead_high_pct"])
            below = span_text(low, high) if intervals and not np.isnan(low) else ""
            colour = "white" if scale(value) > DARK_SHARE else "black"
            weight = "bold" if stands_out else "normal"
            up = 5 if below else 0
            text = signed_percent(value)
            _write_in_cell(ax, text, (across, down), up, color=colour, fontweight=weight)
            if below:
                _write_in_cell(ax, below, (across, down), -6, color=colour)
            if stands_out:
                outline: dict[str, Any] = {
                    "fill": False,
                    "edgecolor": "black",
                    "linewidth": 1.6,
                    "zorder": 3,
                }
                ax.add_patch(Rectangle((across - 0.46, down - 0.44), 0.92, 0.88, **outline))
    image = ax.imshow(grid, cmap="Blues", norm=scale, aspect="auto")
    ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    ax.set_yticks(range(len(batches)), [str(batch) for batch in batches])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


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


def _panel_title(row: pd.Series, destinations: Destinations) -> str:
    """Return the arm in words: destination, durability or hosts, and level."""
    details = [row["durability"], row["hosts"]]
    words = [
        detail
        for detail in details
        if isinstance(detail, str) and detail != "local" and not is_loopback(detail)
    ]
    label = shown(row["mode"], destinations).label
    level_text = f", level {row['level']}" if isinstance(row["level"], str) else ""
    return f"{label}{level_text}" + (f" ({', '.join(words)})" if words else "")


FIGURE = HeatMap()
