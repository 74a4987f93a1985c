"""Changed, killed and damaged runs: none is a traceback, and none changes a number in silence."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.columns import values_by_column
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.find_runs import GIVE_A_RUN, find
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.records import name_rank_file
from helpers.cli_calls import call
from helpers.damage import (
    ARMS,
    MPI,
    Edit,
    header_edit,
    older_run,
    process_run,
    record_edit,
    rows_of,
)
from helpers.mutations import edit_header, edit_lines, edit_record, mutate, without_seals
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return older_run(tmp_path / "r")


# ---- what is no rank's file ----


def test_copies_of_rank_files_are_left_out_and_named(folder: Path) -> None:
    rows = rows_of(process_run(folder, "--format", "json"))
    for name in ("rank-0000 (copy).jsonl", "rank-00001.jsonl", "rank-x.jsonl", "rank-٣٣٣٣.jsonl"):
        shutil.copy(folder / name_rank_file(0), folder / name)
    process_call = process_run(folder, "--format", "json")
    assert process_call.exit_code == 0
    assert rows_of(process_call) == rows
    notes = json.loads(process_call.stdout)[0]["notes"]
    assert sum("is ignored: a rank's file is named like" in note for note in notes) == 4


@pytest.mark.parametrize("name", ["rank-0001.jsonl", "run.json"])
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe"])
def test_a_record_that_is_no_regular_file_is_refused(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "loop":
        (folder / name).symlink_to(folder / name)
    else:
        os.mkfifo(folder / name)
    process_call = process_run(folder)
    assert process_call.exit_code == 2
    assert str(folder / name) in process_call.stderr
    assert ("Too many levels" if kind == "loop" else "not a regular file") in process_call.stderr


def test_a_note_of_who_stopped_first_may_be_anything(folder: Path) -> None:
    (folder / "first-exit-0000.json").mkdir()
    assert process_run(folder).exit_code == 0


# ---- what was changed ----


@pytest.mark.parametrize(
    "edit",
    [
        record_edit("microbatch", place=MPI, cpu_model_s=0.7),
        record_edit("alone", ms=3.0),
        header_edit(lambda top: top["experiment"].update(target_overhead=0.5)),
        header_edit(lambda top: top["points"][0].update(kv_layout="ft")),
    ],
    ids=["a time", "a stream's time alone", "the experiment", "a point"],
)
def test_a_record_that_was_changed_after_the_run_is_noted(tmp_path: Path, edit: Edit) -> None:
    folder = write_run(tmp_path / "r", ARMS, rounds=4, figure="fig25")
    assert "CHANGED" not in process_run(folder).stdout
    edit(folder)
    text = process_run(folder).stdout
    assert "CHANGED: r" in text
    assert "was changed after the run, so its numbers may not be the measured ones" in " ".join(
        text.split()
    )
    (drawing,), _ = make_drawings(find([folder]).runs)
    assert "CHANGED: r" in drawing.caption


def test_other_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", rounds=2)
    document = json.loads(process_run(folder, "--format", "json").stdout)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert json.loads(process_run(folder, "--format", "json").stdout) == document


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (record_edit("microbatch", place=MPI, drain={"stall_ms": 1e6}), "stall of 1e+06 ms, but"),
        (record_edit("microbatch", place=MPI, token_ms=[0.01] * 5), "ALL-TOKEN of"),
        (
            record_edit("microbatch", place=MPI, prompt={"nbytes": 19243008, "copies": 99}),
            "streamed in 104 copies, but an earlier",
        ),
    ],
    ids=["a long stall", "short tokens", "too many copies"],
)
def test_odd_but_possible_records_are_noted(folder: Path, edit: Edit, words: str) -> None:
    assert words not in " ".join(process_run(folder).stdout.split())
    edit(folder)
    assert words in " ".join(process_run(folder).stdout.split())


def test_the_experiment_of_older_records_is_checked_by_its_hash(folder: Path) -> None:
    edit_header(folder, lambda top: top["experiment"].update(target_overhead=0.5))
    assert (
        "CHANGED: run.json: the experiment does not match its experiment_hash"
        in process_run(folder).stdout
    )


# ---- all that is good is shown ----


def test_good_runs_are_shown_and_bad_ones_named(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for name in ("a", "b", "c"):
        write_run(logs / name, rounds=2, figure="fig25")
    edit_record(logs / "b", 0, "iteration", lambda record: record.update(total_ms=-1.0))
    process_call = process_run(logs, tmp_path / "absent", "--format", "json")
    assert process_call.exit_code == 1
    assert [run["rows"][0]["run"] for run in json.loads(process_call.stdout)] == ["a", "c"]
    bad_line, absent_line = sorted(
        process_call.stderr.splitlines(), key=lambda line: "absent" in line
    )
    assert bad_line.startswith(f"left out: {logs / 'b'}/rank-0000.jsonl:")
    assert absent_line == f"left out: {tmp_path / 'absent'} does not exist. {GIVE_A_RUN}"

    drawn = call("figures", logs, "-o", tmp_path / "out")
    assert drawn.exit_code == 1
    assert {Path(line).stem for line in drawn.stdout.splitlines()} == {
        "fig25-gpt2-a",
        "fig25-gpt2-c",
    }
    assert f"left out: {logs / 'b'}/rank-0000.jsonl:" in drawn.stderr


def test_files_of_a_run_are_answered_with_its_folder(folder: Path) -> None:
    for name in ("run.json", name_rank_file(0)):
        assert (
            f"{folder / name} is one of the files of a run. Give the run's folder instead: {folder}"
            in process_run(folder / name).stderr
        )


def test_killed_runs_are_shown_wherever_they_ended(tmp_path: Path) -> None:
    """Cut anywhere, with the sink's file cut at the same place, no rule is broken."""
    undamaged = write_run(
        tmp_path / "whole", rounds=1, warmup=1, points=[point_of(0), point_of(1, input_len=64)]
    )
    text, of_sink = (
        (undamaged / name_rank_file(rank)).read_text().splitlines(keepends=True) for rank in (0, 1)
    )
    iterations = 0
    for cut in range(1, len(text)):
        iterations += '"kind":"iteration"' in text[cut - 1]
        (undamaged / name_rank_file(0)).write_text("".join(text[:cut]) + text[cut][:20])
        (undamaged / name_rank_file(1)).write_text("".join(of_sink[: 1 + 2 * iterations]))
        runs_read = find([undamaged])
        assert runs_read.bad == []
        assert any("INCOMPLETE" in note for note in make_report(runs_read.runs[0]).note_texts)


