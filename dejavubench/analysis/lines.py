"""Fig 2 and Appendix A: time of a prompt and of one token against the prompt's length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from dejavubench.analysis import captions
from dejavubench.analysis.plotstyle import GRID, LINES, MARKERS, OKABE_ITO, errors_of, legend_of
from dejavubench.analysis.rows import POINT_COLUMNS
from dejavubench.records.destinations import Destinations

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Fig 2 and Appendix A: rows are models, columns prompt ms, token ms and their ratio.

MANY_TICKS_SIZE = 8

_QUANTITIES = (
    ("prompt", "_ms", "prompt time (ms)"),
    ("token", "_ms", "time per token (ms)"),
    ("prompt_over_token", "", "prompt time / token time (ratio)"),
)


def prompt_token(frame: pd.DataFrame, _: Destinations) -> Figure:
    apart = [name for name in POINT_COLUMNS if name not in ("ubatch_size", "input_len")]
    varying = ["model", *(name for name in apart if name != "model" and frame[name].nunique() > 1)]
    panels = [part for _, part in frame.groupby(varying, sort=False)]
    size = (9.6, 0.9 + 2.5 * len(panels))
    figure, axes = plt.subplots(len(panels), 3, figsize=size, squeeze=False, layout="constrained")
    batches = sorted(frame["ubatch_size"].unique())
    for row, part in zip(axes, panels, strict=True):
        row[0].set_title(captions.panel(part, varying), loc="left", fontweight="bold")
        for ax, (name, unit, label) in zip(row, _QUANTITIES, strict=True):
            for number, batch in enumerate(batches):
                line = part[part["ubatch_size"] == batch].sort_values("input_len")
                # Set the batches apart, so that error bars do not hide each other.
                aside = 1.03 ** (number - (len(batches) - 1) / 2)
                _line(ax, line, (name, unit), number, aside)
            _length_axis(ax, sorted(part["input_len"].unique()))
            _value_axis(ax, frame[f"{name}{unit}"].dropna())
            ax.set_ylabel(label)
    handles, labels = legend_of(axes.flat)
    figure.legend(
        handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8, frameon=False
    )
    return figure


def _line(
    ax: Axes, line: pd.DataFrame, quantity: tuple[str, str], number: int, aside: float
) -> None:
    name, unit = quantity
    line = line[line[f"{name}{unit}"].notna()]
    if line.empty:
        return
    ax.errorbar(
        line["input_len"] * aside,
        line[f"{name}{unit}"].astype(float),
        yerr=errors_of(line, name, unit),
        color=OKABE_ITO[number % len(OKABE_ITO)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=LINES[number % len(LINES)],
        markersize=5,
        linewidth=1.3,
        capsize=2.5,
        label=f"batch {line['ubatch_size'].iloc[0]}",
    )


def _length_axis(ax: Axes, lengths: Sequence[int]) -> None:
    if len(lengths) > 1 and lengths[-1] >= 4 * lengths[0]:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(lengths, [str(length) for length in lengths])
    ax.tick_params(axis="x", labelsize=MANY_TICKS_SIZE if len(lengths) > 4 else None)
    ax.set_xlabel("prompt length (tokens)")


def _value_axis(ax: Axes, values: pd.Series) -> None:
    """From zero, unless the values span more than a factor of 30."""
    ax.grid(axis="y", **GRID)
    if len(values) and values.max() > 30 * values.min() > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        top = ax.dataLim.y1  # −inf where nothing was drawn
        ax.set_ylim(0, 1.1 * top if top > 0 else None)
