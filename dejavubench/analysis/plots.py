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
from dejavubench.records.destinations import Destinations
from dejavubench.wholefile import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".csv")
DPI = 150
CAPTION_SIZE = 7.5

_DRAW: dict[str, Callable[[pd.DataFrame, Destinations], Figure]] = {
    "fig2": prompt_token,
    "appendix_a": prompt_token,
    "fig7": levels,
    "fig25": totals,
    "link": against_link,
}


def paths(drawing: Drawing, folder: Path) -> list[Path]:
    """Return the files that :func:`save` writes."""
    name = drawing.name.replace("/", "-")  # a model's name may be a path
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def save(drawing: Drawing, folder: Path) -> None:
    """Write PNG, PDF and CSV of one drawing, each whole or not at all; replace existing files."""
    png, pdf, csv = paths(drawing, folder)
    with plt.rc_context(STYLE):
        figure = _DRAW[drawing.figure](drawing.frame, drawing.destinations)
        figure.suptitle(drawing.title, fontsize=11, x=0.01, ha="left")
        width = int(figure.get_figwidth() * 72 / (CAPTION_SIZE * 0.53))
        text = textwrap.fill(_drawable(drawing.caption), width)
        figure.text(0.01, -0.01, text, fontsize=CAPTION_SIZE, va="top", ha="left", color="#333333")
        for path in (png, pdf):
            with whole_file(path, overwrite=True) as partial:
                figure.savefig(
                    partial, format=path.suffix[1:], dpi=DPI, bbox_inches="tight", pad_inches=0.12
                )
        plt.close(figure)
    with whole_file(csv, overwrite=True) as partial:
        drawing.frame.to_csv(partial, index=False, errors="backslashreplace")


def _drawable(text: str) -> str:
    """Escape bytes of file names that are not UTF-8, which no font has."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
