"""Drawing of the link figure: points and predicted lines of a level, circles, noise and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis import prediction
from dejavubench.analysis.figures import style
from dejavubench.analysis.figures.parts import level_label
from dejavubench.analysis.number_texts import MINUS
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction import LEAVES_PCT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

RESOLUTION = 200
"""Number of rates at which a prediction is computed for its line."""

LINEAR_PCT = LEAVES_PCT
"""The vertical axis is linear up to here, so that it shows zero and the noise around it."""

_PERCENTS = (-5, 0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_SPEEDS = tuple(step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5))


def draw_level(
    ax: Axes, part: pd.DataFrame, number: int, aside: float, reach: tuple[float, float]
) -> None:
    level, colour = part["level"].iloc[0], style.OKABE_ITO[number % len(style.OKABE_ITO)]
    ax.errorbar(
        part["link_mb_per_s"] * aside,
        part["overhead_pct"].astype(float),
        yerr=style.errors_of(part, "overhead", "_pct"),
        fmt=style.MARKERS[number % len(style.MARKERS)],
        color=colour,
        markersize=5,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{level}: {level_label(level)}",
    )
    request = prediction.typical(part.to_dict("records"))
    if request is None:
        return
    speeds = np.geomspace(*reach, RESOLUTION)
    # MB/s · 10³ = bytes per ms.
    predicted = [request.overhead_pct(level, 1e3 * speed) for speed in speeds]
    ax.plot(
        speeds,
        predicted,
        color=colour,
        linestyle=style.LINES[number % len(style.LINES)],
        linewidth=1.3,
    )
    leaves = request.leaves_zero(level)
    # A circle outside the measured links would be an extrapolation.
    if leaves is not None and reach[0] <= leaves / 1e3 <= reach[1]:
        _mark(ax, leaves / 1e3, colour)


def _mark(ax: Axes, speed: float, colour: str) -> None:
    """Mark on the line where the prediction leaves zero, with the speed beside it."""
    ax.plot(
        [speed],
        [LEAVES_PCT],
        linestyle="none",
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.4,
    )
    # The text stands at the bottom, where there is room, with a line up to the circle.
    ax.annotate(
        f"{speed:.3g} MB/s",
        (speed, LEAVES_PCT),
        xytext=(speed, 0.015),
        textcoords=ax.get_xaxis_transform(),
        ha="center",
        fontsize=7.5,
        color=colour,
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkB": 5},
    )


def explain_lines(ax: Axes) -> None:
    """Explain lines and circles of any colour in the legend."""
    grey = "#555555"
    # Empty lines draw nothing; the legend shows their style.
    ax.plot([], [], color=grey, linewidth=1.3, label="predicted")
    circle: dict[str, Any] = {
        "marker": "o",
        "markersize": 11,
        "markerfacecolor": "none",
        "markeredgecolor": grey,
    }
    ax.plot(
        [], [], linestyle="none", label=f"predicted to leave zero\n({LEAVES_PCT:g} %)", **circle
    )


def shade_noise(ax: Axes, part: pd.DataFrame) -> None:
    """Shade the noise floors of all sessions, as far to both sides as their farthest end."""
    known = part[part["noise_floor_low_pct"].notna()]
    if known.empty:
        return
    reach = stats.noise_reach(
        known["noise_floor_low_pct"].min(), known["noise_floor_high_pct"].max()
    )
    ax.axhspan(-reach, reach, color="#DDDDDD", lw=0, label="noise floor")


def set_axes(ax: Axes, frame: pd.DataFrame, reach: tuple[float, float]) -> None:
    top = 1.6 * max(LINEAR_PCT, frame["overhead_high_pct"].fillna(frame["overhead_pct"]).max())
    low = min(-LINEAR_PCT, frame["overhead_low_pct"].fillna(frame["overhead_pct"]).min())
    for axes in ax.figure.axes:
        axes.axhline(0.0, color="black", linewidth=0.7)
        axes.grid(axis="y", **style.GRID)
    ax.set_xscale("log")
    ax.set_xlim(*reach)
    style.tick_at(ax.xaxis, [speed for speed in _SPEEDS if reach[0] <= speed <= reach[1]])
    # Overheads span four decades and may be negative: linear around zero, log beyond.
    ax.set_yscale("symlog", linthresh=LINEAR_PCT)
    ax.set_ylim(low, top)
    style.tick_at(
        ax.yaxis,
        [percent for percent in _PERCENTS if low <= percent <= top],
        lambda value: f"{value:g}".replace("-", MINUS),
    )
