"""The HTML page of runs: what it holds, that it is valid, and that it loads nothing."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from dejavubench.analysis.page import trace_download
from dejavubench.analysis.page.contents import CellKind, Page, PageRun
from dejavubench.analysis.page.render import render
from dejavubench.analysis.page.run_page import ShownRun, make_page
from dejavubench.analysis.page.run_settings import collect_settings
from dejavubench.analysis.page.sortable import Meanings, cell_of, make_tables
from dejavubench.analysis.page.trace_download import make_trace_download
from dejavubench.analysis.reports.report_order import REPORT_PARTS, list_parts_against
from dejavubench.analysis.tables.normal_tables import load_named_table
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.analysis.trace import document
from dejavubench.analysis.trace.build import build
from dejavubench.analysis.trace.choice import choose
from dejavubench.config.experiment import OPTIONS, help_of
from dejavubench.records import NoteKind, PointStart, Run, SessionHeader, Skipped, read_run
from helpers.committed_runs import committed_runs, report_of, runs_of
from helpers.html_pages import (
    addresses,
    ids,
    page_of_committed,
    page_of_runs,
    parse_page,
    references,
    text_of,
)
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

FAST = ("epyc-bf16-2core", "h200-x2")
SLOW = ("epyc-2core", "h100-x2", "h200", "xeon-2core")
"""Machines whose many figures take long to draw."""

MACHINES = [*FAST, *(pytest.param(machine, marks=pytest.mark.drill) for machine in SLOW)]


@cache
def page_of_machine(machine: str) -> Page:
    """Return the page of a machine's committed runs."""
    return page_of_committed(runs_of(machine))


@cache
def parse_page_of_machine(machine: str) -> Element:
    return parse_page(render(page_of_machine(machine)))


def tree_of(run: Run) -> Element:
    return parse_page(render(page_of_committed([run])))


def run_named(machine: str, name: str) -> Run:
    return next(run for run in runs_of(machine) if run.path.name == name)


def read_timed_run() -> Run:
    """Return a run with times of chunks."""
    return run_named("epyc-bf16-2core", "fig25-20261130T141039Z")


def find_elements(root: Element, tag: str) -> list[Element]:
    return [element for element in root.iter() if element.tag == tag]


def pair_sections() -> Iterator[tuple[Run, PageRun]]:
    for machine in FAST:
        yield from zip(runs_of(machine), page_of_machine(machine).runs, strict=True)


# ---- as HTML ----


@pytest.mark.parametrize("machine", MACHINES)
def test_a_page_is_valid_and_its_ids_are_unique(machine: str) -> None:
    root = parse_page_of_machine(machine)
    element_ids = ids(root)
    assert len(element_ids) == len(set(element_ids))
    assert set(references(root)) <= set(element_ids)
    headings = [
        int(element.tag[1]) for element in root.iter() if element.tag in ("h1", "h2", "h3", "h4")
    ]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(lower <= upper + 1 for upper, lower in pairwise(headings)), "a level is left out"


@pytest.mark.parametrize("machine", MACHINES)
def test_a_page_loads_nothing(machine: str) -> None:
    named = [address for address in addresses(parse_page_of_machine(machine)) if address]
    assert any(address.startswith("data:application/gzip") for address in named) == (
        machine in FAST
    )
    assert [address[:60] for address in named if not address.startswith(("#", "data:"))] == []


def test_dates_and_flags_are_kept_on_one_line_and_can_be_copied(tmp_path: Path) -> None:
    settings = ["--max-time 900s", "--no-ceilings"]
    root = parse_page(
        render(page_of_runs([read_run(write_run(tmp_path / "r", settings=settings))]))
    )
    report_parts = [
        text_of(element)
        for element in find_elements(root, "span")
        if element.attrib.get("class") == "whole"
    ]
    assert {"2025-01-02", "--max-time", "--no-ceilings"} <= set(report_parts)
    (caption,) = find_elements(root, "figcaption")
    assert "Settings: --max-time 900s --no-ceilings." in text_of(caption)


