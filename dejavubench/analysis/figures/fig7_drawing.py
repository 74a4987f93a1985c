"""Drawing of Fig 7: panels of layouts and destinations, with a bar per level and phase."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.analysis.facts.samples import Quantity
from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.framing import add_legend
from dejavubench.analysis.figures.shared_columns import is_loopback
from dejavubench.analysis.figures.style import (
    ERROR_BARS,
    GRID,
    LETTER_WIDTH,
    NOISE_GREY,
    TEXT_SIZE,
    WIDTH,
    choose_finest_log_ticks,
    errors_of,
    lighten,
    make_panels,
    tick_at,
)
from dejavubench.analysis.number_texts import format_slowdown
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records.destination_info import Destinations, find_destination

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

PHASES: tuple[Quantity, ...] = ("total", "prompt", "token")
"""Phases that have a bar of their own, in this order."""

PHASE_STYLE = {
    "total": ("TOTAL", 0.0, ""),
    "prompt": ("prompt", 0.45, "///"),
    "token": ("token", 0.8, "..."),
}
"""Label, share of white in the destination's colour, and hatch of each phase."""

BAR_HEIGHT = 0.2
"""Height of a bar, relative to a level."""

SLOT_HEIGHT = 0.28
"""Height of the noise behind a bar, relative to a level: the three phases touch each other."""

LEVEL_INCHES = 0.5
"""Height of a level: three lines of numbers, and a gap."""

NUMBER_INCHES = 0.5
"""Width of the numbers at the left end of a panel."""

LABEL_INCHES = 1.45
"""Width of the levels' names beside the panels."""

LABEL_LETTERS = 22
"""Letters of a line of a level's name."""

LEGEND_GREY = "#555555"
"""Colour of the legend, which stands for the colours of all destinations."""

NO_VALUE = "no value"
"""Text of a level that another destination of the layout has; the caption says what is left out."""

MOST_ACROSS = 3
"""Destinations side by side."""


