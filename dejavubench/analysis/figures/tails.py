"""Tails: the share of tokens that took at least a time, per arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from dejavubench.analysis.breakdown.tails import sort_tokens
from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.figure import Figure, QuickRun
from dejavubench.analysis.figures.framing import add_legend
from dejavubench.analysis.figures.shared_columns import (
    ArmColumns,
    list_shown_arms,
    make_arm_columns,
)
from dejavubench.analysis.figures.style import (
    GRID,
    LINES,
    TEXT_SIZE,
    collect_legend,
    make_ordered_colours,
    make_panels,
    tick_each_decade,
)
from dejavubench.analysis.tables.process_columns import SettingColumns, Sizes
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run
from dejavubench.records.destination_info import NO_STREAMING, Destinations, find_destination

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

ALL_OF_THE_SLOWEST = 200
"""Slowest tokens of which each has a row. Further down, one of about 50 places has one."""


@dataclass
class TailRow:
    """Tails: one row per point, arm and token, for the slowest tokens and some of the others.

    A token is one decode step. Of several sources, the longest time of each rank counts.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    samples: Annotated[int, "Measured rounds."]
    tokens: Annotated[int, "Tokens of all rounds."]
    at_least_pct: Annotated[float, "Share of tokens that took at least token_ms."]
    token_ms: Annotated[float, "Time of the token."]
    setting: SettingColumns


class TailsFigure(Figure):
    """A panel per destination if there are several levels, else one panel; a line per arm."""

    name = "tails"
    title = "Tails: share of tokens that took at least a time"
    row = TailRow
    method = "Single decode steps of all rounds together, as measured."
    keys = ("at_least_pct",)
    has_error_bars = False
    quick_run = QuickRun(2, "--rounds 6 --ubatch-size 1 --input-len 64 --output-len 48")

    def rows(self, run: Run) -> list[TailRow]:
        """Return some of each arm's tokens, from the slowest, with the share that took as long."""
        return [
            TailRow(
                run=run.path.name,
                point=point.info.id,
                sizes=Sizes.of_point(point.info),
                arm=make_arm_columns(run, arm),
                samples=len(arm.times.total),
                tokens=times.size,
                # Sorted from the slowest: index + 1 tokens took at least this long.
                at_least_pct=100 * (index + 1) / times.size,
                token_ms=float(times[index]),
                setting=SettingColumns.of_point(point.info),
            )
            for point, arm in list_shown_arms(run)
            for times in [sort_tokens(arm)[::-1]]
            for index in _choose_indices(times.size)
        ]

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw one step line per arm; a panel per destination if there are several levels."""
        streaming_rows = frame[frame["role"] == "streaming"]
        level_names = [name for name in LEVELS if name in set(streaming_rows["level"].dropna())]
        modes = list(dict.fromkeys(streaming_rows["mode"])) if len(level_names) > 1 else [None]
        arm_names = list(dict.fromkeys(streaming_rows["arm"]))
        panels_across = min(2, len(modes))
        panels_down = -(-len(modes) // panels_across)
        picture, axes = make_panels(
            panels_down, panels_across, 0.1 + 3.2 * panels_down, sharex=True, sharey=True
        )
        for ax, mode in zip(axes.flat, modes, strict=False):
            for arm_name, arm_rows in frame.groupby("arm", sort=False):
                first_row = arm_rows.iloc[0]
                if mode is None:
                    look = _choose_destination_look(first_row, arm_names, destinations)
                elif first_row["mode"] in (NO_STREAMING, mode):
                    look = _choose_level_look(first_row, level_names)
                else:
                    continue
                label = arm_name
                if mode is not None and first_row["level"] and first_row["mode"] != NO_STREAMING:
                    label = f"level {first_row['level']}"
                ax.step(
                    arm_rows["token_ms"],
                    arm_rows["at_least_pct"],
                    where="post",
                    label=label,
                    **look,
                )
            if mode is not None:
                ax.set_title(f"to {find_destination(mode, destinations).label}")
            _scale_axes(ax, frame)
        for ax in axes.flat[len(modes) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("tokens that took at least this long (%, log)")
        add_legend(picture, *collect_legend(axes.flat))
        return picture

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the numbers of tokens and rounds, and the hosts."""
        rounds, tokens = (
            "/".join(f"{count:,}" for count in sorted(set(frame[name])))
            for name in ("samples", "tokens")
        )
        return [f"{tokens} tokens per arm, of {rounds} rounds.", captions.list_host_places(frame)]


def _choose_indices(token_count: int) -> Iterator[int]:
    """Yield the indices of the tokens that have rows, from the slowest, 0, to the fastest."""
    index = 0
    while index < token_count - 1:
        yield index
        # Steps of 2 % of the index: evenly spaced on the log axis, and small files.
        index += 1 if index < ALL_OF_THE_SLOWEST else index // 50
    if token_count:
        yield token_count - 1


def _scale_axes(ax: Axes, frame: pd.DataFrame) -> None:
    """Scale and tick both axes, and mark the slowest 1 % of the tokens."""
    ax.set_yscale("log")
    if frame["token_ms"].max() > 20 * frame["token_ms"].min() > 0:
        ax.set_xscale("log")
        tick_each_decade(ax.xaxis)
    # At least one decade, which has ticks.
    ax.set_ylim(min(10, 0.8 * float(frame["at_least_pct"].min())), 120)
    tick_each_decade(ax.yaxis)
    ax.set_xlabel("time of one token (ms)")
    ax.axhline(1.0, color="#999999", linewidth=0.7, linestyle=":")
    ax.annotate(
        "p99",
        (1.0, 1.0),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=TEXT_SIZE,
    )
    ax.grid(**GRID)


def _choose_baseline_look(row: pd.Series) -> dict[str, Any]:
    return {"color": "black", "linestyle": "-" if row["role"] == "baseline" else ":"}


def _choose_destination_look(
    row: pd.Series, arm_names: Sequence[str], destinations: Destinations
) -> dict[str, Any]:
    if row["mode"] == NO_STREAMING:
        return _choose_baseline_look(row)
    # Arms often lie on each other. Dashes that differ let the lower line show between the upper's.
    line = LINES[arm_names.index(row["arm"]) % len(LINES)]
    return {"color": find_destination(row["mode"], destinations).colour, "linestyle": line}


def _choose_level_look(row: pd.Series, level_names: list[str]) -> dict[str, Any]:
    if row["mode"] == NO_STREAMING:
        return _choose_baseline_look(row)
    level_index = len(level_names)
    if row["level"] in level_names:
        level_index = level_names.index(row["level"])
    colours = make_ordered_colours(len(level_names) + 1)
    return {"color": colours[level_index], "linestyle": LINES[level_index % len(LINES)]}


FIGURE = TailsFigure()
