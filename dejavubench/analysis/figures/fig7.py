"""Fig 7: slowdown over no streaming, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.facts.samples import Quantity
from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, QuickRun, streaming_arms
from dejavubench.analysis.figures.parts import (
    ArmColumns,
    NoiseColumns,
    arm_columns,
    ends,
    is_loopback,
    level_label,
    noise_columns,
    shown_arms,
)
from dejavubench.analysis.figures.style import GRID, errors_of, legend_of, panels, tick_at
from dejavubench.analysis.number_texts import slowdown
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.rows import Sizes
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run
from dejavubench.records.destination_info import DestinationInfo, Destinations, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

PHASES: tuple[Quantity, ...] = ("total", "prompt", "token")
PHASE_STYLE = {
    "total": ("TOTAL", "#0072B2", ""),
    "prompt": ("prompt", "#E69F00", "///"),
    "token": ("token", "#009E73", "..."),
}

SECOND_HAND = (
    "Second-hand, of the paper's figure (A100, fp16; not verified): naive streaming takes 131× "
    "(GPT2-1.5B), 92× (OPT-13B) and 69× (OPT-66B). Buffered copies are 95 times faster than naive "
    "streaming, and both further steps another 1.4 times."
)
"""Numbers of FasterTransformer's layout on GPUs, below a figure of the same kind; drawn nowhere."""


@dataclass
class LevelRow:
    """Fig 7: one row per point, streaming arm and phase."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    label: Annotated[str, "The paper's label of the level."]
    phase: Annotated[str, "total, prompt or token."]
    samples: Annotated[int, "Rounds that the arm and its baselines have in common."]
    slowdown: Annotated[
        float | None,
        "The phase's time over the geometric mean of the round's baselines, median over rounds.",
    ]
    slowdown_low: Annotated[float | None, "Lower end of its 95 % interval."]
    slowdown_high: Annotated[float | None, "Upper end of its 95 % interval."]
    noise: NoiseColumns


class Fig7(Figure):
    """Rows are KV layouts, columns destinations; a bar per level and phase."""

    name = "fig7"
    title = "Fig 7: slowdown over no streaming, one optimisation after the other"
    row = LevelRow
    method = (
        "Slowdown: the arm's time divided by the geometric mean of the same round's none times, "
        "median over rounds. Bars start at 1 (no streaming)."
    )
    mixed = ("kv_layout",)
    keys = ("phase",)
    quick = QuickRun(
        2, "--rounds 6 --kv-layout ft,hnd --ubatch-size 1 --input-len 64 --output-len 8"
    )

    def fits(self, run: Run) -> bool:
        return len({arm.level for arm in streaming_arms(run)}) > 1

    def rows(self, run: Run) -> list[LevelRow]:
        rows = []
        for point, arm in shown_arms(run):
            if arm.info.level is None:
                continue
            for phase in PHASES:
                # Each phase is paired with the same phase of the baselines: TOTAL's noise says
                # nothing of a token's.
                overhead = stats.paired_overhead(arm.times.series(phase), point.baselines(phase))
                if overhead is None:
                    continue
                # An overhead is ratio − 1. A log axis needs the ratio itself.
                ratio, low, high = ends(overhead.shift(1.0))
                rows.append(
                    LevelRow(
                        run=run.path.name,
                        point=point.info.id,
                        sizes=Sizes.of_point(point.info),
                        arm=arm_columns(run, arm),
                        label=level_label(arm.info.level),
                        phase=phase,
                        samples=overhead.samples,
                        slowdown=ratio,
                        slowdown_low=low,
                        slowdown_high=high,
                        noise=noise_columns(point, phase),
                    )
                )
        return rows

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        layouts, modes = (list(dict.fromkeys(frame[name])) for name in ("kv_layout", "mode"))
        labels = dict(zip(frame["level"], frame["label"], strict=True))
        order = [level for level in LEVELS if level in labels]
        # Records of another version may have levels that this one does not know.
        order += [level for level in labels if level not in order]
        names = {level: f"{level}: {labels[level]}" for level in order}
        size = (3.4 + 4.1 * len(modes), 0.9 + (0.5 + 0.62 * len(names)) * len(layouts))
        picture, axes = panels(len(layouts), len(modes), size, sharex=True, sharey=True)
        for row, layout in zip(axes, layouts, strict=True):
            for ax, mode in zip(row, modes, strict=True):
                # Empty where one run has a destination that another lacks: the panel keeps its
                # place.
                part = frame[(frame["kv_layout"] == layout) & (frame["mode"] == mode)]
                info = shown(mode, destinations)
                # A label with brackets, such as "remote GPU (NCCL)", and a place in brackets become
                # one pair.
                title = f"KV layout {layout}, {_to(mode, destinations)}{_where(part, info)}"
                ax.set_title(title.replace(") (", ", "), loc="left", fontweight="bold")
                _level_bars(ax, part, names)
        for ax in axes[-1]:
            ax.set_xlabel("slowdown over none (×, log)")
        # One round has no interval, so its bar ends at the median. Axes are shared: one pair of
        # ends.
        top = frame["slowdown_high"].fillna(frame["slowdown"]).max()
        low = frame["slowdown_low"].fillna(frame["slowdown"]).min()
        _slowdown_axis(axes[0, 0], low, top)
        handles, phases = legend_of(axes.flat)
        picture.legend(handles, phases, loc="outside right upper", fontsize=8, frameon=False)
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        paper = source_ranks.on_gpu(runs[0]) and "ft" in set(frame["kv_layout"])
        return [captions.noise(frame), SECOND_HAND if paper else ""]


def _slowdown_axis(ax: Axes, low: float, top: float) -> None:
    """Make room for the values behind the bars, and ticks also within one decade of a log axis."""
    # Power, not product: room of 30 % of the axis's length, which is a logarithm.
    right = max(1.1, top) ** 1.3
    ticks = next(ticks for reach, ticks in _TICKS if right > reach)
    # Below ten the ticks are absolute values; above, they repeat in each decade.
    decades = [1.0] if right <= 10 else [10.0**power for power in range(int(np.log10(right)) + 1)]
    known = sorted({tick * decade for tick in ticks for decade in decades})
    ax.set_xlim(min(0.98, 0.98 * low), right)
    tick_at(ax.xaxis, [tick for tick in known if tick <= right], "{:g}×".format)


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
        # Three phases: the middle one is centred on the level's tick, the others one height aside.
        places = [order.index(level) + (number - 1) * height for level in bars["level"]]
        values = bars["slowdown"].to_numpy(dtype=float)
        style: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "black",
            "linewidth": 0.5,
        }
        # A log axis has no zero. A bar is its excess over 1, and reaches left if an arm was faster.
        ax.barh(places, values - 1, left=1.0, height=height, label=name, **style)
        errors = errors_of(bars, "slowdown")
        ax.errorbar(
            values, places, xerr=errors, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.8
        )
        # errors: [2, bars], distances to the lower and the upper end; NaN with one round.
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
    # Upside down: level 0 at the top, as in the paper.
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
    words = [None if info.local or is_loopback(hosts) else hosts, part["durability"].iloc[0]]
    known = [str(word) for word in words if isinstance(word, str)]
    return f" ({', '.join(known)})" if known else ""


FIGURE = Fig7()
