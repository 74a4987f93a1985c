"""Fig 7: slowdown over no streaming, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.figures import captions
from dejavubench.analysis.figures.fig7_drawing import PHASES, draw_slowdowns
from dejavubench.analysis.figures.figure import Figure, QuickRun, list_streaming_arms
from dejavubench.analysis.figures.shared_columns import (
    ArmColumns,
    NoiseColumns,
    level_label,
    list_shown_arms,
    make_arm_columns,
    make_noise_columns,
    split_estimate,
)
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.process_columns import SettingColumns, Sizes
from dejavubench.records import Run
from dejavubench.records.destination_info import Destinations

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Picture

SECOND_HAND = (
    "Second-hand, of the paper's figure (A100, fp16; not verified): naive streaming takes 131× "
    "(GPT2-1.5B), 92× (OPT-13B) and 69× (OPT-66B). Buffered copies are 95 times faster than naive "
    "streaming, and both further steps another 1.4 times."
)
"""Numbers of FasterTransformer's layout on GPUs, for figures of the same kind; drawn nowhere."""

SECOND_HAND_SHORT = "The paper's naive streaming takes 69 to 131× (second-hand, A100)."
"""Remark of the caption, for figures of the same kind."""


@dataclass
class LevelRow:
    """Fig 7: one row per point, streaming arm and phase."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    label: Annotated[str, "The paper's label of the level."]
    phase: Annotated[str, "total, prompt or token."]
    samples: Annotated[int, "Rounds that the arm and its baselines have in common."]
    slowdown: Annotated[
        float | None,
        "The phase's time over the geometric mean of the round's baselines, median over rounds.",
    ]
    slowdown_low: Annotated[float | None, "Lower end of its 95 % interval."]
    slowdown_high: Annotated[float | None, "Upper end of its 95 % interval."]
    noise: NoiseColumns
    setting: SettingColumns


class Fig7(Figure):
    """Rows are KV layouts, columns destinations; a bar per level and phase."""

    name = "fig7"
    title = "Like Fig 7 of the paper: slowdown over no streaming, one optimisation after the other"
    row = LevelRow
    method = (
        "Slowdown: the arm's time divided by the geometric mean of the same round's none times, "
        "median over rounds. Bars start at 1 (no streaming)."
    )
    mixed_sizes = ("kv_layout",)
    keys = ("phase",)
    quick_run = QuickRun(
        2, "--rounds 6 --kv-layout ft,hnd --ubatch-size 1 --input-len 64 --output-len 8"
    )

    def fits(self, run: Run) -> bool:
        """Return whether the streaming arms have several levels."""
        return len({arm.level for arm in list_streaming_arms(run)}) > 1

    def rows(self, run: Run) -> list[LevelRow]:
        """Return one row per point, arm with a level, and phase: the slowdown over no streaming."""
        rows = []
        for point, arm in list_shown_arms(run):
            if arm.info.level is None:
                continue
            for phase in PHASES:
                # Each phase is paired with the same phase of the baselines: TOTAL's noise says
                # nothing of a token's.
                overhead = stats.estimate_paired_overhead(
                    arm.times.series(phase), point.baselines(phase)
                )
                if overhead is None:
                    continue
                # An overhead is ratio − 1. A log axis needs the ratio itself.
                ratio, low, high = split_estimate(overhead.shift(1.0))
                rows.append(
                    LevelRow(
                        run=run.path.name,
                        point=point.info.id,
                        sizes=Sizes.of_point(point.info),
                        arm=make_arm_columns(run, arm),
                        label=level_label(arm.info.level),
                        phase=phase,
                        samples=overhead.sample_count,
                        slowdown=ratio,
                        slowdown_low=low,
                        slowdown_high=high,
                        noise=make_noise_columns(point, phase),
                        setting=SettingColumns.of_point(point.info),
                    )
                )
        return rows

    def draw(self, frame: pd.DataFrame, destinations: Destinations) -> Picture:
        """Draw one panel per layout and destination, with one row per level; log axis."""
        return draw_slowdowns(frame, destinations)

    def remarks(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the meaning of grey, and the paper's numbers where they can be compared."""
        return [
            captions.grey_sentence(frame, " in that phase"),
            SECOND_HAND_SHORT if _is_like_paper(runs, frame) else "",
        ]

    def details(self, runs: Sequence[Run], frame: pd.DataFrame) -> list[str]:
        """Return the noise, and the source of the paper's numbers where they can be compared."""
        return [*super().details(runs, frame), SECOND_HAND if _is_like_paper(runs, frame) else ""]


def _is_like_paper(runs: Sequence[Run], frame: pd.DataFrame) -> bool:
    return source_ranks.ran_on_gpu(runs[0]) and "ft" in set(frame["kv_layout"])


FIGURE = Fig7()
