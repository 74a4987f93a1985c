"""Rows of TOTAL and its overhead, one per point and arm, which two figures draw."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from dejavubench.analysis.answers.judgement import estimate_cost, is_told_from_noise
from dejavubench.analysis.figures.figure import NothingToDrawError
from dejavubench.analysis.figures.shared_columns import (
    ArmColumns,
    NoiseColumns,
    OverheadColumns,
    estimate_series,
    list_shown_arms,
    make_arm_columns,
    make_noise_columns,
    split_estimate,
)
from dejavubench.analysis.tables.process_columns import SettingColumns, Sizes
from dejavubench.records import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class TotalRow:
    """Fig 25 and heat map: one row per point and arm."""

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep."]
    sizes: Sizes
    arm: ArmColumns
    samples: Annotated[int, "Measured rounds."]
    total_ms: Annotated[float | None, "Time of the whole request, median over rounds."]
    total_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    total_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    overhead: OverheadColumns
    noise: NoiseColumns
    told_from_noise: Annotated[
        bool | None,
        "Whether the overhead is told from noise; missing for a baseline and if undecided.",
    ] = None
    setting: SettingColumns = field(default_factory=SettingColumns)


def make_total_rows(run: Run) -> list[TotalRow]:
    """Return the rows of a run; none if it streamed nothing.

    Raises:
        NothingToDrawError: no overhead is known, as there is no baseline.
    """
    rows = []
    for point, arm in list_shown_arms(run):
        cost = estimate_cost(point, arm) if arm.info.role == "streaming" else None
        total, low, high = split_estimate(estimate_series(arm.times.total))
        rows.append(
            TotalRow(
                run=run.path.name,
                point=point.info.id,
                sizes=Sizes.of_point(point.info),
                arm=make_arm_columns(run, arm),
                samples=len(arm.times.total),
                total_ms=total,
                total_low_ms=low,
                total_high_ms=high,
                overhead=OverheadColumns(
                    *split_estimate(None if cost is None else cost.estimate, 100)
                ),
                noise=make_noise_columns(point),
                told_from_noise=is_told_from_noise(cost),
                setting=SettingColumns.of_point(point.info),
            )
        )
    streaming_rows = [row for row in rows if row.arm.role == "streaming"]
    if streaming_rows and all(row.overhead.overhead_pct is None for row in streaming_rows):
        raise NothingToDrawError(
            f"{run.path.name}: no baseline was measured, so there is no overhead. Run it again "
            "with --compare."
        )
    return rows if streaming_rows else []


def is_told(row: pd.Series | Mapping[Hashable, Any]) -> bool:
    """Return whether a row's overhead is told from noise; False if that is undecided."""
    # A column without gaps has booleans that are not Python's.
    return row["told_from_noise"] in (True,)
