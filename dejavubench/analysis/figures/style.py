"""Colours, hatches, panels, ticks and legends that all figures have in common.

A destination has one colour in all figures. Markers, line styles and hatches carry the same
information as the colours, for readers in grey. Pictures are as wide as a page's text, so they are
printed without being scaled, and no text is smaller than 8 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavubench.records.destination_info import DestinationInfo

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Picture

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
"""Eight colours that colour-blind readers tell apart (Okabe and Ito)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers that tell levels or batches apart without colour."""

LINES = ("-", "--", "-.", ":")
"""Line styles that tell levels or batches apart without colour."""

NOISE_GREY = "#D4D4D4"
"""Ground of the noise floor, light enough for black text."""

WIDTH = 7.0
"""Inches of every picture's width: the text of an A4 or letter page."""

TEXT_SIZE = 8.0
"""Points of all text but the title, and the smallest size that is used."""

STYLE: dict[Any, Any] = {
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    # TrueType, which journals accept and viewers can search; matplotlib's default is Type 3.
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar in a note is a dollar
    "text.usetex": False,
}
"""Matplotlib's settings for all figures."""

GRID: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 0.6}
"""Style of lines at the ticks."""

ERROR_BARS: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 1.0, "capsize": 3}
"""Style of intervals."""

TEXT_CONTRAST = 4.5
"""Least contrast of a text to its ground, as WCAG's level AA asks for."""

LETTER_WIDTH = 0.6
"""Width of a letter or digit relative to the size of its font, rounded up."""


def make_panels(
    row_count: int, column_count: int, height: float, width: float = WIDTH, **options: Any
) -> tuple[Picture, np.ndarray]:
    """Return a picture and its panels, [rows, columns]; ``height`` and ``width`` in inches."""
    # Without pyplot, which would keep every picture until it is closed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)  # measures texts, whatever format is saved
    return picture, picture.subplots(row_count, column_count, squeeze=False, **options)


# ---- colours ----


def make_ordered_colours(count: int) -> list[str]:
    """Return colours for values with an order, from dark to light, also in grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # Not to the map's end: its yellow is too light for lines on white.
    return [to_hex(colormaps["viridis"](fraction)) for fraction in np.linspace(0.0, 0.75, count)]


def make_readable_colour(colour: str) -> str:
    """Return a colour for text on white: the same, or a darker one of :data:`TEXT_CONTRAST`."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour)
    share = 1.0
    while compute_contrast_to_white((share * red, share * green, share * blue)) < TEXT_CONTRAST:
        share -= 0.02
    return to_hex((share * red, share * green, share * blue))


def compute_contrast_to_white(colour: tuple[float, float, float]) -> float:
    """Return the contrast of a colour, red, green and blue of 0 to 1, to white by WCAG."""
    red, green, blue = (
        component / 12.92 if component <= 0.04045 else ((component + 0.055) / 1.055) ** 2.4
        for component in colour
    )
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def lighten(colour: str, share: float) -> str:
    """Mix a colour with white; a share of 1 is white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (component + share * (1 - component) for component in to_rgb(colour))
    return to_hex((red, green, blue))


def choose_filling(info: DestinationInfo, durability: object = None) -> dict[str, Any]:
    """Return colour and hatch of a destination's area; each durability has its own shade.

    Args:
        durability: one of ``info.durabilities``; anything else has the destination's own colour.
    """
    durabilities = info.durabilities
    durability_index = durabilities.index(durability) if durability in durabilities else 0
    share = (0.0, 0.5, 0.8)[min(durability_index, 2)]
    # The second durability has a denser hatch, the third none.
    hatch = (info.hatch, 2 * info.hatch, "")[min(durability_index, 2)]
    return {
        "facecolor": lighten(info.colour, share),
        "hatch": hatch,
        "edgecolor": "black",
        "linewidth": 0.6,
    }


# ---- axes ----


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


def tick_within_decades(axis: Axis) -> None:
    """Add small ticks without a text at 2 to 9 of each decade of a log axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axis.set_minor_formatter(NullFormatter())


def choose_finest_log_ticks(
    choices: Iterable[Sequence[float]],
    axis_ends: tuple[float, float],
    inches: float,
    text: Callable[[float], str],
) -> list[float]:
    """Return the first choice of ticks whose texts have room on a log axis, else the last choice.

    Args:
        choices: increasing values, the finest choice first.
        axis_ends: its lowest and highest value.
        inches: length of the axis.
    """
    low, high = axis_ends
    scale = inches / math.log(high / low)
    ticks: list[float] = []
    for choice in choices:
        ticks = [tick for tick in choice if low <= tick <= high]
        widths = [(len(text(tick)) + 1) * LETTER_WIDTH * TEXT_SIZE / 72 for tick in ticks]
        gaps = [scale * math.log(b / a) for a, b in pairwise(ticks)]
        needed_gaps = [(a + b) / 2 for a, b in pairwise(widths)]
        if all(gap >= width for gap, width in zip(gaps, needed_gaps, strict=True)):
            break
    return ticks


def errors_of(frame: pd.DataFrame, name: str, unit: str = "") -> np.ndarray:
    """Return distances of the interval's ends from the median, [2, n].

    They are NaN, so not drawn, where there is a single sample.
    """
    medians = frame[f"{name}{unit}"].to_numpy(dtype=float)
    low_ends = frame[f"{name}_low{unit}"].to_numpy(dtype=float)
    high_ends = frame[f"{name}_high{unit}"].to_numpy(dtype=float)
    # A median of few samples can lie outside its bootstrap interval by rounding: no negative bars.
    return np.clip(np.stack([medians - low_ends, high_ends - medians]), 0, None)


# ---- legends ----


def collect_legend(axes: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Return every label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return list(handles.values()), list(handles)
