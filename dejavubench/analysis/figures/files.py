"""Pictures and files of a :class:`~dejavubench.analysis.figures.figure.Drawing`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from dejavubench.analysis.figures import framing
from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.style import STYLE
from dejavubench.whole_file import write_whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

SUFFIXES = (".png", ".pdf", ".csv")
"""Files of one drawing: picture, picture for papers, and its data."""

DPI = 150
"""Dots per inch of a PNG."""


def list_paths(drawing: Drawing, folder: Path) -> list[Path]:
    """Return the files that :func:`save` writes."""
    name = drawing.name.replace("/", "-")  # a model's name may be a path
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def save(drawing: Drawing, folder: Path) -> None:
    """Write PNG, PDF and CSV of one drawing, each whole or not at all; replace existing files."""
    *pictures, csv = list_paths(drawing, folder)
    save_pictures(drawing, pictures, overwrite=True)
    with write_whole_file(csv, overwrite=True) as partial_path:
        drawing.frame.to_csv(partial_path, index=False, errors="backslashreplace")


def make_picture(drawing: Drawing, with_texts: bool = True) -> Picture:
    """Return a drawing as matplotlib's figure, which nothing else holds or must close.

    Args:
        with_texts: with title and caption. A page that has both in its own text leaves them out.
    """
    with matplotlib.rc_context(STYLE):
        picture = drawing.figure.draw(drawing.frame, drawing.destinations)
        if with_texts:
            framing.add_title(picture, _escape_undrawable(drawing.title))
            framing.add_caption(picture, _escape_undrawable(drawing.caption))
    return picture


def save_pictures(drawing: Drawing, files: Sequence[Path], overwrite: bool) -> None:
    """Draw once and write each file in the format of its suffix, whole or not at all.

    Raises:
        FileExistsError: a file exists, and ``overwrite`` is off.
        OSError: a file cannot be written.
    """
    picture = make_picture(drawing)
    with matplotlib.rc_context(STYLE):
        for path in files:
            style = path.suffix[1:].lower()
            with write_whole_file(path, overwrite) as partial_path:
                picture.savefig(
                    partial_path, format=style, dpi=DPI, metadata=_make_metadata(drawing, style)
                )


def _make_metadata(drawing: Drawing, style: str) -> dict[str, Any]:
    """Return the title and the description that a picture file carries."""
    title, description = _escape_undrawable(drawing.title), _escape_undrawable(drawing.description)
    if style == "pdf":
        # Without a date, so that equal records give equal files.
        return {"Title": title, "Subject": description, "CreationDate": None}
    if style == "svg":
        return {"Title": title, "Description": description, "Date": None}
    return {"Title": title, "Description": description}


def _escape_undrawable(text: str) -> str:
    """Escape bytes of file names that are not UTF-8, which no font has."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
