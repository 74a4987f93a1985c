"""Legend, title and caption of a picture, in bands above and below its panels.

A band makes the picture taller and takes no room from the panels. So no text covers data, and
nothing lies outside the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dejavubench.analysis.figures.style import TEXT_SIZE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure as Picture
    from matplotlib.transforms import Transform

EDGE_INCHES = 0.08
"""Inches between the picture's edge and its texts, and between a band and the panels."""

TITLE_SIZE = 10.0
CAPTION_GREY = "#333333"


def add_legend(picture: Picture, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend above the panels, in as few rows as the picture's width allows."""
    for columns in range(len(labels), 0, -1):
        legend = picture.legend(
            handles,
            labels,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=(EDGE_INCHES, -EDGE_INCHES),
            bbox_transform=_make_top_transform(picture),
            borderaxespad=0.0,
            borderpad=0.0,
            frameon=False,
            handlelength=2.2,
            columnspacing=1.4,
        )
        if (
            columns == 1
            or _measure_inches(picture, legend)[0] <= picture.get_figwidth() - 2 * EDGE_INCHES
        ):
            break
        legend.remove()
    _grow(picture, top_inches=_measure_inches(picture, legend)[1] + 2 * EDGE_INCHES)


def add_title(picture: Picture, title: str) -> None:
    """Put a title above the panels and the legend."""
    lines = _wrap(picture, title, TITLE_SIZE)
    text = picture.text(
        EDGE_INCHES,
        -EDGE_INCHES,
        lines,
        fontsize=TITLE_SIZE,
        transform=_make_top_transform(picture),
        va="top",
        ha="left",
    )
    height = _measure_inches(picture, text)[1] + 2 * EDGE_INCHES
    _grow(picture, top_inches=height)
    text.set_transform(_make_top_transform(picture))
    for legend in picture.legends:
        legend.set_bbox_to_anchor(
            (EDGE_INCHES, -EDGE_INCHES - height), _make_top_transform(picture)
        )


def add_caption(picture: Picture, caption: str) -> None:
    """Put a caption below the panels, left-aligned and as wide as the picture."""
    text = picture.text(
        EDGE_INCHES,
        EDGE_INCHES,
        _wrap(picture, caption, TEXT_SIZE),
        color=CAPTION_GREY,
        transform=picture.dpi_scale_trans,  # inches from the bottom left corner
        va="bottom",
        ha="left",
    )
    _grow(picture, bottom_inches=_measure_inches(picture, text)[1] + 2 * EDGE_INCHES)


def _make_top_transform(picture: Picture) -> Transform:
    """Return the transform of inches from the picture's top left corner, upwards and rightwards."""
    from matplotlib.transforms import ScaledTranslation

    # The stubs ask for an affine transform, which a picture's own one is.
    figure_transform: Any = picture.transFigure
    return picture.dpi_scale_trans + ScaledTranslation(0, 1, figure_transform)


def _grow(picture: Picture, top_inches: float = 0.0, bottom_inches: float = 0.0) -> None:
    """Make a picture taller by bands, in inches, that its panels do not use."""
    engine: Any = picture.get_layout_engine()
    rect_left, rect_bottom, rect_width, rect_height = engine.get()["rect"]
    old_height = picture.get_figheight()
    new_height = old_height + top_inches + bottom_inches
    picture.set_figheight(new_height)
    engine.set(
        rect=(
            rect_left,
            (rect_bottom * old_height + bottom_inches) / new_height,
            rect_width,
            rect_height * old_height / new_height,
        )
    )


def _measure_inches(picture: Picture, artist: Artist) -> tuple[float, float]:
    """Return width and height of an artist."""
    canvas: Any = picture.canvas
    extent = artist.get_window_extent(canvas.get_renderer())
    return extent.width / picture.dpi, extent.height / picture.dpi


def _wrap(picture: Picture, text: str, size: float) -> str:
    """Break a text into lines that fill the picture's width, measured in its font."""
    from matplotlib.font_manager import FontProperties

    canvas: Any = picture.canvas
    renderer = canvas.get_renderer()
    font = FontProperties(size=size)
    # A finer picture has other hints for its letters, so its lines are a little longer or shorter.
    limit = 0.985 * (picture.get_figwidth() - 2 * EDGE_INCHES) * picture.dpi

    def fits(line: str) -> bool:
        return bool(renderer.get_text_width_height_descent(line, font, False)[0] <= limit)

    lines = [""]
    for word in re.split("[ \n]+", text.strip()):  # no-break spaces stay
        longer_line = f"{lines[-1]} {word}".lstrip()
        if fits(longer_line):
            lines[-1] = longer_line
            continue
        word_lines = _break_word(word, fits)
        lines = [*lines, *word_lines] if lines[-1] else word_lines
    return "\n".join(lines)


def _break_word(word: str, fits: Callable[[str], bool]) -> list[str]:
    """Break a word that is longer than a line, such as a path, into as few pieces as possible."""
    word_lines = [""]
    for letter in word:
        if fits(word_lines[-1] + letter):
            word_lines[-1] += letter
        else:
            word_lines.append(letter)
    return word_lines
