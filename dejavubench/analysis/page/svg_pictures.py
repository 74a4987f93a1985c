"""Figures as SVG elements that stand in a page: with a title, unique ids and the page's colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from markupsafe import Markup
from matplotlib import pyplot as plt

from dejavubench.analysis.comparison.comparable import NotComparableError
from dejavubench.analysis.figures.drawings import drawings
from dejavubench.analysis.figures.figure import Drawing, NothingToDrawError
from dejavubench.analysis.figures.registry import figure_of
from dejavubench.analysis.figures.style import STYLE
from dejavubench.analysis.page.contents import PagePicture
from dejavubench.records import RecordError, Run

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

PATHS: dict[Any, Any] = {
    # Letters as outlines: other fonts have other widths, and labels would overlap.
    "svg.fonttype": "path",
    # Equal runs give equal pages.
    "svg.hashsalt": "dejavubench",
}

PIXELS_PER_POINT = 4 / 3
"""Of CSS."""

COLOUR_PATTERN = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})\b", re.IGNORECASE)
REFERENCE_PATTERN = re.compile(r"url\(#([^)]+)\)")
COMMENT_PATTERN = re.compile(rb"<!--.*?-->", re.DOTALL)
DECIMAL_PATTERN = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Pictures:
    """Figures of some runs.

    Attributes:
        why_none: why there are no figures; empty if there are some, or none were asked for.
        folders: folders of the runs that they hold.
    """

    drawn: Sequence[PagePicture] = ()
    why_none: str = ""
    folders: frozenset[Path] = frozenset()


def draw_pictures(runs: Sequence[Run], prefix: str) -> Pictures:
    """Return the figures of runs, or the reason why there are none.

    Args:
        prefix: begins all ids.
    """
    try:
        drawn, complaints = drawings(runs)
    except (NotComparableError, RecordError) as error:
        return Pictures(why_none=str(error))
    if not drawn:
        return Pictures(why_none="; ".join(complaints))
    return Pictures(_make_pictures(drawn, prefix), folders=frozenset(run.path for run in runs))


def draw_common_pictures(runs: Sequence[Run], prefix: str) -> Pictures:
    """Return the figures that always hold several runs."""
    together = [run for run in runs if _is_together(run)]
    return draw_pictures(together, prefix) if len(together) > 1 else Pictures()


def _is_together(run: Run) -> bool:
    try:
        figure = figure_of(run)
        if figure.together:
            figure.rows(run)
    except (NothingToDrawError, RecordError):
        return False
    return figure.together


def _make_pictures(drawn: Sequence[Drawing], prefix: str) -> list[PagePicture]:
    return [
        PagePicture(
            title=drawing.title,
            caption=drawing.caption,
            svg=draw_svg(drawing, f"{prefix}-figure-{number}"),
        )
        for number, drawing in enumerate(drawn, start=1)
    ]


def draw_svg(drawing: Drawing, prefix: str) -> Markup:
    """Draw a figure as an SVG element for HTML.

    Greys become mixtures of the page's paper and ink, so that a dark page has light axes. Dark
    colours become lighter there.

    Args:
        prefix: begins all ids.
    """
    file = io.BytesIO()
    with plt.rc_context({**STYLE, **PATHS}):
        picture = drawing.figure.draw(drawing.frame, drawing.destinations)
        try:
            picture.savefig(
                file, format="svg", bbox_inches="tight", pad_inches=0.05, transparent=True
            )
        finally:
            plt.close(picture)
    return _embed(file.getvalue(), drawing.title, prefix)


def _embed(content: bytes, title: str, prefix: str) -> Markup:
    """Return matplotlib's SVG as an element of a page, without what only a file needs."""
    # Comments repeat the texts; a name with a control character would be no XML.
    root = ElementTree.fromstring(COMMENT_PATTERN.sub(b"", content))
    for parent in list(root.iter()):
        for child in list(parent):
            # Metadata is of no use here, and a style element would hold for the whole page.
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = set(_find_references(root))
    for element in root.iter():
        _adapt(element, prefix, used)
    _set_head(root, title, prefix)
    return Markup(_to_html(root))


def _find_references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("href", f"{{{XLINK}}}href"):
                yield value.removeprefix("#")
            yield from REFERENCE_PATTERN.findall(value)


def _adapt(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Make ids unique, shorten numbers, and let the page choose the greys."""
    attributes = dict(element.attrib)
    element.attrib.clear()
    for name, value in attributes.items():
        if name == "id":
            if value in used:
                element.set("id", f"{prefix}-{value}")
        elif name == f"{{{XLINK}}}href":
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif name in ("d", "x", "y"):
            element.set(name, DECIMAL_PATTERN.sub(lambda match: f"{float(match[0]):.2f}", value))
        else:
            value = REFERENCE_PATTERN.sub(rf"url(#{prefix}-\1)", value)
            element.set(
                name,
                COLOUR_PATTERN.sub(_page_colour, value) if name in COLOURED_ATTRIBUTES else value,
            )


COLOURED_ATTRIBUTES = ("style", "fill", "stroke")
"""Attributes that hold colours."""


DARK_INK = (0xE3, 0xE7, 0xEC)
"""Red, green and blue of the ink of a dark page, as page.css has it."""

READABLE_LUMINANCE = 0.22
"""Luminance from which a colour can be read on the paper of a dark page, by more than 4.5 to 1."""


def _page_colour(match: re.Match[str]) -> str:
    """Return a colour for light and dark pages."""
    red, green, blue = (int(part, 16) for part in match.groups())
    if red == green == blue:
        return _grey(red)
    light: tuple[int, ...] = (red, green, blue)
    lifted = light
    share = 0
    while _luminance(lifted) < READABLE_LUMINANCE:
        share += 5
        lifted = tuple(
            round(((100 - share) * part + share * ink) / 100)
            for part, ink in zip(light, DARK_INK, strict=True)
        )
    return f"light-dark({match[0]}, #{bytes(lifted).hex()})" if share else match[0]


def _grey(level: int) -> str:
    paper = round(100 * level / 255)
    if paper in (0, 100):
        return "var(--paper)" if paper else "var(--ink)"
    return f"color-mix(in srgb, var(--paper) {paper}%, var(--ink))"


def _luminance(colour: Sequence[int]) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    shares = (part / 255 for part in colour)
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _set_head(root: ElementTree.Element, title: str, prefix: str) -> None:
    """Give the element its title, its natural width and the page's ink."""
    width = float(root.attrib.pop("width").removesuffix("pt")) * PIXELS_PER_POINT
    root.attrib.pop("height")
    root.attrib.pop("version", None)
    label = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{prefix}-title"})
    label.text = title
    root.insert(0, label)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title")
    root.set("fill", "currentColor")
    root.set("style", f"--natural-width: {width:.0f}px")


def _to_html(root: ElementTree.Element) -> str:
    """Return an element without prefixes of namespaces, which HTML does not know."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    # An empty element is written with an end tag, as HTML's parser expects it.
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