def draw_slowdowns(frame: pd.DataFrame, destinations: Destinations) -> Picture:
    """Draw one panel per layout and destination, with one row per level; log axis."""
    layouts, modes = (list(dict.fromkeys(frame[name])) for name in ("kv_layout", "mode"))
    # A level that no arm of a layout has a value of would be an empty row.
    level_names = {
        layout: _list_level_names(frame[frame["kv_layout"] == layout]) for layout in layouts
    }
    rows_each = -(-len(modes) // MOST_ACROSS)
    panels_across = -(-len(modes) // rows_each)
    # A layout has as many rows of panels as its destinations need.
    panels = [(layout, mode) for layout in layouts for mode in _fill_row(modes, panels_across)]
    level_counts = [len(level_names[layout]) for layout, _ in panels[::panels_across]]
    height = 0.35 + sum(0.3 + LEVEL_INCHES * count for count in level_counts)
    picture, axes = make_panels(
        len(level_counts),
        panels_across,
        height,
        sharex=True,
        sharey="row",
        height_ratios=level_counts,
    )
    inches = (WIDTH - LABEL_INCHES) / panels_across - 0.3
    limits = _scale_slowdown_axis(axes[0, 0], frame, inches)
    for ax, (layout, mode) in zip(axes.flat, panels, strict=True):
        if mode is None:
            ax.set_axis_off()
            continue
        panel_rows = frame[(frame["kv_layout"] == layout) & (frame["mode"] == mode)]
        letters = int(inches / (LETTER_WIDTH * 1.15 * TEXT_SIZE / 72))  # bold ones are wider
        # The caption names a layout that all panels have in common.
        title = f"layout {layout} " if len(layouts) > 1 else ""
        title += _format_panel_title(panel_rows, mode, destinations)
        ax.set_title(textwrap.fill(title, letters))
        _draw_levels(
            ax, panel_rows, list(level_names[layout]), find_destination(mode, destinations).colour
        )
    for ax, (layout, _) in zip(axes[:, 0], panels[::panels_across], strict=True):
        # Upside down: level 0 at the top, as in the paper. The axes of a row are shared.
        ax.set_yticks(range(len(level_names[layout])), list(level_names[layout].values()))
        ax.set_ylim(len(level_names[layout]) - 0.5, -0.5)
    axes[0, 0].set_xlim(*limits)
    for column in range(panels_across):
        # The last panel of a column, which may have none in the last row.
        last_panel_index = max(
            panel_index
            for panel_index in range(column, len(panels), panels_across)
            if panels[panel_index][1] is not None
        )
        ax = axes.flat[last_panel_index]
        ax.set_xlabel(
            "slowdown over none, paired by round (log)" if panels_across < 3 else "slowdown (log)"
        )
        ax.tick_params(axis="x", labelbottom=True)
    add_legend(picture, *_make_legend(captions.has_noise(frame)))
    return picture


def _list_level_names(frame: pd.DataFrame) -> dict[str, str]:
    """Return the levels in their order, each with its number and the paper's label."""
    labels = dict(zip(frame["level"], frame["label"], strict=True))
    order = [level for level in LEVELS if level in labels]
    # Records of another version may have levels that this one does not know.
    order += [level for level in labels if level not in order]
    return {level: textwrap.fill(f"{level}: {labels[level]}", LABEL_LETTERS) for level in order}


def _fill_row(modes: Sequence[str], panels_across: int) -> list[str | None]:
    """Return the modes, and None for each panel that the last row has too many."""
    return [*modes, *[None] * (-len(modes) % panels_across)]


def _scale_slowdown_axis(ax: Axes, frame: pd.DataFrame, inches: float) -> tuple[float, float]:
    """Make a log axis with ticks that have room, and return its ends.

    Left of the lowest value is room for the numbers.
    """
    # One round has no interval, so its bar ends at the median.
    highest_slowdown = frame["slowdown_high"].fillna(frame["slowdown"]).max()
    lowest_slowdown = frame["slowdown_low"].fillna(frame["slowdown"]).min()
    floors = frame[["noise_floor_low_pct", "noise_floor_high_pct"]].astype(float)
    lowest_slowdown = np.nanmin([lowest_slowdown, 0.995, 1 + floors.min().min() / 100])
    right_end = max(1.02, highest_slowdown, np.nan_to_num(1 + floors.max().max() / 100)) ** 1.04
    share = NUMBER_INCHES / inches
    # On a log axis: (log low − log left) / (log right − log left) is the share of the numbers.
    left_end = math.exp((math.log(lowest_slowdown) - share * math.log(right_end)) / (1 - share))
    ax.set_xscale("log")
    ticks = choose_finest_log_ticks(
        _TICKS, (lowest_slowdown, right_end), inches * (1 - share), "{:g}×".format
    )
    tick_at(ax.xaxis, ticks, "{:g}×".format)
    return left_end, right_end


_TICKS = [
    *(
        [round(1 + multiple * step, 2) for multiple in range(-9, 60)]
        for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    ),
    *(
        sorted(tick * 10.0**power for power in range(-1, 7) for tick in ticks)
        for ticks in ((1, 1.5, 2, 3, 4, 5, 7), (1, 1.5, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
    ),
]
"""Ticks of an axis, from fine to coarse."""


def _draw_levels(
    ax: Axes, panel_rows: pd.DataFrame, level_names: Sequence[str], colour: str
) -> None:
    """Draw the bars of one panel, with the noise behind them and the values at their base."""
    for phase_index, phase in enumerate(PHASES):
        bars = panel_rows[panel_rows["phase"] == phase]
        if bars.empty:
            continue
        # Three phases: the middle one is centred on the level's tick, the others one slot aside.
        ys = [level_names.index(level) + (phase_index - 1) * SLOT_HEIGHT for level in bars["level"]]
        floors = bars[["noise_floor_low_pct", "noise_floor_high_pct"]].to_numpy(dtype=float) / 100
        ax.barh(
            ys,
            floors[:, 1] - floors[:, 0],
            left=1 + floors[:, 0],
            height=SLOT_HEIGHT,
            color=NOISE_GREY,
            label=f"noise floor of {phase}",
            zorder=0.5,
        )
        values = bars["slowdown"].to_numpy(dtype=float)
        # A log axis has no zero. A bar is its excess over 1, and reaches left if an arm was faster.
        ax.barh(
            ys,
            values - 1,
            left=1.0,
            height=BAR_HEIGHT,
            label=phase,
            **_phase_area(phase, colour),
        )
        style = ERROR_BARS | {"elinewidth": 0.8, "capsize": 1.8}
        ax.errorbar(values, ys, xerr=errors_of(bars, "slowdown"), **style)
        for y, value in zip(ys, values, strict=True):
            _write_at_base(ax, format_slowdown(value), y)
    for y, level_name in enumerate(level_names):
        # Another destination of the layout has this level, so the row stays, and says why.
        if level_name not in set(panel_rows["level"]):
            _write_at_base(ax, NO_VALUE, y)
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.grid(axis="x", **GRID)
    ax.tick_params(axis="y", length=0)


def _write_at_base(ax: Axes, text: str, y: float) -> None:
    """Write a text in a column at the bars' base, where no error bar reaches."""
    ax.annotate(
        text,
        (0, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=TEXT_SIZE,
    )


def _phase_area(phase: str, colour: str) -> dict[str, Any]:
    _, share, hatch = PHASE_STYLE[phase]
    edge = {"edgecolor": "black", "linewidth": 0.5}
    return {"facecolor": lighten(colour, share), "hatch": hatch, **edge}


def _make_legend(has_noise: bool) -> tuple[list[Any], list[str]]:
    """Return handles and labels of the phases, in grey for the colours of all destinations."""
    from matplotlib.patches import Patch

    handles = [Patch(**_phase_area(phase, LEGEND_GREY)) for phase in PHASES]
    labels = [label for label, _, _ in PHASE_STYLE.values()]
    if has_noise:
        handles.append(Patch(color=NOISE_GREY))
        labels.append("noise floor")
    return handles, labels


def _format_panel_title(panel_rows: pd.DataFrame, mode: str, destinations: Destinations) -> str:
    """Return the destination, with hosts and durability unless they go without saying."""
    info = find_destination(mode, destinations)
    destination = f"to {info.label}" if mode in destinations else info.label
    details = []
    if not panel_rows.empty:
        hosts = panel_rows["hosts"].iloc[0]
        durability = panel_rows["durability"].iloc[0]
        details = [None if info.local or is_loopback(hosts) else hosts, durability]
    known_details = [detail for detail in details if isinstance(detail, str)]
    title = destination + (f" ({', '.join(known_details)})" if known_details else "")
    # A label with brackets, such as "remote GPU (NCCL)", and a place become one pair.
    return title.replace(") (", ", ")
