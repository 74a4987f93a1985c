"""Noise in figures: all of them show the interval that the tables print, and say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.files import make_picture
from dejavubench.analysis.number_texts import format_percent_interval, format_signed_percent
from dejavubench.records import PointInfo, Run
from helpers.committed_runs import report_of, runs_of
from helpers.golden_texts import MACHINES
from helpers.pictures import drawing_of, drawn_texts
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

GREY = "Grey is the interval of none#2 over none"
RULE = "an interval without 0 and a value beyond the grey's farther end"


def make_four_points() -> list[PointInfo]:
    return [
        point_of(2 * i + j, ubatch_size=batch, input_len=length)
        for i, batch in enumerate((1, 2))
        for j, length in enumerate((32, 64))
    ]


def noise_in_tables(runs: list[Run]) -> dict[tuple[object, ...], tuple[float | None, ...]]:
    """Return the intervals of ``none#2`` in reports, by run, point and phase."""
    intervals: dict[tuple[object, ...], tuple[float | None, ...]] = {}
    for run in runs:
        for row in report_of(run).rows:
            noise = row.overhead
            if row.arm == AGAIN.name and noise.noise_floor_pct is not None:
                intervals[row.run, row.point, "total"] = (
                    noise.noise_floor_low_pct,
                    noise.noise_floor_high_pct,
                )
                intervals[row.run, row.point, "token"] = (
                    noise.token_noise_floor_low_pct,
                    noise.token_noise_floor_high_pct,
                )
    return intervals


def noise_in_figure(
    drawing: Drawing,
) -> Iterator[tuple[tuple[object, ...], tuple[float, float]]]:
    """Yield the intervals of a drawing's rows, by run, point and phase."""
    for _, row in drawing.frame.iterrows():
        key = (row["run"], row["point"], row.get("phase", "total"))
        yield key, (float(row["noise_floor_low_pct"]), float(row["noise_floor_high_pct"]))


@pytest.mark.parametrize("machine", MACHINES)
def test_figures_and_tables_have_one_interval_of_the_noise(machine: str) -> None:
    runs = runs_of(machine)
    expected = noise_in_tables(runs)
    compared = 0
    for drawing in make_drawings(runs)[0]:
        if "noise_floor_low_pct" not in drawing.frame:
            continue
        for key, interval in noise_in_figure(drawing):
            if None not in expected.get(key, (None,)):
                assert interval == pytest.approx(expected[key]), key
                compared += 1
    assert compared > 0


@pytest.mark.parametrize(
    ("figure", "points"), [("fig25", None), ("fig7", None), ("heat_map", make_four_points())]
)
@pytest.mark.parametrize("has_repeat", [True, False], ids=["with none#2", "without"])
def test_a_caption_says_what_grey_is_if_there_is_some(
    tmp_path: Path, figure: str, points: list[PointInfo] | None, has_repeat: bool
) -> None:
    arms = [NONE, *([AGAIN] if has_repeat else []), arm_of("mpi", "0"), arm_of("mpi")]
    drawing = drawing_of(write_run(tmp_path / "r", arms, points, figure=figure))
    assert (GREY in drawing.caption) == has_repeat


def test_the_link_figure_says_what_grey_is() -> None:
    links = [run for run in runs_of("epyc-2core") if run.header.figure == "link"]
    ((drawing,), _) = make_drawings(links)
    assert f"{GREY} in that session, as in the tables." in drawing.caption


def test_a_cost_beyond_the_near_end_of_a_lopsided_noise_is_not_told_from_it() -> None:
    """The grey ends at +1.33 there; its farther end, −3.49, decides."""
    name = "fig25-20261130T111726Z"
    (run,) = (run for run in runs_of("epyc-bf16-2core") if run.path.name == name)
    ((drawing,), _) = make_drawings([run])
    cost = drawing.frame.set_index("arm").loc["mpi@3"]
    assert cost["noise_floor_high_pct"] < cost["overhead_low_pct"]
    assert cost["overhead_pct"] < -cost["noise_floor_low_pct"]
    texts = drawn_texts(make_picture(drawing))
    assert [text.get_text() for text in texts if text.get_fontweight() == "bold"] == []
    assert f"No overhead is told from noise, which takes {RULE}." in drawing.caption


def test_a_mark_of_what_is_told_from_noise_is_explained_where_it_is_drawn(tmp_path: Path) -> None:
    factors = {"mpi@3": 1.2}
    bars = drawing_of(write_run(tmp_path / "bars", factors=factors))
    assert f"Bold means told from noise: {RULE}." in bars.caption
    cells = drawing_of(write_run(tmp_path / "cells", points=make_four_points(), factors=factors))
    assert f"A frame means told from noise: {RULE}." in cells.caption
    drawing_of_few_rounds = drawing_of(write_run(tmp_path / "few", factors=factors, rounds=4))
    assert "told from noise" not in drawing_of_few_rounds.caption


def test_a_heat_map_shows_the_noise_of_each_point(tmp_path: Path) -> None:
    drawing = drawing_of(write_run(tmp_path / "r", points=make_four_points(), noise=0.02))
    noise_panel = make_picture(drawing).axes[0]
    assert noise_panel.get_title(loc="left") == "noise floor"
    rows: pd.DataFrame = drawing.frame[drawing.frame["arm"] == AGAIN.name]
    shown_texts = [text.get_text() for text in noise_panel.texts]
    texts_of_rows = [
        text
        for _, row in rows.iterrows()
        for text in (
            format_signed_percent(row["noise_floor_pct"]),
            format_percent_interval(row["noise_floor_low_pct"], row["noise_floor_high_pct"]),
        )
    ]
    assert shown_texts == texts_of_rows
