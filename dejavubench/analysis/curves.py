"""The link figure: overhead against the speed of the link, measured and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dejavubench.analysis import link, stats
from dejavubench.analysis.figurerows import level_label
from dejavubench.analysis.link import LEAVES_PCT
from dejavubench.analysis.plotstyle import GRID, LINES, MARKERS, OKABE_ITO, errors_of, legend_of
from dejavubench.analysis.words import MINUS
from dejavubench.records.destinations import Destinations, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESOLUTION = 200
"""Number of rates at which a prediction is computed for its line."""

LINEAR_PCT = LEAVES_PCT
"""The vertical axis is linear up to here, so that it shows zero and the noise around it."""

_PERCENTS = (-5, 0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_SPEEDS = tuple(step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5))


def against_link(frame: pd.DataFrame, destinations: Destinations) -> Figure:
    modes = list(dict.fromkeys(frame["mode"]))
    figure, axes = plt.subplots(
        1,
        len(modes),
        figsize=(2.8 + 4.2 * len(modes), 5.0),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    speeds = frame["link_mb_per_s"]
    reach = speeds.min() / 1.3, speeds.max() * 1.3
    for ax, mode in zip(axes[0], modes, strict=True):
        part = frame[frame["mode"] == mode]
        ax.set_title(
            f"to {shown(mode, destinations).label}, {part['hosts'].iloc[0]}",
            loc="left",
            fontweight="bold",
        )
        _noise_band(ax, part)
        levels = sorted(set(part["level"]))
        for number, level in enumerate(levels):
            # Set the levels apart, so that error bars do not hide each other.
            aside = 1.03 ** (number - (len(levels) - 1) / 2)
            _level(
                ax, part[part["level"] == level].sort_values("link_mb_per_s"), number, aside, reach
            )
        _explain(ax)
        ax.set_xlabel("measured speed of the link (MB/s, log)")
    _axes(axes[0, 0], frame, reach)
    axes[0, 0].set_ylabel(f"overhead over none (%, log beyond {LINEAR_PCT:g})")
    handles, labels = legend_of(axes.flat)
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _level(
    ax: Axes, part: pd.DataFrame, number: int, aside: float, reach: tuple[float, float]
) -> None:
    level, colour = part["level"].iloc[0], OKABE_ITO[number % len(OKABE_ITO)]
    ax.errorbar(
        part["link_mb_per_s"] * aside,
        part["overhead_pct"].astype(float),
        yerr=errors_of(part, "overhead", "_pct"),
        fmt=MARKERS[number % len(MARKERS)],
        color=colour,
        markersize=5,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{level}: {level_label(level)}",
    )
    request = link.typical(part.to_dict("records"))
    if request is None:
        return
    speeds = np.geomspace(*reach, RESOLUTION)
    predicted = [request.overhead_pct(level, 1e3 * speed) for speed in speeds]
    ax.plot(speeds, predicted, color=colour, linestyle=LINES[number % len(LINES)], linewidth=1.3)
    leaves = request.leaves_zero(level)
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


def _explain(ax: Axes) -> None:
    """Explain lines and circles of any colour in the legend."""
    grey = "#555555"
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


def _noise_band(ax: Axes, part: pd.DataFrame) -> None:
    """Shade ± the farthest end of all sessions' noise floors."""
    known = part[part["noise_floor_low_pct"].notna()]
    if known.empty:
        return
    reach = stats.noise_reach(
        known["noise_floor_low_pct"].min(), known["noise_floor_high_pct"].max()
    )
    ax.axhspan(-reach, reach, color="#DDDDDD", lw=0, label="noise floor")


def _axes(ax: Axes, frame: pd.DataFrame, reach: tuple[float, float]) -> None:
    top = 1.6 * max(LINEAR_PCT, frame["overhead_high_pct"].fillna(frame["overhead_pct"]).max())
    low = min(-LINEAR_PCT, frame["overhead_low_pct"].fillna(frame["overhead_pct"]).min())
    for each in ax.figure.axes:
        each.axhline(0.0, color="black", linewidth=0.7)
        each.grid(axis="y", **GRID)
    ax.set_xscale("log")
    ax.set_xlim(*reach)
    ax.xaxis.set_major_locator(
        FixedLocator([speed for speed in _SPEEDS if reach[0] <= speed <= reach[1]])
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_yscale("symlog", linthresh=LINEAR_PCT)
    ax.set_ylim(low, top)
    ax.yaxis.set_major_locator(
        FixedLocator([percent for percent in _PERCENTS if low <= percent <= top])
    )
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", MINUS)))
