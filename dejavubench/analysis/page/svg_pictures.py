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
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.figures.figure import Drawing, NothingToDrawError
from dejavubench.analysis.figures.registry import figure_of
from dejavubench.analysis.figures.style import STYLE
from dejavubench.analysis.page.contents import PagePicture
from dejavubench.analysis.page.svg_colours import convert_area_colour, mark_colour
from dejavubench.records import RecordError, Run

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

OUTLINE_SETTINGS: dict[Any, Any] = {
    # Letters as outlines: other fonts have other widths, and labels would overlap.
    "svg.fonttype": "path",
    # Equal runs give equal pages.
    "svg.hashsalt": "dejavubench",
}

PIXELS_PER_POINT = 4 / 3
"""Of CSS."""

STYLED_COLOUR_PATTERN = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})\b", re.IGNORECASE)
GREY_EDGE_PATTERN = re.compile(r"\bstroke: #([0-9a-f]{2})\1\1\b", re.IGNORECASE)
"""Edge of an area: bars and cells have one in black or white, marks have one of their colour."""

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

    page_pictures: Sequence[PagePicture] = ()
    why_none: str = ""
    folders: frozenset[Path] = frozenset()


def draw_pictures(runs: Sequence[Run], prefix: str) -> Pictures:
    """Return the figures of runs, or the reason why there are none.

    Args:
        prefix: begins all ids.
    """
    try:
        drawings, complaints = make_drawings(runs)
    except (NotComparableError, RecordError) as error:
        return Pictures(why_none=str(error))
    if not drawings:
        return Pictures(why_none="; ".join(complaints))
    return Pictures(_make_pictures(drawings, prefix), folders=frozenset(run.path for run in runs))


def draw_common_pictures(runs: Sequence[Run], prefix: str) -> Pictures:
    """Return the figures that always hold several runs."""
    common_runs = [run for run in runs if _joins_runs(run)]
    return draw_pictures(common_runs, prefix) if len(common_runs) > 1 else Pictures()


def _joins_runs(run: Run) -> bool:
    try:
        figure = figure_of(run)
        if figure.joins_runs:
            figure.rows(run)
    except (NothingToDrawError, RecordError):
        return False
    return figure.joins_runs


def _make_pictures(drawings: Sequence[Drawing], prefix: str) -> list[PagePicture]:
    return [
        PagePicture(
            title=drawing.title,
            caption=drawing.caption,
            svg=draw_svg(drawing, f"{prefix}-figure-{figure_number}"),
        )
        for figure_number, drawing in enumerate(drawings, start=1)
    ]


def draw_svg(drawing: Drawing, prefix: str) -> Markup:
    """Draw a figure as an SVG element for HTML.

    Its colours become the page's: see :mod:`svg_colours`.

    Args:
        prefix: begins all ids.
    """
    file = io.BytesIO()
    with plt.rc_context({**STYLE, **OUTLINE_SETTINGS}):
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
    referenced_ids = set(_find_references(root))
    for element in root.iter():
        _adapt(element, prefix, referenced_ids)
    _recolour(root)
    _set_head(root, title, prefix)
    return Markup(_to_html(root))


def _find_references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("href", f"{{{XLINK}}}href"):
                yield value.removeprefix("#")
            yield from REFERENCE_PATTERN.findall(value)


def _adapt(element: ElementTree.Element, prefix: str, referenced_ids: set[str]) -> None:
    """Make ids unique, and shorten numbers."""
    attributes = dict(element.attrib)
    element.attrib.clear()
    for name, value in attributes.items():
        if name == "id":
            if value in referenced_ids:
                element.set("id", f"{prefix}-{value}")
        elif name == f"{{{XLINK}}}href":
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif name in ("d", "x", "y"):
            element.set(name, DECIMAL_PATTERN.sub(lambda match: f"{float(match[0]):.2f}", value))
        else:
            element.set(name, REFERENCE_PATTERN.sub(rf"url(#{prefix}-\1)", value))


def _recolour(root: ElementTree.Element) -> None:
    """Let the page choose the colours: of areas by another rule than of lines and texts."""
    # A hatched area is a pattern: its ground is a rectangle without an edge.
    grounds = {
        id(rectangle)
        for pattern in root.iter(f"{{{SVG}}}pattern")
        for rectangle in pattern.findall(f"{{{SVG}}}rect")
    }
    for element in root.iter():
        style = element.attrib.get("style", "")
        is_area = id(element) in grounds or GREY_EDGE_PATTERN.search(style) is not None
        if style:
            element.set("style", _recolour_style(style, is_area))
        for name in ("fill", "stroke"):
            if element.attrib.get(name, "").startswith("#"):
                element.set(name, _choose_page_colour(name, element.attrib[name], is_area))


def _recolour_style(style: str, is_area: bool) -> str:
    return STYLED_COLOUR_PATTERN.sub(
        lambda match: f"{match[1]}: {_choose_page_colour(match[1], match[2], is_area)}", style
    )


def _choose_page_colour(name: str, colour: str, is_area: bool) -> str:
    return convert_area_colour(colour) if is_area and name == "fill" else mark_colour(colour)


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
