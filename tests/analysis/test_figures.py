"""`dejavubench figures`: files, rows and captions of each figure, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.registry import figure_of
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import ArmInfo, PointInfo, Skipped, Verification, read_run
from helpers.figure_calls import call_figures, draw_figures, refusal_of
from helpers.synthetic_runs import AGAIN, ENVIRONMENT, NONE, arm_of, point_of, write_run

LADDER = ["0", "0-batched", "1", "2", "3"]


def only_drawing(folder: Path) -> Drawing:
    drawn, _ = make_drawings([read_run(folder)])
    assert len(drawn) == 1
    return drawn[0]


def make_swept_points() -> list[PointInfo]:
    return [
        point_of(4 * i + 2 * j + k, model=model, ubatch_size=batch, input_len=length)
        for i, model in enumerate(("gpt2", "opt-125m"))
        for j, batch in enumerate((1, 4))
        for k, length in enumerate((64, 512))
    ]


def test_fig2_has_a_row_for_each_point(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE, AGAIN], make_swept_points(), rounds=3, figure="fig2")
    assert draw_figures(folder, tmp_path / "out") == ["fig2-gpt2-opt-125m"]
    table = pd.read_csv(tmp_path / "out" / "fig2-gpt2-opt-125m.csv")
    assert list(table["input_len"]) == [64, 512] * 4
    assert list(table["arm"]) == ["none"] * 8
    assert table["prompt_over_token"].to_numpy() == pytest.approx(
        (table["prompt_ms"] / table["token_ms"]).to_numpy()
    )
    assert (table["prompt_low_ms"] <= table["prompt_ms"]).all()


def test_requests_of_one_token_have_no_token_time_to_draw(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE], [point_of(output_len=1)], rounds=2, figure="fig2")
    assert draw_figures(folder, tmp_path / "out") == ["fig2-gpt2"]


def test_the_figure_of_appendix_a_is_named_for_it(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "r", [NONE], [point_of(model="opt-125m")], rounds=2, figure="appendix_a"
    )
    assert draw_figures(folder, tmp_path / "out") == ["appendix_a-opt-125m"]


def test_fig7_has_each_level_and_phase_of_layouts_and_destinations(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, *(arm_of(mode, level) for mode in ("mpi", "disk") for level in LADDER)]
    factors = {arm.name: 30.0 if arm.level == "0" else 1.2 for arm in arms[2:]}
    points = [point_of(0, kv_layout="ft"), point_of(1, kv_layout="hnd")]
    folder = write_run(tmp_path / "r", arms, points, factors, rounds=3, figure="fig7")
    assert draw_figures(folder, tmp_path / "out") == ["fig7-gpt2"]
    table = pd.read_csv(tmp_path / "out" / "fig7-gpt2.csv")
    assert len(table) == 2 * 2 * 5 * 3
    naive = table[(table["label"] == "Naive streaming") & (table["phase"] == "total")]
    assert naive["slowdown"].to_numpy() == pytest.approx(30, rel=0.02)
    assert set(table["label"]) == {level.label for level in LEVELS.values()}


def test_fig25_has_totals_overheads_and_the_noise_band(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("disk"), arm_of("mpi")]
    folder = write_run(tmp_path / "r", arms, factors={"disk@3": 1.05}, rounds=12, figure="fig25")
    assert draw_figures(folder, tmp_path / "out") == ["fig25-gpt2"]
    table = pd.read_csv(tmp_path / "out" / "fig25-gpt2.csv").set_index("arm")
    assert list(table.index) == ["none", "none#2", "host@3", "disk@3", "mpi@3"]
    assert table.loc["disk@3", "overhead_pct"] == pytest.approx(5, abs=0.5)
    assert table["overhead_pct"].isna()["none"]
    assert table["noise_floor_low_pct"].notna().all()


def test_a_caption_says_machine_sizes_counts_and_what_to_beware_of(tmp_path: Path) -> None:
    drawing = only_drawing(write_run(tmp_path / "r", rounds=4, figure="fig25"))
    for words in (
        "gpt2 (124.4 M), bf16, KV layout hnd, batch 4, prompt 256, 6 new tokens, level 3, 1 thread",
        "AMD EPYC 9V74 80-Core Processor, 2 cores, 2025-01-02.",
        "4 rounds: error bars are narrower than 95 % intervals, which need 6.",
    ):
        assert words in drawing.caption
    for words in (
        "1 host, torch 2.13.0, MPICH 5.0.2",
        "batch 4, prompt 256, new",
        "mpi: same host",
    ):
        assert words in drawing.description
    assert (
        "CPU not recorded"
        in only_drawing(write_run(tmp_path / "bare", environment={}, rounds=1)).caption
    )


def test_a_caption_names_the_device_of_the_disk(tmp_path: Path) -> None:
    place = {"path": "/s/r", "mount": "/s", "type": "ext4", "source": "/dev/vda", "device": "vda"}
    infos = [{"environment": {"stream_dir": place}}, {}]
    arms = [NONE, AGAIN, arm_of("disk"), arm_of("mpi")]
    drawing = only_drawing(write_run(tmp_path / "disk", arms, infos=infos, figure="fig25"))
    assert " Disk: ext4 on vda. " in drawing.caption
    assert (
        "Disk:"
        not in only_drawing(write_run(tmp_path / "mpi", infos=infos, figure="fig25")).caption
    )


def test_a_caption_names_arms_that_are_not_shown(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi"), arm_of("disk")]
    failed_check = Verification(point="p000", arm="mpi@3", iteration=3, ok=False, nbytes=9)
    skipped = [Skipped(point="p000", arm="disk@3", reason="no space")]
    drawing = only_drawing(
        write_run(tmp_path / "r", arms, bad=failed_check, skipped=skipped, ended=False)
    )
    assert list(drawing.frame["arm"]) == ["none", "none#2", "host@3"]
    assert "Not shown: FAILED: mpi@3; SKIPPED: disk@3." in drawing.caption
    assert "INCOMPLETE: 2 of 2 ranks" in drawing.caption


def test_a_caption_names_points_that_are_not_shown_by_what_tells_them_apart(
    tmp_path: Path,
) -> None:
    points = [
        point_of(0),
        point_of(1, input_len=512, skipped="no memory"),
        *(point_of(2 + n, input_len=1024 + n, skipped="no memory") for n in range(4)),
    ]
    skipped = [Skipped(point="p000", arm="mpi@3", reason="no space")]
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    drawing = only_drawing(write_run(tmp_path / "r", arms, points, skipped=skipped))
    assert (
        "Not shown: SKIPPED: mpi@3 of prompt 256; prompt 512; and 4 more points." in drawing.caption
    )


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([NONE, AGAIN], "fig2"),
        ([NONE, AGAIN, arm_of("host"), arm_of("mpi")], "fig25"),
        ([NONE, arm_of("mpi", "0"), arm_of("mpi", "3")], "fig7"),
    ],
)
def test_a_run_without_a_figure_is_drawn_as_what_its_arms_fit(
    tmp_path: Path, arms: list[ArmInfo], expected: str
) -> None:
    assert figure_of(read_run(write_run(tmp_path / "r", arms, rounds=1))).name == expected


def test_runs_that_draw_the_same_figure_keep_names_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "logs" / name, rounds=1, figure="fig25")
    assert draw_figures(tmp_path / "logs", tmp_path / "out") == ["fig25-gpt2-a", "fig25-gpt2-b"]


def test_runs_whose_folders_are_of_one_name_are_drawn_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "logs" / name / "r", rounds=1, figure="fig25")
    assert draw_figures(tmp_path / "logs", tmp_path / "out") == ["fig25-gpt2-r", "fig25-gpt2-r-2"]


def test_models_of_fig25_and_fig7_are_figures_of_their_own(tmp_path: Path) -> None:
    points = [
        point_of(0),
        point_of(1, model="opt-125m"),
        point_of(2, model="opt-125m", data_type="fp32"),
    ]
    drawn, _ = make_drawings([read_run(write_run(tmp_path / "r", points=points, rounds=1))])
    assert [drawing.name for drawing in drawn] == [
        "fig25-gpt2-bf16",
        "fig25-opt-125m-bf16",
        "fig25-opt-125m-fp32",
    ]


def test_together_puts_runs_in_one_drawing(tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "a", [NONE], [point_of(0, input_len=64)], rounds=1)
    write_run(tmp_path / "logs" / "b", [NONE], [point_of(0, input_len=128)], rounds=1)
    assert call_figures(
        tmp_path / "logs", "-o", tmp_path / "out", "--together"
    ).stdout.splitlines() == [str(tmp_path / "out" / "fig2-gpt2.png")]
    assert list(pd.read_csv(tmp_path / "out" / "fig2-gpt2.csv")["input_len"]) == [64, 128]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"environment": ENVIRONMENT | {"cpu_model": "Xeon"}},
            "cpu_model: AMD EPYC 9V74 80-Core Processor (a), Xeon (b)",
        ),
        ({"environment": ENVIRONMENT | {"cores": 8}}, "cores: 2 (a), 8 (b)"),
        ({"points": [point_of(model="opt-125m")]}, "model: gpt2 (a), opt-125m (b)"),
        ({"points": [point_of(data_type="fp32")]}, "data_type: bf16 (a), fp32 (b)"),
        ({}, "a, b hold the same point and arm"),
    ],
)
def test_together_refuses_what_cannot_be_compared(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_run(tmp_path / "logs" / "a", rounds=1)
    write_run(tmp_path / "logs" / "b", rounds=1, **change)
    assert message in refusal_of(
        call_figures(tmp_path / "logs", "-o", tmp_path / "out", "--together")
    )
    assert not (tmp_path / "out").exists()


def test_fig7_together_needs_equal_batch_and_lengths(tmp_path: Path) -> None:
    arms = [NONE, arm_of("mpi", "0"), arm_of("mpi", "3")]
    write_run(tmp_path / "logs" / "a", arms, [point_of(kv_layout="ft")], rounds=1)
    write_run(tmp_path / "logs" / "b", arms, [point_of(input_len=64, ubatch_size=1)], rounds=1)
    message = refusal_of(call_figures(tmp_path / "logs", "-o", tmp_path / "out", "--together"))
    assert "ubatch_size: 4 (a), 1 (b); input_len: 256 (a), 64 (b)" in message


def test_existing_files_are_not_overwritten_silently(tmp_path: Path) -> None:
    folder, out = write_run(tmp_path / "r", rounds=1), tmp_path / "out"
    out.mkdir()
    (out / "fig25-gpt2.csv").write_text("mine")
    message = refusal_of(call_figures(folder, "-o", out))
    assert "fig25-gpt2.csv. Use --force to overwrite, or another -o" in message
    assert [path.name for path in out.iterdir()] == ["fig25-gpt2.csv"]
    assert call_figures(folder, "-o", out, "--force").exit_code == 0
    assert (out / "fig25-gpt2.csv").read_text() != "mine"


def test_runs_that_cannot_be_drawn_are_named_with_the_reason(tmp_path: Path) -> None:
    run_of_one_arm = write_run(tmp_path / "logs" / "alone", [arm_of("mpi")], rounds=1)
    assert "no baseline was measured" in refusal_of(
        call_figures(run_of_one_arm, "-o", tmp_path / "out")
    )
    assert "not one of fig2" in refusal_of(
        call_figures(write_run(tmp_path / "x", figure="fig99"), "-o", tmp_path / "out")
    )
    assert "no measured round" in refusal_of(
        call_figures(write_run(tmp_path / "y", rounds=0), "-o", tmp_path / "out")
    )
    (tmp_path / "log").write_text("hello")
    assert "is a file" in refusal_of(call_figures(tmp_path / "log", "-o", tmp_path / "out"))
    write_run(tmp_path / "logs" / "good", rounds=1)
    figures_call = call_figures(tmp_path / "logs", "-o", tmp_path / "out")
    assert figures_call.exit_code == 0
    assert "left out: alone: no baseline was measured" in figures_call.stderr


def test_a_folder_of_figures_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal_of(
        call_figures(write_run(tmp_path / "r", rounds=1), "-o", tmp_path / "file" / "out")
    )