def test_names_in_records_are_text_and_no_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
    folder = write_run(
        tmp_path / "r",
        points=[point_of(model=evil)],
        name=evil,
        note=evil,
        command=["dejavubench", "run", evil],
        settings=[f"--note {evil}"],
        environment={"cpu_model": evil, "cores": 2, "versions": {evil: evil}},
    )
    root = parse_page(render(page_of_runs([read_run(folder)])))
    (script,) = find_elements(root, "script")
    assert "alert" not in (script.text or "")
    assert evil in text_of(find_elements(root, "h1")[0])
    assert shlex.quote(evil) in "".join(find_elements(root, "pre")[0].itertext())


# ---- the parts of the report ----


def test_answers_come_first_then_figures_tables_notes_settings_and_the_command() -> None:
    run = read_timed_run()
    root = tree_of(run)
    titles = [text_of(element) for element in find_elements(root, "h2")]
    assert titles == [
        *("Answer", "Figure", "Tables", "Notes", "Settings", "Machine", "Run it again"),
        *("Timeline", "Meaning of the columns"),
    ]
    items = [text_of(element) for element in find_elements(root, "li")]
    answers = next(content for part, content in report_of(run).parts if part.heading == "ANSWER")
    assert items[: len(answers.sentences)] == [
        " ".join(sentence.split()) for sentence in answers.sentences
    ]


def test_a_page_has_every_table_and_note_of_the_report() -> None:
    assert list(pair_sections())
    for run, section in pair_sections():
        report = report_of(run)
        shown = [*section.tables, *section.more_tables]
        texts = {
            table.subtitle or table.title: [
                [cell.text for cell in row] for group in table.groups for row in group
            ]
            for table in shown
        }
        assert len(texts) == len(report.blocks)
        for block in report.blocks:
            rows = [row for group in block.groups for row in group]
            # A page has the same rows, with the overhead nearer to the names.
            assert [sorted(" ".join(cell.split("\n")) for cell in row) for row in rows] == [
                sorted(row) for row in texts[block.title]
            ], run.path
        assert section.notes == report.note_lines


def test_every_heading_of_a_table_leads_to_its_meaning() -> None:
    meanings = Meanings()
    notes_not_shown = {
        (table.title, heading.text)
        for run in committed_runs().runs
        for part, content in report_of(run).parts
        for table in make_tables(part, content.blocks, part.name, meanings)
        for heading in table.headings
        if heading.anchor is None
    }
    assert notes_not_shown == set()
    assert len(meanings.all()) > 50
    texts = [column.meaning for group in meanings.all() for column in group.columns]
    assert [text for text in texts if not text.endswith(".")] == []


BROKEN = NoteKind("broken-toy", "error")


def _toy(data: RunData) -> PartContent:
    rows = [["a", "3"], ["b", "–"]]
    table = Block("toys", ["arm", "toy ms"], 1, [rows], sources={"arm": ("arm",)})
    return PartContent(["The toy says no."], [table], [BROKEN.note("TOY: broken")])


def test_a_legend_stands_above_the_answer_and_warnings_right_below_it(tmp_path: Path) -> None:
    odd = NoteKind("odd-toy", "warning")
    toy_kind = NoteKind("plain-toy", "info")
    words = "toy@3: to a toy, level 3."
    answer = RunPart("toy", "ANSWER", lambda _: PartContent(["Toys cost 3 ms."], legend=words))
    notes = RunPart(
        "toy-notes",
        "Notes of a toy",
        lambda _: PartContent(
            notes=[odd.note("The room was busy."), toy_kind.note("Toys are red.")]
        ),
        (odd, toy_kind),
    )
    added_part = RunPart("more", "More", lambda _: PartContent(["Toys are old."]))
    run = read_run(write_run(tmp_path / "r"))
    text = text_of(parse_page(render(page_of_runs([run], (answer, added_part, notes)))))
    order = [
        words,
        "Toys cost 3 ms.",
        "Warning: The room was busy.",
        "Toys are old.",
        "Toys are red.",
    ]
    places = [text.index(sentence) for sentence in order]
    assert places == sorted(places)
    assert text.count("Toys are red.") == 1


