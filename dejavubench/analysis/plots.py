"""Draws :class:`~dejavubench.analysis.plotdata.Drawing`: PNG and PDF, with the CSV beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from dejavubench.analysis.bars import levels, totals
from dejavubench.analysis.curves import against_link
from dejavubench.analysis.lines import prompt_token
from dejavubench.analysis.plotdata import Drawing
from dejavubench.analysis.plotstyle import STYLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".csv")
DPI = 150
CAPTION_SIZE = 7.5

_DRAW: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "fig2": prompt_token,
    "appendix_a": prompt_token,
    "fig7": levels,
    "fig25": totals,
    "link": against_link,
}


def paths(drawing: Drawing, folder: Path) -> list[Path]:
    """The files that :func:`save` writes."""
    return [folder / f"{drawing.name}{suffix}" for suffix in SUFFIXES]


def save(drawing: Drawing, folder: Path) -> None:
    """Write PNG, PDF and CSV of one drawing; existing files are overwritten."""
    png, pdf, csv = paths(drawing, folder)
    with plt.rc_context(STYLE):
        figure = _DRAW[drawing.figure](drawing.frame)
        figure.suptitle(drawing.title, fontsize=11, x=0.01, ha="left")
        width = int(figure.get_figwidth() * 72 / (CAPTION_SIZE * 0.53))
        text = textwrap.fill(drawing.caption, width)
        figure.text(0.01, -0.01, text, fontsize=CAPTION_SIZE, va="top", ha="left", color="#333333")
        for path in (png, pdf):
            figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.12)
        plt.close(figure)
    drawing.frame.to_csv(csv, index=False)
