"""The HTML page in a headless browser: sorting, printing, narrow screens, dark, and no requests."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

from dejavubench.analysis.page.contents import Page as Contents
from dejavubench.analysis.page.contents import PageHeading, PageRun, PageTable
from dejavubench.analysis.page.sortable import cell_of
from dejavubench.records import read_run
from helpers.committed_runs import runs_of
from helpers.html_pages import page_of_committed, page_of_runs, write_page
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

A4_POINTS = (595, 842)
PHONE = {"width": 375, "height": 800}
SCREEN = {"width": 1280, "height": 900}
PAPER = {"width": 680, "height": 990}
"""The printed part of an A4 page, in pixels of CSS: 180 mm by 263 mm."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

BROWSER_REQUIRED = "DEJAVUBENCH_BROWSER_REQUIRED"
"""Variable with which `.ci/run` says that a missing browser is a failure."""


def browser_path() -> str:
    """Return the path of a Chromium or Chrome; skip the test, or fail it, without one."""
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get(BROWSER_REQUIRED):
            pytest.fail(f"{reason}, and {BROWSER_REQUIRED} is set")
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start one browser for this file; it ends before other tests use this process."""
    path = browser_path()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def contents() -> Contents:
    """Return a page with a trace, wide tables and a run of many points."""
    run_names = ("fig25-20261130T141039Z", "fig7-20261130T105159Z", "fig2-20261125T074828Z")
    machines = ("epyc-bf16-2core", "h200-x2", "h100-x2")
    runs = [run for machine in machines for run in runs_of(machine)]
    return page_of_committed([run for run in runs if run.path.name in run_names])


@pytest.fixture(scope="module")
def address(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of that page."""
    return write_page(tmp_path_factory.mktemp("page") / "runs.html", contents).as_uri()


