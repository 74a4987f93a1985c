"""Colours of Okabe and Ito, markers, panels, axes and error bars, which all figures have in common.

Markers, line styles and hatches carry the same information as the colours, for readers in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Picture

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    # TrueType, which journals accept and viewers can search; matplotlib's default is Type 3.
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar in a note is a dollar
    "text.usetex": False,
}

GRID: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 0.6}


def panels(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Picture, np.ndarray]:
    """Return a picture and its panels, [rows, columns]; ``size`` in inches."""
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def tick_at(
    axis: Axis, ticks: Iterable[float], text: Callable[[float], str] = "{:g}".format
) -> None:
    """Put ticks at these values alone."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def tick_each_decade(axis: Axis) -> None:
    """Put ticks at 1, 2 and 5 of each decade of a log axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def errors_of(frame: pd.DataFrame, name: str, unit: str = "") -> np.ndarray:
    """Return distances of the interval's ends from the median, [2, n].

    They are NaN, so not drawn, where there is a single sample.
    """
    middle = frame[f"{name}{unit}"].to_numpy(dtype=float)
    low = frame[f"{name}_low{unit}"].to_numpy(dtype=float)
    high = frame[f"{name}_high{unit}"].to_numpy(dtype=float)
    # A median of few samples can lie outside its bootstrap interval by rounding: no negative bars.
    return np.clip(np.stack([middle - low, high - middle]), 0, None)


def legend_of(axes: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Return every label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return list(handles.values()), list(handles)