def test_every_table_is_linked_below_the_answer() -> None:
    run = read_timed_run()
    root = tree_of(run)
    (links,) = (part for part in find_elements(root, "div") if part.attrib.get("class") == "links")
    (section,) = page_of_committed([run]).runs
    targets = [link.attrib["href"] for link in find_elements(links, "a")]
    anchors = [f"#{table.anchor}" for table in (*section.tables, *section.more_tables)]
    assert targets == anchors
    assert len(section.more_tables) > 1


def test_a_new_part_appears_without_a_change_of_the_page(tmp_path: Path) -> None:
    toy = RunPart("toy", "TOYS OF A RUN", _toy, (BROKEN,))
    page = page_of_runs([read_run(write_run(tmp_path / "r"))], (*REPORT_PARTS, toy))
    root = parse_page(render(page))
    assert "Toys of a run" in [text_of(element) for element in find_elements(root, "h2")]
    assert "The toy says no." in [text_of(element) for element in find_elements(root, "li")]
    table = next(table for table in page.runs[0].tables if table.subtitle == "toys")
    assert table.title == "Toys of a run"
    assert [heading.anchor is None for heading in table.headings] == [False, True]
    # An error stands above the answer, and among the notes.
    text = text_of(root)
    assert text.count("TOY: broken") == 2
    assert text.index("TOY: broken") < text.index("Answer")


def test_a_comparison_with_measured_machines_is_a_part_like_others() -> None:
    run = next(run for run in runs_of("h200-x2") if run.header.figure == "fig25")
    page = page_of_runs([run], list_parts_against(load_named_table("shipped")))
    heading = next(
        statement for statement in page.runs[0].statements if statement.heading == "Is it normal?"
    )
    assert heading.sentences


# ---- numbers to sort by ----


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1103.0", "number", 1103.0),
        ("1,234,567", "number", 1234567.0),
        ("+4.36 [+0.31, +6.15]", "number", 4.36),
        ("−1.80 [−3.61, +1.47]", "number", -1.8),
        ("noise −2.27 [−8.42, +0.08]", "number", -2.27),
        ("786.4 kB", "number", 786400.0),
        ("1.5 GB", "number", 1.5e9),
        ("12 B", "number", 12.0),
        ("50 % of raw loop", "number", 50.0),
        ("1.40×", "number", 1.4),
        ("24 / 12", "number", 24.0),
        ("–", "missing", None),
        ("", "missing", None),
        ("– / 3", "text", None),
        ("baseline", "text", None),
        ("yes (12)", "text", None),
        ("host@3", "text", None),
        ("2026-11-30", "text", None),
        ("4x", "text", None),
    ],
)
def test_a_cell_is_sorted_by_the_number_that_it_begins_with(
    text: str, kind: str, value: float | None
) -> None:
    cell = cell_of(text)
    assert (cell.text, cell.kind) == (text, CellKind(kind))
    assert cell.value == (None if value is None else pytest.approx(value))


def test_cells_of_times_have_the_values_of_the_rows() -> None:
    compared = 0
    for run, section in pair_sections():
        rows = {(row.point, row.arm): row for row in report_of(run).rows}
        times = next((table for table in section.tables if "-times-" in table.anchor), None)
        headings = [heading.text for heading in times.headings] if times else []
        if times is None or "total ms" not in headings:
            continue
        points = {point for point, _ in rows}
        for group in times.groups:
            for cells in group:
                values = dict(zip(headings, cells, strict=True))
                name = values["point"].text if len(points) > 1 else next(iter(points))
                row = rows[name, values["arm"].text]
                if row.ok:
                    assert values["total ms"].value == pytest.approx(row.times.total_ms, rel=1e-3)
                    compared += 1
    assert compared > 20