@pytest.fixture(scope="module")
def link_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a page with the link figure, whose texts have the levels' colours."""
    runs = [run for run in runs_of("epyc-2core") if run.header.figure == "link"]
    path = tmp_path_factory.mktemp("links") / "runs.html"
    return write_page(path, page_of_committed(runs)).as_uri()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that collects what a user would see as an error, and every request."""
    tab = browser.new_page(viewport=SCREEN)
    tab.complaints, tab.requests = [], []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    yield tab
    tab.close()


def test_a_page_says_nothing_to_the_console_and_asks_for_nothing(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.locator("th button").first.click()
    tab.locator("a.meaning").first.click()
    assert tab.complaints == []
    assert tab.requests == [address]


def test_the_browser_refuses_a_request_of_the_page(tab: Any, address: str) -> None:
    tab.goto(address)
    asked = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)"
    assert tab.evaluate(asked) == "TypeError"
    assert any("Content Security Policy" in text for text in tab.complaints)


# ---- sorting ----

CELLS = ["10.0", "–", "9.5", "FAILED", "−3.0 [−4, −2]", "1,000.0"]
UP = ["−3.0 [−4, −2]", "9.5", "10.0", "1,000.0", "FAILED", "–"]
DOWN = ["1,000.0", "10.0", "9.5", "−3.0 [−4, −2]", "FAILED", "–"]


@pytest.fixture
def sorted_tab(tab: Any, tmp_path: Path) -> Any:
    """A page with one table of two groups."""
    rows = [[cell_of(f"arm{number}"), cell_of(text)] for number, text in enumerate(CELLS, 8)]
    headings = [PageHeading("arm", None, True), PageHeading("total ms", None, False)]
    table = PageTable("times", "t", headings, [rows[:3], rows[3:]])
    page = Contents("sorting", [PageRun("sorting", "run-1", "", "", tables=[table])])
    tab.goto(write_page(tmp_path / "sort.html", page).as_uri())
    return tab


def column(tab: Any, number: int) -> list[str]:
    return [str(text) for text in tab.locator(f"tbody td:nth-child({number})").all_inner_texts()]


def orders(tab: Any) -> list[str]:
    return [heading.get_attribute("aria-sort") for heading in tab.locator("thead th").all()]


def test_a_click_sorts_numbers_as_numbers_and_missing_ones_last(sorted_tab: Any) -> None:
    button = sorted_tab.get_by_role("button", name="total ms")
    assert (column(sorted_tab, 2), orders(sorted_tab)) == (CELLS, ["none", "none"])
    button.click()
    assert (column(sorted_tab, 2), orders(sorted_tab)) == (UP, ["none", "ascending"])
    button.click()
    assert (column(sorted_tab, 2), orders(sorted_tab)) == (DOWN, ["none", "descending"])
    button.click()
    assert (column(sorted_tab, 2), orders(sorted_tab)) == (CELLS, ["none", "none"])
    groups = sorted_tab.locator("tbody").all()
    assert [group.locator("tr").count() for group in groups] == [3, 3]


def test_enter_and_space_sort_a_table_as_a_click_does(sorted_tab: Any) -> None:
    sorted_tab.get_by_role("button", name="arm").focus()
    sorted_tab.keyboard.press("Enter")
    # Numbers inside names count: arm8 and arm9 stand before arm10.
    assert column(sorted_tab, 1) == [f"arm{number}" for number in range(8, 14)]
    sorted_tab.keyboard.press("Space")
    assert column(sorted_tab, 1) == [f"arm{number}" for number in range(13, 7, -1)]
    sorted_tab.keyboard.press("Tab")
    sorted_tab.keyboard.press("Enter")
    assert (column(sorted_tab, 2), orders(sorted_tab)) == (UP, ["none", "ascending"])


def test_a_heading_leads_to_its_meaning(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.get_by_role("link", name="Meaning of overhead %").first.click()
    target = tab.locator("dl > div:target")
    assert target.locator("dt").inner_text() == "overhead %"
    assert "Overhead of total_ms." in target.inner_text()
    assert target.is_visible()


# ---- on a phone, on paper, in the dark ----


def test_a_phone_scrolls_tables_and_not_the_page(tab: Any, address: str) -> None:
    tab.set_viewport_size(PHONE)
    tab.goto(address)
    tab.evaluate(
        "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide_parts = tab.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".filter((box) => box.scrollWidth > box.clientWidth).length"
    )
    assert wide_parts > 3
    unread_texts = tab.evaluate(
        "[...document.querySelectorAll('p, li, td, th, dd')]"
        ".filter((text) => parseFloat(getComputedStyle(text).fontSize) < 12).length"
    )
    assert unread_texts == 0


OVERHEADS = """
[...document.querySelectorAll("table.sortable")].flatMap((table) => {
  const headings = [...table.tHead.rows[0].cells];
  const column = headings.findIndex((heading) => /overhead %/.test(heading.textContent));
  if (column < 0) return [];
  const edge = table.closest(".scroll").getBoundingClientRect().right;
  return [...table.rows].map((row) => {
    const box = row.cells[column].getBoundingClientRect();
    return { table: table.closest("section").id, over: box.right - edge, wide: box.width };
  });
})
"""


@pytest.mark.parametrize("width", [375, 500])
@pytest.mark.parametrize("page", ["address", "heat_address"])
def test_a_phone_shows_overheads_with_their_intervals_at_once(
    page: str, width: int, tab: Any, request: pytest.FixtureRequest
) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto(request.getfixturevalue(page))
    tab.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    cells = tab.evaluate(OVERHEADS)
    assert len(cells) > 20
    assert [cell for cell in cells if cell["over"] > 0 or cell["wide"] < 60] == []


@pytest.mark.parametrize("width", [500, 800, 1280])
def test_a_figure_is_whole_and_fills_the_page(tab: Any, address: str, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(address)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('figure .scroll')]"
        ".map((box) => [box.scrollWidth, box.clientWidth, "
        "box.firstElementChild.getBoundingClientRect().width])"
    )
    assert len(boxes) >= 3
    for scrolled, shown, drawn in boxes:
        assert scrolled <= shown
        assert drawn >= 0.75 * width


def test_a_link_opens_the_folded_table_that_it_leads_to(tab: Any, address: str) -> None:
    tab.goto(address)
    anchor = tab.locator("details.more section.table").first.get_attribute("id")
    assert not tab.locator(f"#{anchor}").is_visible()
    tab.locator(f".links a[href='#{anchor}']").click()
    assert tab.locator(f"#{anchor}").is_visible()


@pytest.fixture(scope="module")
def printed(browser: Any, address: str) -> PdfReader:
    tab = browser.new_page()
    tab.goto(address)
    content = tab.pdf(prefer_css_page_size=True, print_background=True)
    tab.close()
    return PdfReader(io.BytesIO(content))


def test_paper_is_a4_and_has_the_answer_and_every_table(
    printed: PdfReader, contents: Contents
) -> None:
    for page in printed.pages:
        size = (float(page.mediabox.width), float(page.mediabox.height))
        assert size == pytest.approx(A4_POINTS, abs=1)
    text = _letters("".join(page.extract_text() for page in printed.pages))
    for run in contents.runs:
        for part in run.statements:
            assert all(_letters(sentence) in text for sentence in part.sentences)
        for table in (*run.tables, *run.more_tables):
            assert _letters(table.title) in text
    assert len(printed.pages) < 30


def _letters(text: str) -> str:
    """Return a text without blanks and ligatures, which a PDF has in places of its own."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).lower()


