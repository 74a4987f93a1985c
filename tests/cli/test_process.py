"""`dejavubench process`: what it reads, what it prints, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console

from dejavubench.analysis.breakdown.overhead_parts import PHASES
from dejavubench.analysis.columns import names_of
from dejavubench.analysis.reports.formats import show
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.records import Verification, read_run
from helpers.cli_calls import call
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run
from helpers.text_logs import original_log


def refusal_of(result: Result) -> str:
    """The one message of a refused call."""
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_table_shows_times_overheads_and_notes(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("disk"), arm_of("mpi")]
    experiment = {"target_overhead": 0.02}
    folder = write_run(
        tmp_path / "r", arms, factors={"mpi@3": 1.1}, experiment=experiment, rounds=6
    )
    process_call = call("process", folder, "--long")
    assert process_call.exit_code == 0, process_call.output
    for word in (
        "prompt ms",
        "token ms",
        "total ms",
        "overhead %",
        "missed (≤ 2 %)",
        "fdatasync",
        "same host",
    ):
        assert word in process_call.stdout
    assert "noise: two identical baselines (none, none#2)" in process_call.stdout
    assert "Only 6 rounds: intervals are wide" in process_call.stdout
    assert "ceilings: mpi-windowed 10 GB/s" in process_call.stdout
    assert "\x1b[" not in process_call.stdout
    assert "…" not in process_call.stdout


def test_csv_and_json_hold_every_column(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", points=[point_of(0), point_of(1, input_len=512)])
    table = list(csv.DictReader(io.StringIO(call("process", folder, "--format", "csv").stdout)))
    first_rows = [(row["point"], row["arm"]) for row in table[:4]]
    assert first_rows == [
        ("p000", "none"),
        ("p000", "none#2"),
        ("p000", "mpi@3"),
        ("p001", "none"),
    ]
    assert tuple(table[0]) == names_of(Row)
    (document,) = json.loads(call("process", folder, "--format", "json").stdout)
    totals_in_json = [row["total_ms"] for row in document["rows"]]
    totals_in_csv = [float(row["total_ms"]) for row in table]
    assert totals_in_json == pytest.approx(totals_in_csv)
    assert document["header"]["run_id"] == "0123456789abcdef"


def test_json_of_one_round_is_strict(tmp_path: Path) -> None:
    text = call("process", write_run(tmp_path / "r", rounds=1), "--format", "json").stdout
    assert "NaN" not in text
    row = json.loads(text)[0]["rows"][2]
    assert row["total_ms"] > 0
    assert row["overhead_low_pct"] is None


def test_process_prints_markdown_tables(tmp_path: Path) -> None:
    text = call("process", write_run(tmp_path / "r"), "--format", "markdown").stdout
    assert call("process", tmp_path / "r", "--format", "md").stdout == text
    assert "| arm | prompt ms | token ms | total ms | rounds | overhead % | verified |" in text
    assert (
        len(
            {
                line.count(" | ")
                for line in text.splitlines()
                if line.startswith("| mpi@3") and "yes" in line
            }
        )
        == 1
    )


def test_folders_of_runs_and_text_logs_go_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "logs" / "quick" / name, rounds=2)
    log = original_log(tmp_path / "mpi.log")
    process_call = call(
        "process", tmp_path / "logs", log, tmp_path / "logs" / "quick" / "a", "--format", "csv"
    )
    rows = list(csv.DictReader(io.StringIO(process_call.stdout)))
    assert [row["run"] for row in rows] == ["a"] * 3 + ["b"] * 3 + [str(log)] * 2
    assert [row["arm"] for row in rows[-2:]] == ["mpi", "mpi"]
    assert (
        float(rows[-2]["total_ms"]),
        float(rows[-2]["prompt_ms"]),
        float(rows[-2]["token_ms"]),
    ) == (3500, 11.5, 1.5)
    assert rows[-2]["samples"] == "2"
    assert rows[-1]["statistic"].startswith("median over iterations of rank 1")
    messages = process_call.stderr.splitlines()
    assert sum(" · a · " in line for line in messages) == 1
    assert (
        sum(line.startswith("  Only 2 rounds: a 95 % interval needs 6") for line in messages) >= 2
    )


def test_failed_and_skipped_arms_stand_in_the_table_without_times(tmp_path: Path) -> None:
    failed_check = Verification(
        point="p000", arm="mpi@3", iteration=3, ok=False, nbytes=9, where="layer 1, V, request 0"
    )
    points = [point_of(0), point_of(1, skipped="needs 99 GB")]
    text = call("process", write_run(tmp_path / "r", points=points, bad=failed_check)).stdout
    assert "FAILED: iteration 3: layer 1, V, request 0 (p000 mpi@3)" in text
    assert "SKIPPED: needs 99 GB (p001)" in text
    assert "spread, drain" not in text  # no streaming arm is left to tell of


def test_a_killed_run_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    process_call = call("process", write_run(tmp_path / "r", rounds=3, ended=False))
    assert process_call.exit_code == 0
    assert "INCOMPLETE: rank 0 (source on node-a) stopped in phase tokens" in process_call.stdout
    assert "mpi@3" in process_call.stdout


def test_output_is_never_overwritten_silently(tmp_path: Path) -> None:
    folder, target = write_run(tmp_path / "r"), tmp_path / "table.md"
    assert call("process", folder, "-o", target, "--format", "markdown").exit_code == 0
    assert "mpi@3" in target.read_text()
    target.write_text("mine")
    assert "exists. Use --force to overwrite it" in refusal_of(
        call("process", folder, "-o", target)
    )
    assert target.read_text() == "mine"
    assert call("process", folder, "-o", target, "--force").exit_code == 0
    assert "mpi@3" in target.read_text()
    assert "absent does not exist" in refusal_of(
        call("process", folder, "-o", tmp_path / "absent" / "table.txt")
    )


def test_bad_input_of_process_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refusal_of(call("process", tmp_path / "absent"))
    assert "holds no run" in refusal_of(call("process", tmp_path / "empty"))
    (tmp_path / "text").write_text("hello\n")
    assert "holds no line of the form" in refusal_of(call("process", tmp_path / "text"))
    assert "too short: 2 TOTAL lines" in refusal_of(
        call("process", original_log(tmp_path / "short", iterations=2))
    )


def test_a_corrupt_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    file = folder / "rank-0000.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:6], '{"kind": "microbatch", "point"\n', *lines[6:]]))
    assert f"{file}:7: " in refusal_of(call("process", folder))


def test_another_schema_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", schema_version=2)
    assert "schema version 2; this program reads 1" in refusal_of(call("process", folder))


def test_summary_goes_to_any_rich_console(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), width=120)
    show([make_report(read_run(write_run(tmp_path / "r", environment={})))], screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "mpi@3" in text
    assert "96 % of" in text


def test_a_narrow_table_goes_on_below_by_whole_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    points = [point_of(0), point_of(1, kv_layout="ft")]
    lines = call("process", write_run(tmp_path / "r", points=points), "--long").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if line.startswith("point  layout  arm ")]
    assert "token overhead %" in "".join(headings)
    by_phase = [heading for heading in headings if "phase" in heading]
    of_arms = [
        heading for heading in headings if "TFLOP/s" not in heading and heading not in by_phase
    ]
    lines_of_arm = len(of_arms) + len(PHASES) * len(by_phase)
    assert sum(line.startswith("p001   ft      mpi@3") for line in lines) == lines_of_arm > 6


@pytest.mark.parametrize("command", ["process", "figures"])
def test_help_needs_neither_pandas_nor_matplotlib(command: str) -> None:
    code = (
        f"import sys; from dejavubench.cli.{command} import {command};"
        f"{command}(['--help'], standalone_mode=False);"
        "print(sorted({'pandas', 'matplotlib', 'torch', 'mpi4py', 'numpy'} & set(sys.modules)))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "PATH" in completed.stdout
    assert completed.stdout.splitlines()[-1] == "[]"
