"""Fig 25: a request with its whole KV cache streamed, to each destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, QuickRun, streaming_arms
from dejavubench.analysis.figures.parts import (
    ArmColumns,
    NoiseColumns,
    OverheadColumns,
    arm_columns,
    ends,
    estimate,
    is_loopback,
    noise_columns,
    shown_arms,
)
from dejavubench.analysis.figures.style import GRID, MARKERS, errors_of, panels
from dejavubench.analysis.number_texts import ms, signed_percent, span
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.rows import Sizes
from dejavubench.records import Run
from dejavubench.records.destination_info import NO_STREAMING, DestinationInfo, Destinations, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

BASELINE = DestinationInfo(label=NO_STREAMING, colour="#BBBBBB", hatch="", order=0)


@dataclass
class TotalRow:
    """Fig 25: one row per point and arm."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    samples: Annotated[int, "Measured rounds."]
    total_ms: Annotated[float | None, "Time of the whole request, median over rounds."]
    total_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    total_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    overhead: OverheadColumns
    noise: NoiseColumns


class Fig25(Figure):
    """Above TOTAL, below the overhead; a column per point, a bar per arm."""

    name = "fig25"
    title = "Fig 25: a request with its whole KV cache streamed"
    row = TotalRow
    method = (
        "TOTAL: median over rounds. Overhead: TOTAL divided by the geometric mean of the same "
        "round's none TOTALs, less one, median over rounds."
    )
    mixed = ("ubatch_size", "input_len", "output_len")
    quick = QuickRun(2, "--rounds 6 --ubatch-size 2 --input-len 128 --output-len 16")

    def fits(self, run: Run) -> bool:
        return len({arm.level for arm in streaming_arms(run)}) == 1

    def rows(self, run: Run) -> list[TotalRow]:
        rows = []
        for point, arm in shown_arms(run):
            streaming = arm.info.role == "streaming"
            overhead = (
                stats.paired_overhead(arm.times.total, point.baselines()) if streaming else None
            )
            total, low, high = ends(estimate(arm.times.total))
            rows.append(
                TotalRow(
                    run=run.path.name,
                    point=point.info.id,
                    sizes=Sizes.of_point(point.info),
                    arm=arm_columns(run, arm),
                    samples=len(arm.times.total),
                    total_ms=total,
                    total_low_ms=low,
                    total_high_ms=high,
                    overhead=OverheadColumns(*ends(overhead, 100)),
                    noise=noise_columns(point),
                )
            )
        return rows if any(row.arm.role == "streaming" for row in rows) else []

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        # The second baseline is the grey band below, not a bar of its own.
        frame = frame[frame["role"] != "repeat"]
        points = [part for _, part in frame.groupby([*self.mixed, "run", "point"], sort=False)]
        arms = max(len(part) for part in points)
        size = (max(6.5, len(points) * (0.9 + 1.05 * arms)), 5.6)
        picture, axes = panels(2, len(points), size, height_ratios=(3, 2), sharex="col")
        for column, part in enumerate(points):
            # Bars stand in the order of destinations, not of the seed's rounds; stable for levels.
            styles = [_style(mode, destinations) for mode in part["mode"]]
            part = part.assign(rank=[info.order for info in styles])
            part = part.sort_values("rank", kind="stable")
            above, below = axes[0, column], axes[1, column]
            above.set_title(captions.panel(part, self.mixed), loc="left", fontweight="bold")
            _total_bars(above, part, destinations)
            _overheads(below, part, destinations)
            # The level is named only where a destination has several.
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
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        band = (
            "Grey band: noise, as far to both sides as the farther end of the interval of none#2. "
            "An overhead inside it cannot be told from noise. Dotted: the first baseline."
        )
        return [band if captions.has_noise(frame) else ""]


def _style(mode: str, destinations: Destinations) -> DestinationInfo:
    return BASELINE if mode == NO_STREAMING else shown(mode, destinations)


def _marker(mode: str, destinations: Destinations) -> str:
    known = [NO_STREAMING, *sorted(destinations, key=lambda each: destinations[each].order)]
    place = known.index(mode) if mode in known else len(known)
    return MARKERS[place % len(MARKERS)]


def _arm_label(row: pd.Series, several: bool, destinations: Destinations) -> str:
    detail = row["durability"] if isinstance(row["durability"], str) else row["hosts"]
    label = _style(row["mode"], destinations).label
    mode = label.replace(" on ", "\non ").replace(" (", "\n(")
    words = [f"{mode}, level {row['level']}" if several and isinstance(row["level"], str) else mode]
    if isinstance(detail, str) and detail != "local" and not is_loopback(detail):
        words.append(f"({detail})")
    return "\n".join(words)


def _total_bars(ax: Axes, part: pd.DataFrame, destinations: Destinations) -> None:
    values = part["total_ms"].to_numpy(dtype=float)
    errors = errors_of(part, "total", "_ms")
    # Texts stand above the error bars; without an interval, above the bar.
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
    # From zero: bars whose axis is cut exaggerate differences.
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
            # errorbar takes [2, points]; each arm is drawn by itself, for its own marker.
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
    # Before get_ylim, which asks for the automatic limits.
    ax.margins(y=0.12)
    low, high = ax.get_ylim()
    if tops:
        # Make room for the text above the highest interval.
        high = max(high, max(tops) + 0.45 * (max(tops) - min(low, 0)))
    ax.set_ylim(low, high)
    ax.grid(axis="y", **GRID)


def _noise_band(ax: Axes, part: pd.DataFrame) -> list[float]:
    """Shade the noise floor, as far to both sides as its farther end, and write it there.

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


FIGURE = Fig25()