def test_paper_cuts_no_table_and_no_figure(tab: Any, address: str) -> None:
    tab.set_viewport_size(PAPER)
    tab.emulate_media(media="print")
    tab.goto(address)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details.more:not([open])").count() == 0
    cut = tab.evaluate(
        "[...document.querySelectorAll('table, svg, pre')]"
        ".filter((drawn) => drawn.getBoundingClientRect().right > innerWidth + 1)"
        ".map((drawn) => drawn.closest('section, div').id || drawn.tagName)"
    )
    assert cut == []
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details.more:not([open])").count() > 0


TEXTS = "h1, h2, h3, p, li, td, th, dt, dd, code, a, button, summary, figcaption, strong"
CONTRAST = """
(names) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const drawer = canvas.getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    drawer.fillStyle = colour;
    drawer.fillRect(0, 0, 1, 1);
    const parts = [...drawer.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = (element) => {
    for (let parent = element; parent; parent = parent.parentElement) {
      const colour = getComputedStyle(parent).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "white";
  };
  const ratio = (one, other) =>
    (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const texts = [...document.querySelectorAll(names)].map((text) =>
    ratio(light(getComputedStyle(text).color), light(ground(text))));
  const letters = [...document.querySelectorAll("svg use[href*='DejaVu']")].map((letter) =>
    ratio(light(getComputedStyle(letter).fill), light(ground(letter.closest("figure")))));
  const bytes = (colour) => {
    drawer.fillStyle = colour;
    drawer.fillRect(0, 0, 1, 1);
    return [...drawer.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const coloured = (colour) => {
    const parts = bytes(colour);
    return Math.max(...parts) - Math.min(...parts) > 24;
  };
  const painted = (colour) => /^(rgb\\(|color)/.test(colour);
  const shapes = [...document.querySelectorAll("svg path, svg use, svg rect")].map((shape) => {
    const { fill, stroke } = getComputedStyle(shape);
    // Bars and cells have an edge of the page's ink or paper, and hatched ones are patterns.
    const edged = painted(stroke) && !coloured(stroke);
    const isArea = shape.closest("pattern") !== null || edged;
    return { shape, fill, stroke, isArea };
  });
  const marks = shapes.flatMap(({ shape, fill, stroke, isArea }) =>
    (isArea ? [stroke] : [fill, stroke])
      .filter((colour) => painted(colour) && coloured(colour))
      .map((colour) => ratio(light(colour), light(ground(shape.closest("figure"))))));
  // Black lines and texts of a figure have the ink of the page.
  const ink = light(getComputedStyle(document.body).color);
  const areas = shapes
    .filter(({ fill, isArea }) => isArea && painted(fill) && coloured(fill))
    .map(({ fill }) => ratio(light(fill), ink));
  const hatches = [...document.querySelectorAll("svg pattern")].map((pattern) =>
    ratio(light(getComputedStyle(pattern.querySelector("rect")).fill),
      light(getComputedStyle(pattern.querySelector("path")).stroke)));
  return {
    marks: Math.min(...marks),
    areas: Math.min(...areas),
    hatches: Math.min(...hatches),
    areaCount: areas.length,
    hatchCount: hatches.length,
    texts: Math.min(...texts),
    letters: Math.min(...letters),
    paper: light(ground(document.body)),
  };
}
"""


