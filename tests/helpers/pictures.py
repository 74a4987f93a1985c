"""For tests of pictures: the texts that are drawn, their places, and error bars."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.files import make_picture
from dejavubench.analysis.figures.style import WIDTH
from dejavubench.records import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

TOUCHING = 0.5
"""Pixels by which two boxes may share an edge."""


def drawing_of(folder: Path, name: str | None = None) -> Drawing:
    """Return the only drawing of a run."""
    (figure,), complaints = make_drawings([read_run(folder)], name=name)
    assert complaints == []
    return figure


def drawn_texts(picture: Picture) -> list[Text]:
    """Return the texts that a reader sees, once the panels have their final places."""
    picture.draw_without_rendering()
    drawn: list[Text] = []
    draw = Text.draw

    def noted(text: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer, *args, **kwargs)

    # A tick outside the axis has a text that is never drawn, so the artists alone do not tell.
    with mock.patch.object(Text, "draw", noted):
        picture.draw_without_rendering()
    return drawn


def renderer_of(picture: Picture) -> Any:
    canvas: Any = picture.canvas
    return canvas.get_renderer()


Boxes = list[tuple[str, Bbox]]
"""Texts of a picture, each with the box that it covers, in pixels."""


def boxes_of(picture: Picture, texts: list[Text]) -> Boxes:
    """Return the boxes of drawn texts."""
    renderer = renderer_of(picture)
    # The text alone: an annotation's extent would hold its arrow.
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]


def overlapping(boxes: Boxes) -> list[tuple[str, str]]:
    """Return the pairs of texts that cover each other."""
    return [
        (text, other_text)
        for (text, box), (other_text, other_box) in combinations(boxes, 2)
        if min(box.x1, other_box.x1) - max(box.x0, other_box.x0) > TOUCHING
        and min(box.y1, other_box.y1) - max(box.y0, other_box.y0) > TOUCHING
    ]


def outside(picture: Picture, boxes: Boxes) -> list[str]:
    """Return the texts that are not wholly within the picture."""
    width, height = picture.bbox.width, picture.bbox.height
    return [
        text
        for text, box in boxes
        if box.x0 < -TOUCHING
        or box.y0 < -TOUCHING
        or box.x1 > width + TOUCHING
        or box.y1 > height + TOUCHING
    ]


def error_bars(picture: Picture) -> Iterator[np.ndarray]:
    """Yield the ends of each error bar in pixels, [2, (x, y)]."""
    for ax in picture.axes:
        for container in ax.containers:
            if not isinstance(container, ErrorbarContainer):
                continue
            for lines in container.lines[2]:
                for segment in lines.get_segments():
                    ends = ax.transData.transform(segment)
                    if len(ends) == 2 and np.isfinite(ends).all():
                        yield ends


def crossed_texts(picture: Picture, boxes: Boxes) -> list[str]:
    """Return the texts that an error bar, which is upright or level, passes through."""
    bars = list(error_bars(picture))
    return [
        text
        for text, box in boxes
        if any(
            ends[:, 0].min() < box.x1 - TOUCHING
            and ends[:, 0].max() > box.x0 + TOUCHING
            and ends[:, 1].min() < box.y1 - TOUCHING
            and ends[:, 1].max() > box.y0 + TOUCHING
            for ends in bars
        )
    ]


def require_readable(drawing: Drawing) -> None:
    """Assert that no text covers another one or lies outside, and that all are large enough."""
    picture = make_picture(drawing)
    texts = drawn_texts(picture)  # it draws the whole picture twice, so it is called once
    boxes = boxes_of(picture, texts)
    assert overlapping(boxes) == []
    assert outside(picture, boxes) == []
    assert crossed_texts(picture, boxes) == []
    assert min(float(text.get_fontsize()) for text in texts) >= 8
    assert picture.get_figwidth() == WIDTH


def texts_of(drawing: Drawing) -> list[str]:
    """Return the texts of a drawing with title and caption."""
    return [text.get_text() for text in drawn_texts(make_picture(drawing))]
