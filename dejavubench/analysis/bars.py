"""Fig 7, slowdown level by level, and Fig 25, a request to each destination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dejavubench.analysis import captions, stats
from dejavubench.analysis.figurerows import PHASES
from dejavubench.analysis.plotstyle import (
    FIG7_PANELS,
    FIG25_PANELS,
    GRID,
    MARKERS,
    errors_of,
    legend_of,
)
from dejavubench.analysis.words import ms, signed_percent, slowdown, span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records.destinations import NONE, DestinationInfo, Destinations, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASE_STYLE = {
    "total": ("TOTAL", "#0072B2", ""),
    "prompt": ("prompt", "#E69F00", "///"),
    "token": ("token", "#009E73", "..."),
}
# Fig 7: rows are layouts, columns destinations; a bar a level and phase.


def levels(frame: pd.DataFrame, destinations: Destinations) -> Figure:
    layouts, modes = (list(dict.fromkeys(frame[name])) for name in FIG7_PANELS)
    labels = dict(zip(frame["level"], frame["label"], strict=True))
    order = [level for level in LEVELS if level in labels]
    order += [level for level in labels if level not in order]
    names = {level: f"{level}: {labels[level]}" for level in order}
    size = (3.4 + 4.1 * len(modes), 0.9 + (0.5 + 0.62 * len(names)) * len(layouts))
    figure, axes = plt.subplots(
        len(layouts),
        len(modes),
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for row, layout in zip(axes, layouts, strict=True):
        for ax, mode in zip(row, modes, strict=True):
            part = frame[(frame["kv_layout"] == layout) & (frame["mode"] == mode)]
            info = shown(mode, destinations)
            title = f"KV layout {layout}, {_to(mode, destinations)}{_where(part, info)}"
            ax.set_title(title.replace(") (", ", "), loc="left", fontweight="bold")
            _level_bars(ax, part, names)
    for ax in axes[-1]:
        ax.set_xlabel("slowdown over none (×, log)")
    top = frame["slowdown_high"].fillna(frame["slowdown"]).max()
    low = frame["slowdown_low"].fillna(frame["slowdown"]).min()
    _slowdown_axis(axes[0, 0], low, top)
    handles, phases = legend_of(axes.flat)
    figure.legend(handles, phases, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _slowdown_axis(ax: Axes, low: float, top: float) -> None:
    """Make room for the values behind the bars, and ticks also within one decade of a log axis."""
    right = max(1.1, top) ** 1.3
    ticks = next(ticks for reach, ticks in _TICKS if right > reach)
    decades = [1.0] if right <= 10 else [10.0**power for power in range(int(np.log10(right)) + 1)]
    known = sorted({tick * decade for tick in ticks for decade in decades})
    ax.set_xlim(min(0.98, 0.98 * low), right)
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in known if tick <= right]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (10, (1, 2, 5)),
    (2, (1, 1.5, 2, 3, 4, 5, 7, 10)),
    (1.3, (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2)),
    (0, (1, 1.02, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)),
)
"""Ticks of an axis, by the value that its end exceeds."""


def _level_bars(ax: Axes, part: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Draw the bars of one panel; ``names`` are the levels' labels in their order."""
    order = list(names)
    height = 0.8 / len(PHASES)
    ax.set_xscale("log")
    for number, phase in enumerate(PHASES):
        bars = part[part["phase"] == phase]
        if bars.empty:
            continue
        name, colour, hatch = PHASE_STYLE[phase]
        places = [order.index(level) + (number - 1) * height for level in bars["level"]]
        values = bars["slowdown"].to_numpy(dtype=float)
        style: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "black",
            "linewidth": 0.5,
        }
        ax.barh(places, values - 1, left=1.0, height=height, label=name, **style)
        errors = errors_of(bars, "slowdown")
        ax.errorbar(
            values, places, xerr=errors, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.8
        )
        for place, value, reach in zip(places, values, np.nan_to_num(errors[1]), strict=True):
            ax.annotate(
                slowdown(value),
                (max(value + reach, 1.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(names)), list(names.values()))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", **GRID)


def _to(mode: str, destinations: Destinations) -> str:
    label = shown(mode, destinations).label
    return f"to {label}" if mode in destinations else label


def _where(part: pd.DataFrame, info: DestinationInfo) -> str:
    """Return hosts and durability; the hosts go without saying for local chunks and loopbacks."""
    if part.empty:
        return ""
    hosts = part["hosts"].iloc[0]
    words = [None if info.local or _loops(hosts) else hosts, part["durability"].iloc[0]]
    known = [str(word) for word in words if isinstance(word, str)]
    return f" ({', '.join(known)})" if known else ""


def _loops(hosts: object) -> bool:
    return isinstance(hosts, str) and hosts.startswith("loopback")


# Fig 25: above TOTAL, below the overhead; a column a point.


def totals(frame: pd.DataFrame, destinations: Destinations) -> Figure:
    frame = frame[frame["role"] != "repeat"]
    points = [part for _, part in frame.groupby([*FIG25_PANELS, "run", "point"], sort=False)]
    arms = max(len(part) for part in points)
    size = (max(6.5, len(points) * (0.9 + 1.05 * arms)), 5.6)
    figure, axes = plt.subplots(
        2,
        len(points),
        figsize=size,
        squeeze=False,
        layout="constrained",
        height_ratios=(3, 2),
        sharex="col",
    )
    for column, part in enumerate(points):
        styles = [_style(mode, destinations) for mode in part["mode"]]
        part = part.assign(rank=[info.order for info in styles])
        part = part.sort_values("rank", kind="stable")
        above, below = axes[0, column], axes[1, column]
        above.set_title(captions.panel(part, FIG25_PANELS), loc="left", fontweight="bold")
        _total_bars(above, part, destinations)
        _overheads(below, part, destinations)
        several = part["mode"].duplicated(keep=False)
        below.set_xticks(
            range(len(part)),
            [
                _arm_label(row, many, destinations)
                for (_, row), many in zip(part.iterrows(), several, strict=True)
            ],
        )
    axes[0, 0].set_ylabel("TOTAL (ms)")
    axes[1, 0].set_ylabel("overhead over none (%)")
    return figure


BASELINE = DestinationInfo(label=NONE, colour="#BBBBBB", hatch="", order=0)


def _style(mode: str, destinations: Destinations) -> DestinationInfo:
    return BASELINE if mode == NONE else shown(mode, destinations)


def _marker(mode: str, destinations: Destinations) -> str:
    known = [NONE, *sorted(destinations, key=lambda each: destinations[each].order)]
    place = known.index(mode) if mode in known else len(known)
    return MARKERS[place % len(MARKERS)]


def _arm_label(row: pd.Series, several: bool, destinations: Destinations) -> str:
    detail = row["durability"] if isinstance(row["durability"], str) else row["hosts"]
    label = _style(row["mode"], destinations).label
    mode = label.replace(" on ", "\non ").replace(" (", "\n(")
    words = [f"{mode}, level {row['level']}" if several and isinstance(row["level"], str) else mode]
    if isinstance(detail, str) and detail != "local" and not _loops(detail):
        words.append(f"({detail})")
    return "\n".join(words)


def _total_bars(ax: Axes, part: pd.DataFrame, destinations: Destinations) -> None:
    values = part["total_ms"].to_numpy(dtype=float)
    errors = errors_of(part, "total", "_ms")
    tops = values + np.nan_to_num(errors[1])
    for place, (mode, value) in enumerate(zip(part["mode"], values, strict=True)):
        info = _style(mode, destinations)
        edge: dict[str, Any] = {"hatch": info.hatch, "edgecolor": "black", "linewidth": 0.6}
        ax.bar(place, value, width=0.62, color=info.colour, **edge)
        ax.annotate(
            f"{ms(value)} ms",
            (place, tops[place]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.errorbar(
        range(len(values)), values, yerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=3
    )
    baseline = part[part["role"] == "baseline"]["total_ms"]
    if len(baseline):
        ax.axhline(float(baseline.iloc[0]), color="black", linewidth=0.7, linestyle=":")
    ax.set_ylim(0, 1.12 * float(tops.max()))
    aside = 0.5 + max(0, 4 - len(values)) / 2  # few bars need not be wide ones
    ax.set_xlim(-aside, len(values) - 1 + aside)
    ax.grid(axis="y", **GRID)


def _overheads(ax: Axes, part: pd.DataFrame, destinations: Destinations) -> None:
    tops = _noise_band(ax, part)
    ax.axhline(0.0, color="black", linewidth=0.7)
    errors = errors_of(part, "overhead", "_pct")
    for place, (_, row) in enumerate(part.iterrows()):
        value = row["overhead_pct"]
        if value is None or np.isnan(value):
            continue
        ax.errorbar(
            place,
            value,
            yerr=errors[:, place : place + 1],
            fmt=_marker(row["mode"], destinations),
            color=_style(row["mode"], destinations).colour,
            ecolor="black",
            markeredgecolor="black",
            markersize=5,
            capsize=5,
        )
        top = value + float(np.nan_to_num(errors[1, place]))
        bounds = (
            ""
            if np.isnan(errors[:, place]).any()
            else span(row["overhead_low_pct"], row["overhead_high_pct"])
        )
        ax.annotate(
            f"{signed_percent(value)} %\n{bounds}".rstrip(),
            (place, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
        tops.append(top)
    ax.margins(y=0.12)
    low, high = ax.get_ylim()
    if tops:
        # Make room for the text above the highest interval.
        high = max(high, max(tops) + 0.45 * (max(tops) - min(low, 0)))
    ax.set_ylim(low, high)
    ax.grid(axis="y", **GRID)


def _noise_band(ax: Axes, part: pd.DataFrame) -> list[float]:
    """Shade ± the farther end of the noise floor, and write it above the baseline.

    Returns:
        The band's reach; empty if there is none.
    """
    known = part[part["noise_floor_low_pct"].notna()]
    if known.empty:
        return []
    low, high = (float(known[f"noise_floor_{end}_pct"].iloc[0]) for end in ("low", "high"))
    reach = stats.noise_reach(low, high)
    ax.axhspan(-reach, reach, color="#CCCCCC", lw=0)
    ax.annotate(
        f"noise floor\n{span(low, high)}",
        (0, reach),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color="#555555",
    )
    return [reach]
