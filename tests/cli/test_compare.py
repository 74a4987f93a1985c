"""The command ``compare``: its exit statuses, formats, files and picture, on made-up runs."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle

from dejavubench.analysis.columns import columns_of
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.figures import side_by_side
from dejavubench.records import Verification
from helpers.cli_calls import call, usage_error
from helpers.operands import DISK, HOST, MPI, compare_runs, write_operand
from helpers.paths import DOCS, ROOT
from helpers.synthetic_runs import AGAIN, NONE, point_of


def test_the_exit_status_says_what_the_gate_decided(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1)
    run_b = write_operand(tmp_path / "b", 2, factors={"mpi@3": 1.02})
    limits = {"0": 4, "2%": 3, "5%": 0}
    assert {
        limit: call("compare", run_a, run_b, "--fail-above", limit).exit_code for limit in limits
    } == limits
    assert call("compare", run_a, run_b).exit_code == 0
    assert call("compare", run_a, run_b, "--fail-above", "-1%").exit_code == 2


def test_failed_jobs_arms_and_records_end_with_status_1_whatever_the_gate_says(
    tmp_path: Path,
) -> None:
    good_run = write_operand(tmp_path / "good", 1)
    cut_run = write_operand(tmp_path / "cut", 2, ended=False)
    place: dict[str, Any] = {"point": "p000", "arm": "mpi@3", "iteration": 5}
    failed_run = write_operand(tmp_path / "wrong", 3, bad=Verification(ok=False, nbytes=1, **place))
    for refused_run, words in (
        (cut_run, "INCOMPLETE"),
        (failed_run, "FAILED: point p000, arm mpi@3"),
    ):
        compare_call = call("compare", good_run, refused_run, "--fail-above", "50%")
        assert compare_call.exit_code == 1
        assert words in compare_call.stdout
        assert call("compare", refused_run, good_run).exit_code == 1
    damaged_run = write_operand(tmp_path / "damaged", 4)
    (damaged_run / "rank-0000.jsonl").write_text("{}\n")
    compare_call = call("compare", good_run, damaged_run)
    assert (compare_call.exit_code, compare_call.stderr.count("\n")) == (1, 1)


def test_every_format_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_a = write_operand(tmp_path / "a", 1)
    run_b = write_operand(tmp_path / "b", 2, factors={"mpi@3": 1.02})
    table = call("compare", run_a, run_b, "--fail-above", "0")
    assert max(map(len, table.stdout.splitlines())) <= 80
    document = json.loads(
        call("compare", run_a, run_b, "--fail-above", "0", "--format", "json").stdout
    )
    assert (document["verdict"], document["exit_status"]) == ("regression", 4)
    assert document["result"].startswith("REGRESSION: slower by more than 0 %: mpi@3 +")
    column_names = [column.name for column in columns_of(ComparisonRow)]
    assert list(document["rows"][1]) == column_names
    rows = list(
        csv.DictReader(io.StringIO(call("compare", run_a, run_b, "--format", "csv").stdout))
    )
    assert list(rows[0]) == column_names
    assert [row["arm"] for row in rows] == ["none", "mpi@3"]
    markdown = call("compare", run_a, run_b, "--fail-above", "0", "--format", "md").stdout
    assert document["result"] in markdown
    change = document["rows"][1]["overhead_change_pct"]
    assert f"+{change:.2f}" in table.stdout
    assert f"+{change:.2f}" in markdown


def test_markdown_folds_facts_and_shows_warnings(tmp_path: Path) -> None:
    """A reader of a pull request sees the result, the judged change in bold, and the warnings."""
    run_a, run_b = write_operand(tmp_path / "a", 1), write_operand(tmp_path / "b", 2, noise=0.1)
    lines = call("compare", run_a, run_b, "--fail-above", "0", "--format", "md").stdout.splitlines()
    assert lines[2].startswith("**UNRESOLVED: may be slower by more than 0 %: mpi@3 ")
    assert "| **overhead change %** | verdict on overhead |" in lines[4]
    begin, end = lines.index("<details>"), lines.index("</details>")
    assert any(line.startswith("- B: noise: two identical") for line in lines[:begin])
    folded_texts = "\n".join(lines[begin:end])
    assert "A change above 0 means that B is slower" in folded_texts
    assert "One run each, at different times." in folded_texts
    assert lines[begin + 2] == lines[end - 1] == "", "markdown within needs empty lines around it"
    arms = f"{run_a}:none", f"{run_a}:mpi@3"
    pair = call("compare", *arms, "--fail-above", "0", "--format", "md").stdout
    assert "| **time change %** | verdict on time |" in pair
    assert "The row none" not in pair, "it has no such row"


def test_a_file_gets_the_format_of_its_suffix_and_the_result_goes_to_stderr(
    tmp_path: Path,
) -> None:
    run_a = write_operand(tmp_path / "a", 1)
    run_b = write_operand(tmp_path / "b", 2, factors={"mpi@3": 1.02})
    compare_call = call("compare", run_a, run_b, "--fail-above", "0", "-o", tmp_path / "change.md")
    assert compare_call.exit_code == 4
    assert compare_call.stdout == ""
    assert compare_call.stderr.startswith("REGRESSION: ")
    assert (tmp_path / "change.md").read_text().startswith("## B against A: time of the whole")
    assert "--force" in usage_error(call("compare", run_a, run_b, "-o", tmp_path / "change.md"))


def test_a_picture_shows_both_operands_the_limit_and_every_change(tmp_path: Path) -> None:
    points = [point_of(), point_of(1, input_len=128)]
    run_a = write_operand(tmp_path / "a", 1, points=points)
    run_b = write_operand(tmp_path / "b", 2, points=points, factors={"mpi@3": 1.02})
    picture = tmp_path / "change.svg"
    compare_call = call("compare", run_a, run_b, "--fail-above", "1%", "--figure", picture)
    assert (compare_call.exit_code, picture.read_bytes()[:5]) == (4, b"<?xml")
    drawing = side_by_side.make_drawing(compare_runs(run_a, run_b, limit=0.01))
    assert drawing.caption.startswith("REGRESSION: slower by more than 1 %: p000 mpi@3 +")
    panels = drawing.figure.draw(drawing.frame, drawing.destinations).axes
    assert [panel.get_title(loc="left") for panel in panels[:2]] == ["p000", "p001"]
    labels = panels[2].get_legend_handles_labels()[1]
    assert labels == ["limit 1 %", "time", "overhead"]
    heights = [bar.get_height() for bar in panels[0].patches if isinstance(bar, Rectangle)]
    rows = compare_runs(run_a, run_b).rows[:2]
    assert heights == [*(row.time.a_ms for row in rows), *(row.time.b_ms for row in rows)]
    assert "--force" in usage_error(call("compare", run_a, run_b, "--figure", picture))
    assert ".png, .pdf, .svg" in usage_error(
        call("compare", run_a, run_b, "--figure", tmp_path / "change.gif")
    )


def test_the_guide_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    guide = (DOCS / "guides" / "compare.md").read_text()
    typed, printed = re.findall(r"((?:    .*\n)+)\n```\n(.*?)\n…\n```", guide, re.DOTALL)[0]
    words = typed.replace("\\\n", " ").split()
    operands = [ROOT / word for word in words[2:4]]
    assert call("compare", *operands, *words[4:]).stdout.startswith(printed)


def test_without_a_gate_the_arms_are_sorted_into_slower_faster_and_unknown(tmp_path: Path) -> None:
    arms = (NONE, AGAIN, MPI, DISK, HOST)
    run_a = write_operand(tmp_path / "a", 1, arms=arms)
    run_b = write_operand(tmp_path / "b", 2, arms=arms, factors={"mpi@3": 1.02, "disk@3": 0.97})
    printed = call("compare", run_a, run_b).stdout
    assert "Slower: mpi@3 +" in printed
    assert "Faster: disk@3 −" in printed
    assert "No change shown: host@3 " in printed


def test_too_few_rounds_give_a_range_and_no_result(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1, rounds=3)
    run_b = write_operand(tmp_path / "b", 2, rounds=3, factors={"mpi@3": 2.0})
    shown = call("compare", run_a, run_b, "--format", "markdown").stdout
    assert "**Unresolved, too few rounds or pairs: mpi@3 +" in shown
    assert " % (range +" in shown
    assert "In rows with fewer than 6 rounds, brackets hold a range, no interval." in shown
    assert "No change shown" not in shown
    assert "95 %" not in shown