def test_an_overhead_stands_behind_the_names_and_a_status_in_its_place(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi"), arm_of("nccl")]
    skipped = [Skipped(point="p000", arm="nccl@3", reason="no GPU")]
    run = read_run(write_run(tmp_path / "r", arms, skipped=skipped))
    times = next(table for table in page_of_runs([run]).runs[0].tables if "-times-" in table.anchor)
    assert [heading.text for heading in times.headings][:3] == ["arm", "overhead %", "prompt ms"]
    (rows,) = times.groups
    assert [cell.text for cell in rows[-1]][:3] == ["nccl@3", "SKIPPED", "–"]
    value, interval = rows[2][1].pieces
    assert re.fullmatch(r"[+−]?\d+\.\d\d", value)
    assert re.fullmatch(r"\[[+−]?\d+\.\d\d, [+−]?\d+\.\d\d\]", interval)
    assert rows[2][0].pieces == ("mpi@3",)


# ---- figures ----


def test_every_figure_has_a_title_and_takes_its_greys_from_the_page() -> None:
    pictures = [
        element
        for machine in FAST
        for element in find_elements(parse_page_of_machine(machine), "svg")
    ]
    assert len(pictures) >= 5
    for picture in pictures:
        title = next(iter(picture))
        assert title.tag == "title"
        assert (title.text or "").strip()
        assert picture.attrib["aria-labelledby"] == title.attrib["id"]
        painted = {value for element in picture.iter() for value in element.attrib.values()}
        assert not [value for value in painted if "#000000" in value or "#ffffff" in value]
        assert any("var(--ink)" in value for value in painted)


def test_a_run_without_a_figure_says_why(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", [arm_of("mpi"), arm_of("host")]))
    (section,) = page_of_runs([run]).runs
    assert not section.pictures
    assert "no baseline was measured" in section.no_picture


def test_runs_of_one_figure_are_drawn_together() -> None:
    links = [run for run in runs_of("epyc-2core") if run.header.figure == "link"]
    page = page_of_committed(links)
    assert len(links) > 2
    assert len(page.pictures) == 1
    assert {section.no_picture for section in page.runs} == {"The figure above holds this run."}


def test_runs_of_one_figure_that_cannot_be_compared_are_drawn_apart(tmp_path: Path) -> None:
    run = next(run for run in runs_of("epyc-2core") if run.header.figure == "link")
    run_of_equal_records = replace(run, path=tmp_path / "again")
    report = report_of(run)
    page = make_page([ShownRun(report, run), ShownRun(report, run_of_equal_records)], [], {})
    assert not page.pictures
    assert "hold the same point and arm" in page.no_pictures
    assert [len(section.pictures) for section in page.runs] == [1, 1]


def test_a_name_with_control_characters_can_be_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", points=[point_of(model="a\x01b--c")])
    (section,) = page_of_runs([read_run(folder)]).runs
    assert len(section.pictures) == 1


# ---- settings and machine ----


def test_settings_options_machine_and_command_are_those_of_the_record() -> None:
    run = read_timed_run()
    page = page_of_committed([run])
    settings = page.runs[0].settings
    assert settings is not None
    assert settings.flags == run.header.settings
    options = {fact.key: fact.value for fact in settings.options}
    assert set(options) == set(run.header.experiment)
    assert (options["ubatch_size"], options["verify"], options["note"]) == ("4", "yes", "–")
    machine = {fact.key: (fact.value, fact.meaning) for fact in settings.machine}
    assert machine["cpu_model"] == ("AMD EPYC", "Name of the processor")
    assert machine["memory_available"][0] == "18.6 GB"
    assert "torch 2.13.0+cpu" in machine["versions"][0]
    (command,) = settings.commands
    assert command.startswith("mpirun -n 2 dejavubench run configs/cpu/fig25.toml --precision none")
    assert settings.configuration == "configs/cpu/fig25.toml"


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_command_has_its_launcher_whatever_the_number_of_ranks(
    tmp_path: Path, ranks: int
) -> None:
    folder = write_run(
        tmp_path / "r", environment={"ranks": ranks}, command=["dejavubench", "run", "--level", "3"]
    )
    settings = page_of_runs([read_run(folder)]).runs[0].settings
    assert settings is not None
    assert settings.commands == [f"mpirun -n {ranks} dejavubench run --level 3"]


def test_rounds_among_the_options_are_those_of_all_sessions(tmp_path: Path) -> None:
    points = [point_of(), point_of(1, input_len=128)]
    run = read_run(write_run(tmp_path / "r", points=points, experiment={"rounds": 10}))
    starts = [PointStart(point=point.id, iteration=12, round=10, rounds=20) for point in points]
    for started_points, words in (
        (starts, "30 by run --continue, 10 at first"),
        (starts[:1], "10 to 30 by run --continue, 10 at first"),
        ([], "10"),
    ):
        session = SessionHeader(
            schema_version=1,
            run_id=run.header.run_id,
            session=2,
            started_utc="2026-01-01T00:00:00Z",
            command=["dejavubench"],
            starts=started_points,
            environment={},
            rounds=30,
        )
        later_session = replace(run, number=2, session=session)
        continued_run = replace(run, joined_sessions=[run, later_session])
        options = collect_settings(continued_run, {}).options
        assert {fact.key: fact.value for fact in options}["rounds"] == words


def test_options_have_their_help() -> None:
    run = runs_of("epyc-bf16-2core")[0]
    shown = [ShownRun(report_of(run), run)]
    (section,) = make_page(shown, [], {key: help_of(key) for key in OPTIONS}).runs
    assert section.settings is not None
    unknown = [fact.key for fact in section.settings.options if not fact.meaning]
    assert unknown == []


def test_older_records_say_that_settings_were_not_recorded() -> None:
    text = text_of(tree_of(run_named("xeon-2core", "fig25-20261125T040252Z")))
    assert "did not record which settings differ from their defaults" in text


# ---- the timeline ----


def _events(address: str) -> Any:
    kind, _, content = address.partition(",")
    assert kind == "data:application/gzip;base64"
    return json.loads(gzip.decompress(base64.b64decode(content)))


def test_the_download_is_the_trace_of_a_median_round() -> None:
    run = read_timed_run()
    download, reason = make_trace_download(run)
    assert download is not None
    assert reason == ""
    out = io.StringIO()
    document.write(build(run, choose(run, None, None, "median")), out)
    assert _events(download.address) == json.loads(out.getvalue())
    assert "alone (median TOTAL of" in download.description
    # The overhead of one round may differ from that of the run even in sign.
    assert "%" not in download.description
    assert len(base64.b64decode(download.address.partition(",")[2])) == download.nbytes


def test_a_run_without_stamps_says_why_it_has_no_timeline() -> None:
    run = run_named("xeon-2core", "fig25-20261125T040252Z")
    download, reason = make_trace_download(run)
    assert download is None
    assert "too old for a trace" in reason
    assert f"There is no timeline: {reason}" in text_of(tree_of(run))


def test_a_large_trace_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_download, "LARGEST_NBYTES", 100)
    run = read_timed_run()
    download, reason = make_trace_download(run)
    assert download is None
    assert "more than the 100 B that a page carries" in reason


# ---- several runs ----


def test_several_runs_have_contents_and_a_section_each() -> None:
    page, root = page_of_machine("h200-x2"), parse_page_of_machine("h200-x2")
    (nav,) = find_elements(root, "nav")
    links = [element.attrib["href"] for element in find_elements(nav, "a")]
    assert links == [f"#{section.anchor}" for section in page.runs]
    headings = {element.attrib.get("id"): text_of(element) for element in find_elements(root, "h2")}
    assert [headings[section.anchor] for section in page.runs] == [
        section.title for section in page.runs
    ]


def test_contents_say_what_tells_runs_apart(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi")]
    runs = [
        read_run(write_run(tmp_path / "a", arms, rounds=8)),
        read_run(write_run(tmp_path / "b", arms, rounds=8, points=[point_of(input_len=512)])),
        read_run(write_run(tmp_path / "c", [*arms, arm_of("disk")], rounds=8)),
    ]
    page = page_of_runs(runs)
    assert [section.difference for section in page.runs] == [
        "prompt 256, arms mpi@3",
        "prompt 512, arms mpi@3",
        "arms mpi@3 disk@3, prompt 256",
    ]
    (nav,) = find_elements(parse_page(render(page)), "nav")
    assert "prompt 512, arms mpi@3 b" in text_of(nav)


def test_equal_runs_give_equal_pages(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", [NONE, AGAIN, arm_of("disk"), arm_of("mpi")]))
    assert render(page_of_runs([run])) == render(page_of_runs([run]))


def test_what_is_left_out_is_named_on_the_page(tmp_path: Path) -> None:
    page = page_of_runs([read_run(write_run(tmp_path / "r"))])
    text = text_of(parse_page(render(replace(page, left_out=["logs/x: run.json is empty"]))))
    assert "Left out: logs/x: run.json is empty" in text
