"""What a report says of a run beside its numbers: settings, precision, how the run ended."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.analysis.reports import formats
from dejavubench.analysis.reports.report import RunReport, make_report
from dejavubench.config.experiment import OPTIONS, Experiment
from dejavubench.records import ArmFailure, PhaseMark, RankFailure, read_run, to_line
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run


def text_lines(run_report: RunReport, width: int = 80) -> list[str]:
    return [line.text for line in formats.make_lines(run_report, width)]


def text_in(run_report: RunReport, style: str) -> str:
    out = io.StringIO()
    formats.write([run_report], style, out)
    return out.getvalue()


# ---- settings ----


def test_options_that_differ_from_their_defaults_are_settings_as_flags() -> None:
    options: dict[str, Any] = {
        "model": "gpt2",
        "threads": 2,
        "verify": False,
        "keep": True,
        "precision": "0.5%",
        "max_time": "2m",
        "temperature": 0.7,
        "stream_dir": "/tmp/streams",
        "peer": "a:1,b:2",
    }
    assert Experiment.model_validate(options).settings() == [
        *("--temperature 0.7", "--peer a:1,b:2", "--stream-dir /tmp/streams", "--keep"),
        *("--precision 0.5%", "--max-time 120s", "--no-verify", "--threads 2"),
    ]
    assert Experiment().settings() == []


def test_what_is_stated_elsewhere_is_a_size_an_arm_or_in_the_title() -> None:
    stated_elsewhere = {key for key, info in OPTIONS.items() if info.stated}
    assert stated_elsewhere == {
        *("name", "figure", "note", "resume", "log_dir", "device"),
        *("model", "inference_data_type", "kv_layout", "ubatch_size", "input_len", "output_len"),
        *("tensor_para_size", "pipeline_para_size", "sink_tensor_para_size"),
        *("sink_pipeline_para_size", "sink_ubatch_size", "handoff", "handoff_tokens"),
        *("streaming", "level", "durability", "compare", "swap", "rounds"),
    }


def test_settings_are_in_header_caption_and_csv(tmp_path: Path) -> None:
    settings = ["--seed 3", "--threads 2"]
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    run = read_run(write_run(tmp_path / "r", arms, settings=settings, figure="fig25"))
    run_report = make_report(run)
    assert text_lines(run_report)[1] == "settings: --seed 3 --threads 2"
    assert "Settings: `--seed 3 --threads 2`" in text_in(run_report, "markdown")
    rows = list(csv.DictReader(io.StringIO(text_in(run_report, "csv"))))
    assert [row["settings"] for row in rows] == ["--seed 3 --threads 2"] * 4
    assert json.loads(text_in(run_report, "json"))[0]["header"]["settings"] == settings
    ((drawing,), _) = make_drawings([run])
    assert " Settings: --seed 3 --threads 2. " in drawing.caption
    assert "1 thread" not in drawing.caption  # the settings tell it


def test_runs_of_one_figure_that_differ_in_settings_say_so(tmp_path: Path) -> None:
    points = [[point_of(0)], [point_of(0, input_len=512)]]
    runs = [
        read_run(write_run(tmp_path / name, points=point, settings=flags, figure="fig25"))
        for name, point, flags in zip("ab", points, (["--threads 2"], []), strict=True)
    ]
    ((drawing, *_), _) = make_drawings(runs, is_joined=True)
    assert "Settings: a: --threads 2; b: none." in drawing.caption


def test_an_older_record_names_no_settings(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_run(tmp_path / "r")))
    assert not any(line.startswith("settings") for line in text_lines(run_report))
    assert {row.settings for row in run_report.rows} == {None}
    assert run_report.header is not None
    assert "settings" not in run_report.header


# ---- precision ----

PRECISION_ASKED = {"target_overhead": None, "precision": 0.01, "max_time": 60.0}


def precision_of(run_report: RunReport) -> list[str]:
    return [note for note in run_report.note_texts if note.startswith("precision")]


def test_a_missed_precision_is_reported(tmp_path: Path) -> None:
    noisy_run = write_run(tmp_path / "loud", rounds=15, noise=0.05, experiment=PRECISION_ASKED)
    (note,) = precision_of(make_report(read_run(noisy_run)))
    width = float(note.split("±")[1].split(" %")[0])
    assert 1 < width < 10
    assert note == (
        f"precision not reached: ±{width:g} % after 15 rounds, stopped by --max-time 60 s; "
        "±1 % was asked for"
    )
    quiet_run = write_run(tmp_path / "quiet", rounds=15, noise=0.0005, experiment=PRECISION_ASKED)
    assert precision_of(make_report(read_run(quiet_run))) == []
    unasked_run = write_run(tmp_path / "unasked", rounds=15, noise=0.05)
    assert precision_of(make_report(read_run(unasked_run))) == []


def test_precision_is_reported_by_point_and_without_failed_arms(tmp_path: Path) -> None:
    points = [point_of(0), point_of(1, input_len=512)]
    short_run = write_run(
        tmp_path / "few", points=points, rounds=4, experiment=PRECISION_ASKED, ended=False
    )
    assert precision_of(make_report(read_run(short_run))) == [
        "precision not reached: p000 no interval after 4 rounds, p001 no interval after 4 rounds, "
        "when the run was cut; ±1 % was asked for"
    ]
    arms = [NONE, AGAIN, arm_of("disk")]
    factors = {"disk@3": 1.0}
    folder = write_run(
        tmp_path / "f", arms, noise=0.0005, factors=factors, experiment=PRECISION_ASKED
    )
    lines = (folder / "rank-0000.jsonl").read_text().splitlines(keepends=True)
    measured = [line for line in lines if "disk@3" not in line or '"round":null' in line]
    failure = ArmFailure(
        point="p000", arm="disk@3", iteration=2, phase="tokens", rank=0, error="full"
    )
    (folder / "rank-0000.jsonl").write_text("".join([*measured[:-1], to_line(failure)]))
    assert precision_of(make_report(read_run(folder))) == []


# ---- a run that Ctrl-C has ended ----


@pytest.fixture
def interrupted(tmp_path: Path) -> RunReport:
    """Nine points, of which three were measured and the fourth was begun."""
    points = [point_of(number, input_len=32 * (number + 1)) for number in range(9)]
    folder = write_run(tmp_path / "r", points=points, ended=False, rounds=6)
    reached = {f"p{number:03d}" for number in range(4)}
    for file in sorted(folder.glob("rank-*.jsonl")):
        lines = file.read_text().splitlines(keepends=True)
        lines_of_reached_points = [
            line
            for line in lines
            if '"point":null' in line or json.loads(line).get("point", "p000") in reached
        ]
        mark = PhaseMark(phase="prepare", point="p003", arm="none", iteration=8)
        failure = RankFailure(phase="prepare", error="KeyboardInterrupt: ")
        file.write_text("".join([*lines_of_reached_points, to_line(mark), to_line(failure)]))
    return make_report(read_run(folder))


def test_an_interrupted_run_says_so_once(interrupted: RunReport) -> None:
    assert interrupted.note_texts[0] == (
        "INTERRUPTED: rank 0 (source on node-a), in phase prepare, point p003, arm none, "
        "iteration 8"
    )
    assert not any(
        word in note
        for note in interrupted.note_texts[1:]
        for word in ("INTERRUPTED", "INCOMPLETE")
    )


def test_points_that_were_not_reached_are_one_line(interrupted: RunReport) -> None:
    lines = text_lines(interrupted)
    assert sum("p004" in line for line in lines) == 1
    assert "no rounds: the run ended before a measured round of this arm (p004 to p008)" in lines
    assert {row.point for row in interrupted.rows} == {f"p{n:03d}" for n in range(9)}
    assert sum(line.startswith("p003") for line in lines) > 3


def test_a_run_without_any_round_has_no_table(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_run(tmp_path / "r", rounds=0, ended=False)))
    assert run_report.blocks == []
    assert (
        "no rounds: the run ended before a measured round of this arm (p000)"
        in run_report.note_texts
    )


def test_a_report_without_a_table_explains_no_times(tmp_path: Path) -> None:
    def note_texts(folder: Path) -> list[str]:
        return make_report(read_run(folder)).note_texts

    times = "A time is that of the slowest source"
    assert any(text.startswith(times) for text in note_texts(write_run(tmp_path / "whole")))
    assert not any(
        text.startswith(times) for text in note_texts(write_run(tmp_path / "cut", rounds=0))
    )


def test_the_second_baseline_shows_the_noise_of_tokens(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_run(tmp_path / "r", noise=0.02)))
    (block,) = (block for block in run_report.blocks if "token overhead %" in block.columns)
    place = block.columns.index("token overhead %")
    cells = {row[block.columns.index("arm")]: row[place] for group in block.groups for row in group}
    assert cells["none"] == "–"
    assert cells["none#2"].startswith("noise ")
    (row,) = (row for row in run_report.rows if row.arm == "none#2")
    assert row.overhead.token_noise_floor_pct is not None
    assert cells["none#2"].split()[1] == format_signed_percent(row.overhead.token_noise_floor_pct)
