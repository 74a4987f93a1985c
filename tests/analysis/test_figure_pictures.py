"""Pictures as a reader sees them: bars are the rows' numbers, and no text covers another one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.patches import Patch
from matplotlib.text import Annotation

from dejavubench.analysis.figures import fig2
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.figures.figure import Drawing, Figure
from dejavubench.analysis.figures.files import make_picture, save_pictures
from dejavubench.analysis.figures.link_drawing import format_speed
from dejavubench.analysis.figures.registry import load_figures
from dejavubench.analysis.figures.style import (
    TEXT_CONTRAST,
    choose_filling,
    compute_contrast_to_white,
    make_ordered_colours,
    make_readable_colour,
)
from dejavubench.analysis.number_texts import format_percent_interval, format_signed_percent
from dejavubench.records import ArmInfo, Skipped, read_run
from dejavubench.records.destination_info import FROZEN_DESTINATIONS
from helpers.committed_runs import runs_of
from helpers.golden_texts import MACHINES
from helpers.pictures import (
    drawing_of,
    drawn_texts,
    error_bars,
    require_readable,
    texts_of,
)
from helpers.synthetic_runs import AGAIN, NONE, arm_of, point_of, write_run

LADDER = ["0", "0-batched", "1", "2", "3"]
DURABILITIES = ("fdatasync", "direct", "page-cache")


def make_disk_arm(durability: str) -> ArmInfo:
    return ArmInfo(name=f"disk@3/{durability}", mode="disk", level="3", durability=durability)


@pytest.mark.parametrize("machine", MACHINES)
def test_texts_of_committed_runs_cover_nothing(machine: str) -> None:
    runs = runs_of(machine)
    fig25 = [run for run in runs if run.header.figure == "fig25"]
    for drawing in [*make_drawings(runs)[0], *make_drawings(fig25, name="tails")[0]]:
        require_readable(drawing)


@pytest.mark.parametrize(
    "modes", [("mpi",), ("host", "disk", "mpi"), ("host", "disk", "mpi", "tcp")]
)
@pytest.mark.parametrize("worst", [1.0, 1.4, 30.0, 900.0])
def test_texts_of_fig7_have_room_at_any_slowdown(
    tmp_path: Path, modes: tuple[str, ...], worst: float
) -> None:
    arms = [NONE, AGAIN, *(arm_of(mode, level) for mode in modes for level in LADDER)]
    factors = {arm.name: worst if arm.level == "0" else 1.02 for arm in arms[2:]}
    points = [point_of(0, kv_layout="ft"), point_of(1, kv_layout="hnd")]
    folder = write_run(tmp_path / "r", arms, points, factors, rounds=6, noise=0.03, figure="fig7")
    require_readable(drawing_of(folder))


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.05, 40.0])
def test_texts_of_fig25_have_room_at_any_overhead(tmp_path: Path, factor: float) -> None:
    arms = [
        NONE,
        AGAIN,
        arm_of("host"),
        *map(make_disk_arm, DURABILITIES),
        arm_of("mpi"),
        arm_of("nccl"),
        arm_of("tcp"),
    ]
    points = [point_of(0), point_of(1, input_len=512)]
    folder = write_run(
        tmp_path / "r", arms, points, {"disk@3/direct": factor}, noise=0.02, figure="fig25"
    )
    require_readable(drawing_of(folder))


def test_long_notes_and_names_stay_within_the_picture(tmp_path: Path) -> None:
    note = "x" * 300 + " and some words " * 20
    require_readable(drawing_of(write_run(tmp_path / "r", note=note, figure="fig25")))


# ---- Fig 25 ----


@pytest.fixture
def fig25(tmp_path: Path) -> Drawing:
    arms = [NONE, AGAIN, arm_of("host"), *map(make_disk_arm, DURABILITIES), arm_of("mpi")]
    factors = {"disk@3/fdatasync": 1.05, "disk@3/direct": 1.02}
    return drawing_of(write_run(tmp_path / "r", arms, factors=factors, figure="fig25"))


def test_bars_and_intervals_of_fig25_are_the_overheads(fig25: Drawing) -> None:
    picture = make_picture(fig25)
    (ax,) = picture.axes
    rows: Any = fig25.frame[fig25.frame["role"] == "streaming"].set_index("arm")
    bars = {
        container.get_label(): container.patches[0]
        for container in ax.containers
        if isinstance(container, BarContainer)
    }
    assert list(bars) == list(rows.index)
    for name, bar in bars.items():
        assert bar.get_width() == rows.loc[name, "overhead_pct"]
    picture.draw_without_rendering()
    inverse = ax.transData.inverted()
    ends = np.array([inverse.transform(bar)[:, 0] for bar in error_bars(picture)])
    expected = rows[["overhead_low_pct", "overhead_high_pct"]].to_numpy(dtype=float)
    assert ends == pytest.approx(expected)


def test_the_band_of_fig25_is_the_interval_of_the_noise_floor(fig25: Drawing) -> None:
    (ax,) = make_picture(fig25).axes
    (band,) = (patch for patch in ax.patches if patch.get_label() == "noise floor")
    row = fig25.frame.iloc[0]
    low, high = row["noise_floor_low_pct"], row["noise_floor_high_pct"]
    box = band.get_extents().transformed(ax.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((low, high))
    assert abs(low) != pytest.approx(abs(high))
    assert f"noise floor {format_percent_interval(low, high)}" in texts_of(fig25)


def test_times_of_fig25_agree_with_the_overheads(fig25: Drawing) -> None:
    rows: Any = fig25.frame.set_index("arm")
    none = np.sqrt(rows.loc["none", "total_ms"] * rows.loc["none#2", "total_ms"])
    texts = texts_of(fig25)
    assert f"{none:.1f}" in texts
    for name, row in rows[rows["role"] == "streaming"].iterrows():
        assert f"{none * (1 + row['overhead_pct'] / 100):.1f}" in texts, name


def test_the_column_of_fig25_has_another_name_than_the_medians_of_the_tables(
    fig25: Drawing,
) -> None:
    texts = texts_of(fig25)
    assert "none × (1 + overhead), ms" in texts
    assert not [text for text in texts if text.startswith("TOTAL")]


@pytest.mark.parametrize("figure", load_figures(), ids=lambda figure: str(figure.name))
def test_a_title_does_not_pass_a_run_off_as_the_papers(figure: Figure) -> None:
    assert not re.match("Fig|Appendix", figure.title)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_texts_in_the_colours_of_levels_can_be_read_on_white(count: int) -> None:
    for colour in make_ordered_colours(count):
        assert compute_contrast_to_white(to_rgb(make_readable_colour(colour))) >= TEXT_CONTRAST
    dark = make_ordered_colours(count)[0]
    assert make_readable_colour(dark) == dark


def test_only_overheads_told_from_noise_are_bold(fig25: Drawing) -> None:
    bold = {
        text.get_text()
        for text in drawn_texts(make_picture(fig25))
        if text.get_fontweight() == "bold"
    }
    clear = fig25.frame[fig25.frame["told_from_noise"].eq(True)]
    assert set(clear["arm"]) == {"disk@3/fdatasync", "disk@3/direct"}
    texts_of_clear_overheads = {
        f"{format_signed_percent(row['overhead_pct'])} "
        + format_percent_interval(row["overhead_low_pct"], row["overhead_high_pct"])
        for _, row in clear.iterrows()
    }
    assert bold == texts_of_clear_overheads
    assert "Bold means told from noise: " in fig25.caption


def test_durabilities_of_disk_differ_in_shade_and_hatch(fig25: Drawing) -> None:
    looks = [choose_filling(FROZEN_DESTINATIONS["disk"], durability) for durability in DURABILITIES]
    assert len({look["facecolor"] for look in looks}) == len({look["hatch"] for look in looks}) == 3
    assert looks[0]["facecolor"] == FROZEN_DESTINATIONS["disk"].colour.lower()
    texts = texts_of(fig25)
    labels = [f"disk\n{durability}" for durability in DURABILITIES]
    assert [label for label in labels if label in texts] == labels


def test_two_arms_make_a_low_picture(tmp_path: Path, fig25: Drawing) -> None:
    drawing_of_two_arms = drawing_of(write_run(tmp_path / "small", figure="fig25"))
    picture = make_picture(drawing_of_two_arms, with_texts=False)
    assert picture.get_figheight() < 0.6 * make_picture(fig25, with_texts=False).get_figheight()
    (ax,) = picture.axes
    assert len(ax.get_yticks()) == 2


def test_a_single_none_has_no_band(tmp_path: Path) -> None:
    drawing = drawing_of(write_run(tmp_path / "r", [NONE, arm_of("mpi")], figure="fig25"))
    (ax,) = make_picture(drawing).axes
    assert all(patch.get_label() != "noise floor" for patch in ax.patches)
    assert "baseline" in texts_of(drawing)


def test_a_point_without_a_baseline_has_no_overhead(tmp_path: Path) -> None:
    points = [point_of(0), point_of(1, input_len=512)]
    skipped = [Skipped(point="p001", arm=name, reason="no space") for name in ("none", "none#2")]
    drawing = drawing_of(
        write_run(
            tmp_path / "r", [NONE, AGAIN, arm_of("mpi")], points, skipped=skipped, figure="fig25"
        )
    )
    require_readable(drawing)
    assert texts_of(drawing).count("no baseline") == 1
    run_of_one_arm = read_run(write_run(tmp_path / "alone", [arm_of("mpi")], figure="fig25"))
    assert make_drawings([run_of_one_arm]) == (
        [],
        ["alone: no baseline was measured, so there is no overhead. Run it again with --compare."],
    )


# ---- Fig 7 ----


@pytest.fixture
def fig7(tmp_path: Path) -> Drawing:
    arms = [NONE, AGAIN, *(arm_of("mpi", level) for level in LADDER)]
    factors = {"mpi@0": 1.6, "mpi@1": 1.04, "mpi@3": 0.99}
    return drawing_of(write_run(tmp_path / "r", arms, factors=factors, noise=0.01, figure="fig7"))


@pytest.mark.parametrize("phase", ["total", "prompt", "token"])
def test_bars_and_noise_of_fig7_are_the_rows(fig7: Drawing, phase: str) -> None:
    (ax,) = make_picture(fig7).axes
    rows = fig7.frame[fig7.frame["phase"] == phase]
    bars = {
        container.get_label(): container.patches
        for container in ax.containers
        if isinstance(container, BarContainer)
    }
    assert [1 + bar.get_width() for bar in bars[phase]] == pytest.approx(list(rows["slowdown"]))
    for box, (_, row) in zip(bars[f"noise floor of {phase}"], rows.iterrows(), strict=True):
        assert 100 * (box.get_x() - 1) == pytest.approx(row["noise_floor_low_pct"])
        assert 100 * box.get_width() == pytest.approx(
            row["noise_floor_high_pct"] - row["noise_floor_low_pct"]
        )


def test_levels_of_fig7_have_their_numbers(fig7: Drawing) -> None:
    labels = [" ".join(text.split()) for text in texts_of(fig7)]
    for name in ("0: Naive streaming", "1: + buffered copies", "3: DéjàVu (all)"):
        assert name in labels
    assert any(label.startswith("0-batched: ") for label in labels)


def test_numbers_of_fig7_have_two_decimals(fig7: Drawing) -> None:
    values = [text for text in texts_of(fig7) if text.endswith("×") and "." in text]
    assert len([text for text in values if len(text.split(".")[1]) == 3]) >= len(fig7.frame)
    assert {len(text.partition(".")[2]) for text in values} <= {2, 3}


def test_a_level_without_a_value_has_no_row_in_its_layout(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, *(arm_of("mpi", level) for level in LADDER)]
    points = [point_of(0, kv_layout="ft"), point_of(1, kv_layout="hnd")]
    skipped = [Skipped(point="p001", arm=f"mpi@{level}", reason="no space") for level in "01"]
    drawing = drawing_of(write_run(tmp_path / "r", arms, points, skipped=skipped, figure="fig7"))
    require_readable(drawing)
    names = [
        [label.get_text().partition(":")[0] for label in ax.get_yticklabels()]
        for ax in make_picture(drawing).axes
    ]
    assert names == [LADDER, ["0-batched", "2", "3"]]
    assert "Not shown: SKIPPED: mpi@0, mpi@1 of KV layout hnd." in drawing.caption


def test_a_level_that_one_destination_lacks_says_so_in_its_row(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, *(arm_of(mode, level) for mode in ("mpi", "host") for level in LADDER)]
    skipped = [Skipped(point="p000", arm="host@0", reason="no space")]
    drawing = drawing_of(write_run(tmp_path / "r", arms, skipped=skipped, figure="fig7"))
    require_readable(drawing)
    to_mpi, to_host = make_picture(drawing).axes
    assert len(to_mpi.get_yticks()) == len(LADDER)
    remarks = [text for text in to_host.texts if not text.get_text().endswith("×")]
    (remark,) = (text for text in remarks if isinstance(text, Annotation))
    assert remark.get_text() == "no value"
    assert remark.xy[1] == LADDER.index("0")
    assert all(text.get_text() != "no value" for text in to_mpi.texts)


# ---- Fig 2 ----


def lines_of(folder: Path) -> list[Any]:
    picture = make_picture(drawing_of(folder))
    return [
        container.lines[0]
        for ax in picture.axes
        for container in ax.containers
        if isinstance(container, ErrorbarContainer)
    ]


@pytest.mark.parametrize(
    ("lengths", "joined"),
    [((64, 512), False), ((64, 128, 512), True), ((500, 1000, 1500, 2000, 2500, 3000), True)],
)
def test_points_of_fig2_are_on_their_ticks_and_only_a_curve_is_joined(
    tmp_path: Path, lengths: tuple[int, ...], joined: bool
) -> None:
    points = [
        point_of(2 * j + i, ubatch_size=batch, input_len=length)
        for j, length in enumerate(lengths)
        for i, batch in enumerate((1, 4))
    ]
    folder = write_run(tmp_path / "r", [NONE], points, rounds=6, figure="fig2")
    require_readable(drawing_of(folder))
    lines = lines_of(folder)
    assert len(lines) == 2 * 3
    for line in lines:
        assert tuple(line.get_xdata()) == lengths
        assert (line.get_linestyle() != "None") == joined
    assert len(lengths) < fig2.FEWEST_FOR_A_LINE or joined


# ---- link ----


def test_grey_of_the_link_figure_is_the_noise_of_each_session() -> None:
    runs = [run for run in runs_of("epyc-2core") if run.header.figure == "link"]
    ((drawing,), _) = make_drawings(runs)
    ax = make_picture(drawing).axes[0]
    (grey,) = (
        container
        for container in ax.containers
        if isinstance(container, BarContainer)
        and container.get_label() == "noise floor of the session"
    )
    rows = drawing.frame[drawing.frame["mode"] == "mpi"].drop_duplicates("run")
    assert len(grey.patches) == len(runs) == 7
    for bar, (_, row) in zip(grey.patches, rows.iterrows(), strict=True):
        assert bar.get_y() == pytest.approx(row["noise_floor_low_pct"])
        assert bar.get_y() + bar.get_height() == pytest.approx(row["noise_floor_high_pct"])
        assert bar.get_x() < row["link_mb_per_s"] < bar.get_x() + bar.get_width()


def test_rates_of_the_link_figure_have_the_unit_of_their_size() -> None:
    rates = (0.126, 9.142, 186.2, 999.7, 2120)
    assert [format_speed(rate) for rate in rates] == [
        *("126 kB/s", "9.14 MB/s", "186 MB/s", "1 GB/s", "2.12 GB/s"),
    ]


# ---- all ----


def test_ordered_colours_grow_lighter_in_grey() -> None:
    from matplotlib.colors import to_rgb

    greys = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in make_ordered_colours(6)]
    assert greys == sorted(greys)
    assert min(np.diff(greys)) > 0.03
    assert greys[-1] < 0.75


def test_a_caption_is_short_and_the_file_carries_the_rest(tmp_path: Path, fig25: Drawing) -> None:
    (caption,) = (text for text in texts_of(fig25) if text.split()[-2:] == ["Run", "r."])
    assert len(caption.splitlines()) <= 3
    save_pictures(fig25, [tmp_path / "a.png", tmp_path / "a.pdf"], overwrite=False)
    from PIL import Image

    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == fig25.description
    assert "geometric mean" in fig25.description
    assert "torch 2.13.0" in fig25.description


def test_equal_drawings_make_equal_files(tmp_path: Path, fig25: Drawing) -> None:
    for name in ("a", "b"):
        save_pictures(fig25, [tmp_path / f"{name}.pdf"], overwrite=False)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_legend_in_rows_is_above_the_panels(fig7: Drawing) -> None:
    picture = make_picture(fig7)
    picture.draw_without_rendering()
    (legend,) = picture.legends
    (ax,) = picture.axes
    assert legend.get_window_extent().y0 >= ax.get_window_extent().y1
    assert all(isinstance(handle, Patch) for handle in legend.legend_handles)