def test_an_arm_that_went_no_further_does_not_spoil_the_others(folder: Path) -> None:
    def drop_the_end_of_disk(text: list[str]) -> list[str]:
        remaining_lines = [
            line for line in text[:-1] if not re.search('"disk@3","iteration":[45]', line)
        ]
        assert len(text) - len(remaining_lines) == 1 + 2 * 4
        reason = {"kind": "skipped", "point": "p000", "arm": "disk@3", "reason": "no space left"}
        return [*remaining_lines, json.dumps(reason) + "\n", text[-1]]

    edit_lines(folder, 0, drop_the_end_of_disk)
    process_call = process_run(folder, "--format", "json")
    assert process_call.exit_code == 0, process_call.stderr
    assert [row["status"] for row in rows_of(process_call)] == ["ok", "ok", "ok", "ok", "SKIPPED"]


FAILED = {
    "kind": "arm-failure",
    "point": "p000",
    "arm": "disk@3",
    "iteration": 5,
    "phase": "tokens",
    "rank": 0,
}
NO_ROOM = FAILED | {"error": "no space left"}


def drop_the_rest_of_disk(*added: dict[str, Any]) -> Callable[[list[str]], list[str]]:
    """The disk's arm ends before iteration 5, the last one; further records come before the end."""

    def change(text: list[str]) -> list[str]:
        remaining_lines = [
            line for line in text[:-1] if not re.search('"disk@3","iteration":5', line)
        ]
        return [*remaining_lines, *(json.dumps(record) + "\n" for record in added), text[-1]]

    return change


