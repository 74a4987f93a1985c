"""Files of a :class:`~dejavubench.analysis.figures.figure.Drawing`: PNG, PDF and CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.style import STYLE
from dejavubench.whole_file import whole_file

SUFFIXES = (".png", ".pdf", ".csv")
DPI = 150
CAPTION_SIZE = 7.5


def paths(drawing: Drawing, folder: Path) -> list[Path]:
    """Return the files that :func:`save` writes."""
    name = drawing.name.replace("/", "-")  # a model's name may be a path
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def save(drawing: Drawing, folder: Path) -> None:
    """Write PNG, PDF and CSV of one drawing, each whole or not at all; replace existing files."""
    *pictures, csv = paths(drawing, folder)
    save_pictures(drawing, pictures, overwrite=True)
    with whole_file(csv, overwrite=True) as partial:
        drawing.frame.to_csv(partial, index=False, errors="backslashreplace")


def save_pictures(drawing: Drawing, files: Sequence[Path], overwrite: bool) -> None:
    """Draw once and write each file in the format of its suffix, whole or not at all.

    Raises:
        FileExistsError: a file exists, and ``overwrite`` is off.
        OSError: a file cannot be written.
    """
    with plt.rc_context(STYLE):
        picture = drawing.figure.draw(drawing.frame, drawing.destinations)
        picture.suptitle(drawing.title, fontsize=11, x=0.01, ha="left")
        width = int(picture.get_figwidth() * 72 / (CAPTION_SIZE * 0.53))
        text = textwrap.fill(_drawable(drawing.caption), width)
        picture.text(0.01, -0.01, text, fontsize=CAPTION_SIZE, va="top", ha="left", color="#333333")
        try:
            for path in files:
                with whole_file(path, overwrite) as partial:
                    picture.savefig(
                        partial,
                        format=path.suffix[1:].lower(),
                        dpi=DPI,
                        bbox_inches="tight",
                        pad_inches=0.12,
                    )
        finally:
            plt.close(picture)


def _drawable(text: str) -> str:
    """Escape bytes of file names that are not UTF-8, which no font has."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
