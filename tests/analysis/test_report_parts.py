"""The registry of report parts: kinds of notes, and a part that is added to it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from dejavubench.analysis.comparison import change_sentences
from dejavubench.analysis.reports import formats
from dejavubench.analysis.reports.log_parts import LOG_PARTS
from dejavubench.analysis.reports.report import RunReport, make_log_report, make_report
from dejavubench.analysis.reports.report_order import REPORT_PARTS, ROW_CLASSES
from dejavubench.analysis.tables import overhead_part
from dejavubench.analysis.tables.report_part import PartContent, ReportPart, RunData, RunPart
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import NoteKind, read_run
from helpers.cli_calls import call
from helpers.committed_runs import report_of, runs_of
from helpers.paths import RESULTS, ROOT
from helpers.synthetic_runs import write_run

ALL_PARTS: tuple[ReportPart[Any], ...] = (*REPORT_PARTS, *LOG_PARTS)


def collect_kinds() -> set[NoteKind]:
    return {kind for part in ALL_PARTS for kind in part.kinds} | set(change_sentences.KINDS)


def test_parts_and_kinds_of_notes_have_names_of_their_own() -> None:
    part_names = [part.name for part in REPORT_PARTS]
    assert len(set(part_names)) == len(part_names)
    assert len({kind.name for kind in collect_kinds()}) == len(collect_kinds())
    assert set(ROW_CLASSES) <= set(part_names)


def test_the_page_of_notes_names_every_kind_with_its_severity() -> None:
    page = (ROOT / "docs/reference/notes.md").read_text()
    lines = re.findall(r"^\| `([a-z-]+)` \| (info|warning|error) \| \S", page, re.MULTILINE)
    assert sorted(lines) == sorted((kind.name, kind.severity) for kind in collect_kinds())


def wrong_notes(run_report: RunReport) -> list[str]:
    """Return the notes that are not of a kind that their part declares."""
    return [
        note.text
        for part, content in run_report.parts
        for note in content.notes
        if NoteKind(note.kind, note.severity) not in part.kinds
    ]


def test_every_note_on_committed_runs_is_of_a_kind_of_its_part() -> None:
    runs = [run for machine in ("h200", "epyc-bf16-2core") for run in runs_of(machine)]
    reports = [report_of(run) for run in runs]
    assert [text for run_report in reports for text in wrong_notes(run_report)] == []
    kinds_noted = {note.kind for run_report in reports for note in run_report.notes}
    assert {"times", "ceilings", "noise-floor", "chunk-latency", "conditions"} <= kinds_noted
    log = next(path for run in runs for path in sorted(run.path.glob("*none.log")))
    assert wrong_notes(make_log_report(log)) == []


# ---- a part that is added ----

TOY_NOTE = NoteKind("toy", "error")


@dataclass
class ToyRow:
    """Toys: one row for each arm."""

    arm: Annotated[str, "Name of the arm."]
    toy_ms: Annotated[float, "Time of its total overhead."]


def make_toy(data: RunData) -> PartContent:
    parts: list[overhead_part.PartRow] = data.content(overhead_part.OVERHEAD).rows
    rows = [
        ToyRow(row.arm_phase.arm, row.part_ms)
        for row in parts
        if (row.arm_phase.phase, row.part) == ("total", "overhead")
    ]
    table = Block("the toy's table", ["arm", "toy"], 1, [[[row.arm, "7"] for row in rows]])
    return PartContent(["The toy says no."], [table], [TOY_NOTE.note("TOY: broken")], rows)


TOY = RunPart("toy", "the toy's heading", make_toy, (TOY_NOTE,), row=ToyRow)


@pytest.fixture
def toy_report(tmp_path: Path) -> RunReport:
    run = read_run(write_run(tmp_path / "r", rounds=6))
    return make_report(run, (TOY, *REPORT_PARTS))


def test_a_part_is_shown_in_its_place(toy_report: RunReport) -> None:
    lines = formats.make_lines(toy_report, 80)
    texts = [line.text for line in lines]
    assert texts[1:4] == ["the toy's heading", "The toy says no.", ""]
    assert texts[4] == "the toy's table"
    (note,) = [line for line in lines if line.text == "TOY: broken"]
    assert note.style == "red"
    assert lines.index(note) > texts.index("single tokens, over all rounds")
    markdown = formats.as_markdown(toy_report)
    assert "**the toy's heading**\n\n- The toy says no.\n\n**the toy's table**" in markdown
    assert "- TOY: broken" in markdown


def test_a_part_with_rows_is_a_key_of_json(toy_report: RunReport) -> None:
    out = io.StringIO()
    formats.write([toy_report], "json", out)
    (document,) = json.loads(out.getvalue())
    assert [row["arm"] for row in document["toy"]] == ["mpi@3"]
    assert document["notes"][0] == "TOY: broken"
    assert document["notes_by_kind"][0] == {
        "severity": "error",
        "kind": "toy",
        "text": "TOY: broken",
    }
    assert [note["text"] for note in document["notes_by_kind"]] == document["notes"]


def test_parts_share_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RunData(read_run(write_run(tmp_path / "r", rounds=6)))
    assert data.content(overhead_part.OVERHEAD) is data.content(overhead_part.OVERHEAD)
    names_read: list[str] = []
    real_open = Path.open

    def noting_open(path: Path, *args: Any, **options: Any) -> Any:
        names_read.append(path.name)
        return real_open(path, *args, **options)

    folder = next(RESULTS.glob("h200-x2/records/fig25-*"))
    run = read_run(folder)
    monkeypatch.setattr(Path, "open", noting_open)
    make_report(run)
    side_files = [name for name in names_read if name.startswith(("chunks-", "conditions-"))]
    assert len(side_files) > 1
    assert sorted(side_files) == sorted(set(side_files))


# ---- short and long ----


def print_run(*words: object) -> str:
    process_call = call("process", *words, environment={"COLUMNS": "80"})
    assert process_call.exit_code == 0, process_call.output
    return process_call.stdout


def test_process_is_short_and_names_what_it_leaves_out() -> None:
    run = next(RESULTS.glob("h200-x2/records/fig7-*"))
    short_lines = print_run(run).splitlines()
    full = print_run(run, "--long").splitlines()
    assert len(short_lines) < 110
    assert len(full) > 6 * len(short_lines)
    # The path alone is wider than 80 columns, so the command is broken between its words.
    assert " ".join(" ".join(short_lines).split()).endswith(f"dejavubench process {run} --long")
    assert "more tables (streaming, " in "\n".join(short_lines)
    # The tables that both have are the same.
    streaming = full.index("streaming, per iteration")
    assert streaming > 50
    assert short_lines[:streaming] == full[:streaming]


@pytest.mark.parametrize("style", ["csv", "json", "markdown"])
def test_what_is_kept_is_whole_without_long(style: str) -> None:
    run = next(RESULTS.glob("h200-x2/records/fig7-*"))
    assert print_run(run, "--format", style) == print_run(run, "--format", style, "--long")


def test_warnings_of_long_parts_are_in_the_short_report(tmp_path: Path) -> None:
    part = RunPart("toy", "toys", make_toy, (TOY_NOTE,), row=ToyRow, is_long=True)
    run_report = make_report(
        read_run(write_run(tmp_path / "r", rounds=6)), (part,)
    ).without_long_tables()
    lines = [line.text for line in formats.make_lines(run_report, 200)][1:]
    assert lines == [
        "TOY: broken",
        "more tables (toys):",
        f"  dejavubench process {tmp_path / 'r'} --long",
    ]
    assert len(run_report.rows_of_parts["toy"]) == 1
    assert [note.kind for note in run_report.notes] == ["toy"]