def test_an_arm_whose_device_failed_does_not_spoil_the_others(folder: Path) -> None:
    edit_lines(folder, 0, drop_the_rest_of_disk(NO_ROOM))
    process_call = process_run(folder, "--format", "json")
    assert process_call.exit_code == 0, process_call.stderr
    assert [row["status"] for row in rows_of(process_call)] == ["ok", "ok", "ok", "ok", "FAILED"]
    assert rows_of(process_call)[4]["reason"] == "iteration 5, phase tokens, rank 0: no space left"


@pytest.mark.parametrize(
    ("added", "rank", "message"),
    [
        ([NO_ROOM | {"arm": "host@3"}], 0, "arm host@3, which does not stream to disk"),
        ([NO_ROOM, NO_ROOM], 0, "a second failure of arm disk@3 at p000"),
        (
            [NO_ROOM | {"iteration": 3}],
            0,
            "iteration 4 of p000 disk@3 was measured after the arm had failed",
        ),
        (
            [NO_ROOM | {"iteration": -1}],
            0,
            "arm-failure.iteration: Input should be greater than or equal to 0",
        ),
        ([NO_ROOM], 1, "a record of kind arm-failure, which rank 1 (a sink) does not write"),
    ],
)
def test_a_failure_of_an_arm_that_cannot_be_is_refused(
    folder: Path, added: list[dict[str, Any]], rank: int, message: str
) -> None:
    edit_lines(folder, 0, drop_the_rest_of_disk(*([] if rank else added)))
    if rank:
        edit_lines(
            folder,
            rank,
            lambda text: [*text[:-1], *(json.dumps(record) + "\n" for record in added), text[-1]],
        )
    process_call = process_run(folder)
    assert process_call.exit_code == 2, process_call.output
    assert message in process_call.stderr


# ---- anything at all ----


@pytest.mark.parametrize("sealed", [True, False])
def test_no_damage_is_a_traceback_and_none_changes_a_number_in_silence(
    tmp_path: Path, sealed: bool
) -> None:
    undamaged = write_run(
        tmp_path / "whole", [NONE, AGAIN, arm_of("mpi"), arm_of("disk")], rounds=2
    )
    undamaged = undamaged if sealed else without_seals(undamaged)
    (run,) = find([undamaged]).runs
    undamaged_report = make_report(run)
    folder = tmp_path / "mutant"
    refused = noted = 0
    for seed in range(100):
        shutil.copytree(undamaged, folder)
        change = mutate(folder, random.Random(seed))
        runs_read = find([folder])
        assert len(runs_read.runs) + len(runs_read.bad) == 1, change
        for run in runs_read.runs:
            mutant_report = make_report(run)
            make_drawings([run])
            noted += mutant_report.notes != undamaged_report.notes
            if mutant_report.notes == undamaged_report.notes:
                left_out = () if sealed else RECORDED_ONCE
                assert read_numbers(mutant_report.rows, left_out) == read_numbers(
                    undamaged_report.rows, left_out
                ), (seed, change)
        refused += len(runs_read.bad)
        shutil.rmtree(folder)
    assert refused > 50
    assert noted > (10 if sealed else 0)


RECORDED_ONCE = (
    "model",
    "kv_layout",
    "stall_ms",
    "cpu_model_s",
    "cpu_helper_s",
    "cpu_sink_s",
    "alone_ms",
    "alone_gb_per_s",
    "ceiling_share_pct",
    "hidden_pct",
    "prompt_tflop_per_s",
    "token_gb_per_s",
)
"""Columns of facts that older records hold once, so that no rule can tell a change."""


def read_numbers(rows: list[Row], left_out: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            key: value
            for key, value in values_by_column(row).items()
            if key not in ("run", *left_out)
        }
        for row in rows
    ]