@pytest.fixture(scope="module")
def heat_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a page with a heat map, whose texts lie on colours."""
    points = [
        point_of(3 * i + j, ubatch_size=batch, input_len=length)
        for i, batch in enumerate((1, 2, 4))
        for j, length in enumerate((32, 64, 128))
    ]
    folder = tmp_path_factory.mktemp("heat")
    arms = [NONE, AGAIN, arm_of("mpi"), arm_of("disk")]
    run = write_run(folder / "r", arms, points, {"mpi@3": 1.3, "disk@3": 1.1}, noise=0.05)
    return write_page(folder / "r.html", page_of_runs([read_run(run)])).as_uri()


@pytest.mark.parametrize("page", ["address", "link_address", "heat_address"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(
    scheme: str, page: str, tab: Any, request: pytest.FixtureRequest
) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.goto(request.getfixturevalue(page))
    contrast = tab.evaluate(CONTRAST, TEXTS)
    assert (contrast["paper"] > 0.5) == (scheme == "light")
    assert contrast["texts"] >= 4.5, "less than WCAG's AA"
    assert contrast["letters"] >= 4.5, "less than WCAG's AA"
    if scheme == "dark":  # colours of figures are chosen for white paper
        assert contrast["marks"] >= 3


@pytest.mark.parametrize("page", ["address", "heat_address"])
def test_hatches_and_texts_on_areas_can_be_read_in_the_dark(
    page: str, tab: Any, request: pytest.FixtureRequest
) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.goto(request.getfixturevalue(page))
    contrast = tab.evaluate(CONTRAST, TEXTS)
    assert contrast["areaCount"] > 5
    assert contrast["areas"] >= 4.5, "less than WCAG's AA"
    assert contrast["hatchCount"] > 5 or page == "heat_address"
    if contrast["hatchCount"]:
        assert contrast["hatches"] >= 4.5


# ---- the download ----


def test_the_timeline_is_saved_without_a_request(
    tab: Any, address: str, contents: Contents
) -> None:
    tab.goto(address)
    download = contents.runs[0].download
    assert download is not None
    with tab.expect_download() as saved:
        tab.get_by_role("link", name=download.name).click()
    assert saved.value.suggested_filename == download.name
    content = Path(saved.value.path()).read_bytes()
    assert content == base64.b64decode(download.address.partition(",")[2])
    assert tab.requests == [address]


def test_a_page_of_failed_arms_and_sizes_has_no_errors(tab: Any, tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "r",
        [NONE, AGAIN, arm_of("disk"), arm_of("mpi")],
        [point_of(0), point_of(1, input_len=512, skipped="needs 3 GB more memory")],
        ended=False,
    )
    tab.goto(write_page(tmp_path / "p.html", page_of_runs([read_run(folder)])).as_uri())
    assert tab.complaints == []
    assert tab.locator(".errors").first.is_visible()
    assert json.loads(tab.evaluate("JSON.stringify([...document.scripts].length)")) == 1
