"""Drawing of the link figure: points and predicted lines of a level, circles, noise and axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis import prediction
from dejavubench.analysis.figures import style
from dejavubench.analysis.figures.shared_columns import level_label
from dejavubench.analysis.number_texts import MINUS
from dejavubench.analysis.prediction import NEAR_ZERO_PCT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

RATES_OF_A_LINE = 200
"""Number of rates at which a prediction is computed for its line."""

LINEAR_PCT = NEAR_ZERO_PCT
"""The vertical axis is linear up to here, so that it shows zero and the noise around it."""

NOISE_WIDTH = 1.16
"""Factor from a session's speed to either end of the grey that shows its noise floor."""

CIRCLE: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgewidth": 1.3,
}

LINE_POINTS = 11.0
"""Distance of two lines of text."""

_PERCENTS = (-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_SPEEDS = [
    [tick * 10.0**power for power in range(-3, 7) for tick in ticks]
    for ticks in ((1, 2, 5), (1, 3), (1,))
]
"""Ticks in MB/s, from fine to coarse."""


def format_speed(mb_per_s: float) -> str:
    """Write a rate in the unit that people use for its size."""
    if mb_per_s >= 999.5:
        return f"{mb_per_s / 1e3:.3g} GB/s"
    return f"{mb_per_s:.3g} MB/s" if mb_per_s >= 1 else f"{1e3 * mb_per_s:.3g} kB/s"


def draw_level(
    ax: Axes,
    level_rows: pd.DataFrame,
    look: dict[str, Any],
    speed_factor: float,
    speed_range: tuple[float, float],
) -> float | None:
    """Draw a level's points with intervals, and its predicted line.

    Args:
        level_rows: rows of one destination and level, by speed.
        look: color, marker and linestyle of the level.
        speed_factor: factor by which points are set apart from those of other levels.
        speed_range: speeds in MB/s over which the line is drawn.

    Returns:
        The speed in MB/s from which the prediction stays near zero, if it is drawn.
    """
    level_name = str(level_rows["level"].iloc[0])
    ax.errorbar(
        level_rows["link_mb_per_s"] * speed_factor,
        level_rows["overhead_pct"].astype(float),
        yerr=style.errors_of(level_rows, "overhead", "_pct"),
        fmt=look["marker"],
        color=look["color"],
        markersize=4.5,
        elinewidth=0.9,
        capsize=2,
        label=f"{level_name}: {level_label(level_name)}",
    )
    request = prediction.make_typical_request(level_rows.to_dict("records"))
    if request is None:
        return None
    speeds = np.geomspace(*speed_range, RATES_OF_A_LINE)
    # MB/s · 10³ = bytes per ms.
    predicted_pct = [request.predict_overhead_pct(level_name, 1e3 * speed) for speed in speeds]
    ax.plot(speeds, predicted_pct, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
    slowest_rate = request.find_slowest_rate_near_zero(level_name)
    # A circle outside the measured links would be an extrapolation.
    if slowest_rate is None or not speed_range[0] <= slowest_rate / 1e3 <= speed_range[1]:
        return None
    return slowest_rate / 1e3


def mark_speeds(ax: Axes, speeds: dict[str, float], speed_range: tuple[float, float]) -> int:
    """Mark on the lines where predictions leave zero, and write the speeds above the panel.

    Args:
        speeds: by colour, in MB/s.

    Returns:
        How many lines of text there are: those that would overlap stand above each other.
    """
    panel_inches = 0.4 * style.WIDTH  # of a panel, roughly
    text_ends: list[float] = []
    for colour, speed in sorted(speeds.items(), key=lambda colour_and_speed: colour_and_speed[1]):
        text = format_speed(speed)
        half_width = (len(text) + 1) * style.LETTER_WIDTH * style.TEXT_SIZE / 72 / 2
        text_centre = (
            panel_inches
            * math.log(speed / speed_range[0])
            / math.log(speed_range[1] / speed_range[0])
        )
        line = next(
            (
                line_index
                for line_index, text_end in enumerate(text_ends)
                if text_end <= text_centre - half_width
            ),
            len(text_ends),
        )
        text_ends[line : line + 1] = [text_centre + half_width]
        # Not clipped: one at the end of the axis is whole.
        ax.plot([speed], [NEAR_ZERO_PCT], markeredgecolor=colour, clip_on=False, **CIRCLE)
        ax.axvline(speed, color=colour, linewidth=0.6, linestyle=":", zorder=0.8)
        ax.annotate(
            text,
            (speed, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + LINE_POINTS * line),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=style.TEXT_SIZE,
            color=style.make_readable_colour(colour),  # the last of the ordered colours is light
            annotation_clip=False,
        )
    return len(text_ends)


def explain_lines(ax: Axes) -> None:
    """Explain lines, circles and grey in the legend, whatever their colour."""
    grey = "#555555"
    # Empty lines draw nothing; the legend shows their style.
    ax.plot([], [], color=grey, linewidth=1.2, label="predicted")
    label = f"stays within {NEAR_ZERO_PCT:g} % from here (predicted)"
    ax.plot([], [], markeredgecolor=grey, label=label, **(CIRCLE | {"markersize": 7}))


def shade_noise(ax: Axes, mode_rows: pd.DataFrame) -> None:
    """Shade the noise floor of each session, as its interval, around the session's speed."""
    sessions = mode_rows[mode_rows["noise_floor_low_pct"].notna()].drop_duplicates(
        ["run", "link_mb_per_s"]
    )
    if sessions.empty:
        return
    speeds, low, high = (
        sessions[name].to_numpy(dtype=float)
        for name in ("link_mb_per_s", "noise_floor_low_pct", "noise_floor_high_pct")
    )
    ax.bar(
        speeds / NOISE_WIDTH,
        high - low,
        bottom=low,
        width=speeds * (NOISE_WIDTH - 1 / NOISE_WIDTH),
        align="edge",
        color=style.NOISE_GREY,
        label="noise floor of the session",
        zorder=0.5,
    )


def set_axes(
    ax: Axes, frame: pd.DataFrame, speed_range: tuple[float, float], inches: float
) -> None:
    """Scale and tick both axes, which all panels share.

    Args:
        inches: width of a panel.
    """
    columns = ["overhead_pct", "overhead_low_pct", "overhead_high_pct"]
    shown_values = frame[[*columns, "noise_floor_low_pct", "noise_floor_high_pct"]].astype(float)
    highest_pct = max(2 * LINEAR_PCT, 1.6 * float(np.nanmax(shown_values.to_numpy())))
    lowest_pct = min(-1.2 * LINEAR_PCT, 1.3 * float(np.nanmin(shown_values.to_numpy())))
    ax.set_xscale("log")
    ax.set_xlim(*speed_range)
    ticks = style.choose_finest_log_ticks(_SPEEDS, speed_range, inches, format_speed)
    style.tick_at(ax.xaxis, ticks, format_speed)
    style.tick_within_decades(ax.xaxis)
    # Overheads span four decades and may be negative: linear around zero, log beyond.
    ax.set_yscale("symlog", linthresh=LINEAR_PCT)
    ax.set_ylim(lowest_pct, highest_pct)
    style.tick_at(
        ax.yaxis,
        [percent for percent in _PERCENTS if lowest_pct <= percent <= highest_pct],
        lambda value: f"{value:g}".replace("-", MINUS),
    )


def mark_switch(ax: Axes, with_names: bool) -> None:
    """Draw lines where the vertical axis turns from linear to log, and name both beside it."""
    ax.axhline(0.0, color="black", linewidth=0.7)
    ax.grid(axis="y", **style.GRID)
    for percent in (-LINEAR_PCT, LINEAR_PCT):
        ax.axhline(percent, color="#888888", linewidth=0.8, linestyle=(0, (6, 3)), zorder=0.9)
    if not with_names:
        return
    for text, is_below in (("log", False), ("linear", True)):
        ax.annotate(
            text,
            (1, LINEAR_PCT),
            xycoords=("axes fraction", "data"),
            xytext=(8, -3 if is_below else 3),  # beside a circle at the end
            textcoords="offset points",
            va="top" if is_below else "bottom",
            rotation=90,
            fontsize=style.TEXT_SIZE,
            color="#555555",
            annotation_clip=False,
        )
