"""Points that differ in threads or staging alone: in tables, notes, figures and comparisons.

Records of a bf16 cache on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dejavubench.analysis.comparison.comparable import NotComparableError
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.reports.report import make_report
from dejavubench.records import PointInfo, read_run
from helpers.figure_calls import draw_figures
from helpers.operands import compare_runs
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

SINGLE_VALUES = {"threads": 1, "staging_mib": 16, "staging_slots": 4, "confine": False}
"""An experiment of single values."""


def make_points(threads: Sequence[int] = (1, 2), **sizes: Any) -> list[PointInfo]:
    return [point_of(number, threads=thread, **sizes) for number, thread in enumerate(threads)]


def write_sweep(folder: Path, threads: Sequence[int] = (1, 2), **changes: Any) -> Path:
    experiment = SINGLE_VALUES | {"threads": list(threads)}
    return write_run(folder, points=make_points(threads), experiment=experiment, **changes)


def write_single(folder: Path, seed: int = 7, minute: int = 0, **settings: Any) -> Path:
    started = f"2025-01-02T03:{minute:02d}:00Z"
    return write_run(folder, experiment=SINGLE_VALUES | settings, seed=seed, started_utc=started)


# ---- tables and notes ----


def test_a_table_names_the_threads_of_each_point_and_rows_have_all_settings(
    tmp_path: Path,
) -> None:
    run_report = make_report(read_run(write_sweep(tmp_path / "r")))
    main_block = run_report.blocks[0]
    assert main_block.columns[:3] == ["point", "threads", "arm"]
    assert [row[1] for group in main_block.groups for row in group] == ["1"] * 3 + ["2"] * 3
    assert {(row.setting.threads, row.setting.staging_mib) for row in run_report.rows} == {
        (1, 16),
        (2, 16),
    }


def test_a_run_of_single_values_shows_them_in_rows_alone(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_single(tmp_path / "r", threads=3, confine=True)))
    assert run_report.blocks[0].columns[0] == "arm"
    assert {(row.setting.threads, row.setting.confine) for row in run_report.rows} == {(3, True)}
    assert run_report.header is not None
    assert "threads" not in run_report.header["points"][0]


def test_an_older_record_without_the_options_has_no_values(tmp_path: Path) -> None:
    run_report = make_report(read_run(write_run(tmp_path / "r")))
    assert {row.setting.threads for row in run_report.rows} == {None}


def test_crowded_points_of_a_sweep_are_named_by_their_threads(tmp_path: Path) -> None:
    def demand(threads: int) -> dict[str, Any]:
        return {"ranks": 2, "threads": threads, "helpers": 1, "cores": 2, "quota": None} | {
            "crowded": 0
        }

    environment = {
        "cpu_demand": demand(3),
        "points": {"p000": {"cpu_demand": demand(2)}, "p001": {"cpu_demand": demand(3)}},
    }
    infos = ({"environment": environment}, {"environment": environment})
    run_report = make_report(read_run(write_sweep(tmp_path / "r", infos=infos)))
    crowded = [text for text in run_report.note_texts if text.startswith("CROWDED")]
    assert len(crowded) == 1
    assert crowded[0].startswith("CROWDED: with --threads 2: 2 ranks have 3 busy threads")


# ---- figures ----


def test_points_of_other_threads_are_drawings_of_their_own(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "r", figure="fig25")
    assert draw_figures(folder, tmp_path / "out") == ["fig25-gpt2-threads1", "fig25-gpt2-threads2"]
    table = pd.read_csv(tmp_path / "out" / "fig25-gpt2-threads2.csv")
    assert set(table["threads"]) == {2}
    drawing_of_one_thread, drawing_of_two_threads = make_drawings([read_run(folder)])[0]
    assert "6 new tokens" in drawing_of_one_thread.caption
    assert ", threads 1." in drawing_of_one_thread.caption
    assert ", threads 2." in drawing_of_two_threads.caption


def test_fig2_has_a_row_of_panels_for_each_number_of_threads(tmp_path: Path) -> None:
    arms = [NONE, AGAIN]
    folder = write_sweep(tmp_path / "r", arms=arms, rounds=3, figure="fig2")
    (drawing,) = make_drawings([read_run(folder)])[0]
    assert list(drawing.frame["threads"]) == [1, 2]
    picture = drawing.figure.draw(drawing.frame, drawing.destinations)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in picture.axes]
    assert [title for title in titles if title] == ["gpt2, threads 1", "gpt2, threads 2"]


def test_runs_of_other_threads_are_still_refused_as_the_same_point_twice(tmp_path: Path) -> None:
    runs = [read_run(write_single(tmp_path / f"r{threads}", threads=threads)) for threads in (1, 2)]
    with pytest.raises(NotComparableError, match="hold the same point and arm"):
        make_drawings(runs, is_joined=True, name="fig25")


# ---- comparisons ----


def test_points_of_two_sweeps_are_matched_by_their_threads(tmp_path: Path) -> None:
    run_a = write_sweep(tmp_path / "a", (1, 2, 4))
    run_b = write_sweep(tmp_path / "b", (4, 2), seed=8)
    comparison = compare_runs(run_a, run_b)
    pairs = [(row.point_a, row.point_b, row.setting.threads) for row in comparison.rows]
    assert pairs == [("p002", "p000", 4)] * 2 + [("p001", "p001", 2)] * 2
    assert comparison.compared_difference is None
    assert comparison.unmatched_names["A"] == ["p000"]


def test_a_sweep_has_a_point_in_common_with_a_run_of_its_threads(tmp_path: Path) -> None:
    run_a, run_b = write_sweep(tmp_path / "a"), write_single(tmp_path / "b", threads=2)
    comparison = compare_runs(run_a, run_b)
    assert {(row.point_a, row.point_b) for row in comparison.rows} == {("p001", "p000")}
    assert comparison.compared_difference is None


def test_two_points_of_a_sweep_compare_their_setting(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "a")
    comparison = compare_runs(f"{folder}:p000", f"{folder}:p001")
    assert str(comparison.compared_difference) == "threads: 1 → 2"
    assert comparison.differences == []


def test_single_values_that_differ_are_what_is_compared(tmp_path: Path) -> None:
    run_a, run_b = write_single(tmp_path / "a"), write_single(tmp_path / "b", 8, staging_slots=8)
    assert str(compare_runs(run_a, run_b).compared_difference) == "staging_slots: 4 → 8"
    run_of_two_changes = write_single(tmp_path / "c", 8, staging_slots=8, confine=True)
    with pytest.raises(NotComparableError, match="staging_slots: 4 → 8; confine: False → True"):
        compare_runs(run_a, run_of_two_changes)


def test_sweeps_without_a_value_in_common_ask_for_points(tmp_path: Path) -> None:
    run_a, run_b = write_sweep(tmp_path / "a"), write_sweep(tmp_path / "b", (3, 4))
    with pytest.raises(NotComparableError, match="no point of equal sizes and settings: 2 against"):
        compare_runs(run_a, run_b)
    assert (
        str(compare_runs(f"{run_a}:p001", f"{run_b}:p000").compared_difference) == "threads: 2 → 3"
    )


def test_an_older_program_had_the_default_of_a_setting(tmp_path: Path) -> None:
    older_run = write_run(tmp_path / "old", experiment={"threads": 1})
    default_run = write_run(tmp_path / "new", experiment=SINGLE_VALUES, seed=8, settings=[])
    assert compare_runs(older_run, default_run).compared_difference is None
    changed = SINGLE_VALUES | {"staging_mib": 8}
    changed_run = write_run(
        tmp_path / "set", experiment=changed, seed=8, settings=["--staging-mib 8"]
    )
    assert (
        str(compare_runs(older_run, changed_run).compared_difference)
        == "staging_mib: not an option yet → 8"
    )


def test_an_operands_runs_must_have_equal_settings(tmp_path: Path) -> None:
    for number, threads in enumerate((1, 2)):
        write_single(tmp_path / "a" / f"r{number}", number, 2 * number, threads=threads)
        write_single(tmp_path / "b" / f"r{number}", number, 2 * number + 1)
    with pytest.raises(NotComparableError, match="the runs of A differ in threads: 1 → 2"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_the_arm_of_a_setting_is_one_for_all_points(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "a", arms=(NONE, AGAIN, arm_of("mpi"), arm_of("disk")))
    comparison = compare_runs(f"{folder}:p001:mpi@3", f"{folder}:p001:disk@3")
    assert {row.setting.threads for row in comparison.rows} == {2}
