"""For tests of ``dejavubench report``: its pages, and what a strict HTML parser reads in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
from click.testing import Result

from dejavubench.analysis.page.contents import Page
from dejavubench.analysis.page.render import render
from dejavubench.analysis.page.run_page import ShownRun, make_page
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.reports.report_order import REPORT_PARTS
from dejavubench.analysis.tables.report_part import RunPart
from dejavubench.records import Run
from helpers import cli_calls
from helpers.committed_runs import report_of


def call_report(*arguments: object) -> Result:
    """Run ``dejavubench report``."""
    return cli_calls.call("report", *arguments)


def page_of_runs(runs: Iterable[Run], parts: Sequence[RunPart] = REPORT_PARTS) -> Page:
    """Return the contents of a page of these runs."""
    return make_page([ShownRun(make_report(run, parts), run) for run in runs], [], {})


def page_of_committed(runs: Iterable[Run]) -> Page:
    """Return the contents of a page of committed runs, whose reports all tests share."""
    return make_page([ShownRun(report_of(run), run) for run in runs], [], {})


def parse_page(text: str) -> Element:
    """Return the root of a page; the first error of HTML is raised."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    root: Element = parser.parse(text)
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]  # of SVG
    return root


def write_page(path: Path, page: Page) -> Path:
    """Write a page to a file."""
    path.write_text(render(page), encoding="utf-8")
    return path


def text_of(element: Element) -> str:
    """Return the text of an element, with single blanks."""
    return " ".join("".join(element.itertext()).split())


def ids(root: Element) -> list[str]:
    """Return the ids of all elements."""
    return [element.attrib["id"] for element in root.iter() if "id" in element.attrib]


def references(root: Element) -> Iterator[str]:
    """Yield the ids that elements refer to: by links, labels and the paint of pictures."""
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                yield value[1:]
            elif name == "aria-labelledby":
                yield from value.split()
            yield from re.findall(r"url\(#([^)]+)\)", value)


def addresses(root: Element) -> Iterator[str]:
    """Yield what a browser could load or open, within the page or outside."""
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("href", "src", "srcset", "action", "data", "poster") or "link" in name:
                yield value
            yield from re.findall(r"url\(([^)]+)\)", value)
        if element.tag == "style":
            yield from re.findall(r"url\(([^)]+)\)|@import\s+(\S+)", element.text or "")
