"""The heat map of a sweep over batch and prompt length."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from dejavubench.analysis.figures.figure import Drawing
from dejavubench.analysis.figures.files import make_picture
from dejavubench.analysis.figures.style import TEXT_CONTRAST, compute_contrast_to_white
from dejavubench.analysis.number_texts import format_percent_interval, format_signed_percent
from dejavubench.records import ArmInfo, PointInfo
from helpers.pictures import drawing_of, require_readable, texts_of
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run


def make_nine_points() -> list[PointInfo]:
    return [
        point_of(3 * i + j, ubatch_size=batch, input_len=length)
        for i, batch in enumerate((1, 2, 4))
        for j, length in enumerate((32, 64, 128))
    ]


@pytest.fixture
def heat_map(tmp_path: Path) -> Drawing:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("disk"), arm_of("mpi"), arm_of("tcp")]
    return drawing_of(write_run(tmp_path / "r", arms, make_nine_points(), {"disk@3": 1.1}))


def test_a_sweep_of_batch_and_prompt_is_a_heat_map(heat_map: Drawing) -> None:
    assert heat_map.name == "heat_map-gpt2"
    require_readable(heat_map)
    panels = make_picture(heat_map).axes[:5]
    titles = [ax.get_title(loc="left") for ax in panels]
    assert titles == [
        *("noise floor", "host, level 3", "disk, level 3 (fdatasync)", "mpi, level 3 (same host)"),
        "tcp, level 3",
    ]


def test_a_cell_is_darker_the_higher_its_overhead(heat_map: Drawing) -> None:
    panels = make_picture(heat_map).axes[1:5]
    shades = {}
    for ax, name in zip(panels, ("host@3", "disk@3", "mpi@3", "tcp@3"), strict=True):
        rows = heat_map.frame[heat_map.frame["arm"] == name].sort_values(
            ["ubatch_size", "input_len"]
        )
        cells = [patch for patch in ax.patches if patch.get_fill()]
        for overhead_pct, cell in zip(rows["overhead_pct"], cells, strict=True):
            shades[max(0.0, overhead_pct)] = sum(to_rgb(cell.get_facecolor()))
    by_overhead = [shade for _, shade in sorted(shades.items())]
    assert by_overhead == sorted(by_overhead, reverse=True)
    assert by_overhead[0] > by_overhead[-1] + 0.5
    for ax in panels:
        for patch in filter(Patch.get_fill, ax.patches):
            contrast = compute_contrast_to_white(to_rgb(patch.get_facecolor()))
            assert 21 / contrast >= TEXT_CONTRAST, "black text cannot be read on it"


def test_cells_say_value_interval_and_whether_told_from_noise(heat_map: Drawing) -> None:
    picture = make_picture(heat_map)
    panels = dict(zip(("host", "disk", "mpi", "tcp"), picture.axes[1:5], strict=True))
    rows = heat_map.frame[heat_map.frame["mode"] == "disk"]
    shown_texts = [text.get_text() for text in panels["disk"].texts]
    texts_of_rows = [
        text
        for _, row in rows.iterrows()
        for text in (
            format_signed_percent(row["overhead_pct"]),
            format_percent_interval(row["overhead_low_pct"], row["overhead_high_pct"]),
        )
    ]
    assert shown_texts == texts_of_rows
    assert rows["told_from_noise"].eq(True).all()
    frames = {
        name: len([patch for patch in ax.patches if not patch.get_fill()])
        for name, ax in panels.items()
    }
    assert frames["disk"] == 9
    clear = heat_map.frame[heat_map.frame["told_from_noise"].eq(True)]
    assert sum(frames.values()) == len(clear)


def test_a_point_that_was_not_measured_has_no_colour(tmp_path: Path) -> None:
    points = [
        *make_nine_points()[:8],
        point_of(8, ubatch_size=4, input_len=128, skipped="no memory"),
    ]
    drawing = drawing_of(write_run(tmp_path / "r", points=points))
    assert texts_of(drawing).count("not\nmeasured") == 2  # of the arm, and of the noise
    require_readable(drawing)


@pytest.mark.parametrize(
    ("arms", "points", "expected"),
    [
        ([NONE, AGAIN], make_nine_points(), "fig2"),
        ([NONE, AGAIN, arm_of("mpi")], make_nine_points()[:3], "fig25"),
        ([NONE, AGAIN, arm_of("mpi", "0"), arm_of("mpi")], make_nine_points(), "heat_map"),
    ],
)
def test_a_heat_map_needs_streaming_and_two_values_of_both(
    tmp_path: Path, arms: list[ArmInfo], points: list[PointInfo], expected: str
) -> None:
    folder = write_run(tmp_path / "r", arms, points, rounds=6)
    assert drawing_of(folder).name.startswith(expected)


def test_many_prompt_lengths_leave_room_for_the_values_alone(tmp_path: Path) -> None:
    points = [
        point_of(2 * j + i, ubatch_size=batch, input_len=64 * (j + 1))
        for j in range(10)
        for i, batch in enumerate((1, 2))
    ]
    drawing = drawing_of(write_run(tmp_path / "r", points=points, factors={"mpi@3": 1.1}))
    require_readable(drawing)
    assert not any(text.startswith("[") for text in texts_of(drawing))
