"""Damage beside the ranks' own files: the run is shown, and the damaged file is named.

CPU, fp32, 1 thread; the records of a committed run, no model runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dejavubench.analysis.integrity import read_checked
from dejavubench.analysis.reports.report import make_report
from dejavubench.records import name_rank_file
from dejavubench.records.notes import DAMAGED
from helpers.cli_calls import call
from helpers.mutations import edit_header
from helpers.paths import RESULTS

RUN = RESULTS / "epyc-bf16-2core" / "records" / "fi4-20261130T112248Z"
CHUNKS, CONDITIONS = "chunks-0000.jsonl", "conditions-0000.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def second_line(*, begin: bytes) -> Callable[[Path], None]:
    """Replace the first byte of a file's second line."""

    def damage(path: Path) -> None:
        first_line, line_to_damage, *later_lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join([first_line, begin + line_to_damage[1:], *later_lines]))

    return damage


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (second_line(begin=b"}"), ":2: Invalid JSON"),
    (second_line(begin=b"\xff"), ":2: Invalid JSON"),
    (second_line(begin=b"NaN{"), ":2: Invalid JSON"),
    (replace_by_folder, " is not a regular file"),
]


@pytest.mark.parametrize("name", [CHUNKS, CONDITIONS])
@pytest.mark.parametrize(("damage", "why"), DAMAGES)
def test_process_shows_the_run_and_names_the_damaged_file(
    run: Path, name: str, damage: Callable[[Path], None], why: str
) -> None:
    undamaged_call = call("process", run, "--format", "json")
    damage(run / name)
    process_call = call("process", run, "--format", "json")
    assert process_call.exit_code == 1
    assert process_call.stderr.startswith(f"left out: {run / name}{why}")
    undamaged_report, damaged_report = (
        json.loads(output.stdout)[0] for output in (undamaged_call, process_call)
    )
    times = [
        [row["total_ms"] for row in document["rows"]]
        for document in (undamaged_report, damaged_report)
    ]
    assert times[0] == times[1]
    errors = [note for note in make_report(read_checked(run)).notes if note.severity == "error"]
    assert [note.kind for note in errors] == [DAMAGED.name]
    assert f"{run / name}{why}" in errors[0].text


@pytest.mark.parametrize("name", [CHUNKS, CONDITIONS])
def test_compare_and_figures_go_on_and_name_the_damaged_file(
    run: Path, tmp_path: Path, name: str
) -> None:
    second_line(begin=b"}")(run / name)
    comparison = call("compare", RUN, run, "--format", "csv")
    assert comparison.exit_code == 1
    assert f"DAMAGED: {run / name}:2: " in comparison.stderr
    assert "mpi@3" in comparison.stdout
    figures = call("figures", run, "-o", tmp_path / "drawn", "--figure", "appendix_a")
    assert figures.exit_code == 1
    assert figures.stderr.startswith(f"left out: {run / name}:2: ")
    assert list((tmp_path / "drawn").glob("*.png"))


def test_a_trace_needs_whole_chunk_files_but_no_conditions(run: Path, tmp_path: Path) -> None:
    second_line(begin=b"}")(run / CONDITIONS)
    trace = call("trace", run, "-o", tmp_path / "a.json")
    assert trace.exit_code == 1
    assert f"left out: {run / CONDITIONS}:2: " in trace.stderr
    second_line(begin=b"}")(run / CHUNKS)
    trace_call = call("trace", run, "-o", tmp_path / "b.json")
    assert trace_call.exit_code == 2
    assert f"times of chunks are damaged: {run / CHUNKS}:2: " in trace_call.stderr
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (Path.unlink, f"{CHUNKS} is missing"),
        (lambda path: path.write_bytes(b""), f"{CHUNKS} is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), f"{CHUNKS} has no times of this"),
    ],
    ids=["removed", "emptied", "cut off"],
)
def test_a_trace_blames_the_file_that_lacks_the_times(
    run: Path, tmp_path: Path, state: Callable[[Path], object], why: str
) -> None:
    state(run / CHUNKS)
    trace_call = call("trace", run, "-o", tmp_path / "a.json")
    assert trace_call.exit_code == 0
    assert f"note: {why}" in trace_call.stderr
    assert "--no-chunk-times" not in trace_call.stderr


def test_a_trace_blames_the_flag_only_where_the_run_had_it(run: Path, tmp_path: Path) -> None:
    (run / CHUNKS).unlink()
    edit_header(run, lambda top: top["experiment"].update(chunk_times=False))
    trace_call = call("trace", run, "-o", tmp_path / "a.json")
    assert "note: the run recorded no times of chunks (--no-chunk-times)" in trace_call.stderr
    edit_header(run, lambda top: top["experiment"].pop("chunk_times"))
    trace_call = call("trace", run, "-o", tmp_path / "b.json")
    assert (
        "note: the program that wrote the run is too old for times of chunks" in trace_call.stderr
    )


def test_a_lost_rank_file_is_named_on_stderr(run: Path) -> None:
    (run / name_rank_file(0)).unlink()
    process_call = call("process", run)
    assert process_call.exit_code == 1
    assert f"left out: {run}: rank 0 has no file" in process_call.stderr
    assert "Brackets hold" not in process_call.stdout


def test_a_rank_of_a_killed_run_may_have_no_file(run: Path) -> None:
    (run / name_rank_file(0)).unlink()
    path = run / name_rank_file(1)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert call("process", run).exit_code == 0


@pytest.mark.parametrize(
    ("against", "why"),
    [
        ("", "--against: it is empty. Give shipped"),
        ("/dev/null", "--against: /dev/null is neither a folder of runs nor a table's file"),
    ],
)
def test_a_yardstick_must_hold_machines(run: Path, against: str, why: str) -> None:
    process_call = call("process", run, "--against", against)
    assert process_call.exit_code == 2
    assert process_call.stderr.startswith(f"Error: {why}")
    assert len(process_call.stderr.splitlines()) == 1
