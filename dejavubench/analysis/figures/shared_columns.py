"""Columns that several figures share, and how their values are made from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.facts.arm_destinations import hosts_of, name_destination, run_destinations
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, Quantity
from dejavubench.analysis.numbers import stats
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.records import Run
from dejavubench.records.destination_info import DestinationInfo


@dataclass
class ArmColumns:
    """The arm of a row."""

    arm: Annotated[str, "Name of the arm."]
    mode: Annotated[str, "Destination, or the name of its loopback on one GPU."]
    role: Annotated[str, "baseline, repeat or streaming."]
    level: Annotated[str | None, "Level of DéjàVuLib's optimisations; missing for a baseline."]
    durability: Annotated[str | None, "Condition on which a chunk counts as written."]
    hosts: Annotated[str | None, "Place of the destination relative to the source."]


@dataclass
class NoiseColumns:
    """The second baseline against the first, paired round by round."""

    noise_floor_pct: Annotated[float | None, "Overhead of the second baseline over the first."]
    noise_floor_low_pct: Annotated[float | None, "Lower end of its 95 % interval."]
    noise_floor_high_pct: Annotated[float | None, "Upper end of its 95 % interval."]


@dataclass
class OverheadColumns:
    """TOTAL over the geometric mean of the same round's baselines, less one; median over rounds."""

    overhead_pct: Annotated[float | None, "Overhead; missing for a baseline."]
    overhead_low_pct: Annotated[float | None, "Lower end of its 95 % interval."]
    overhead_high_pct: Annotated[float | None, "Upper end of its 95 % interval."]


def level_label(level_name: str) -> str:
    """Return the paper's label of a level, without its number."""
    return LEVELS[level_name].label if level_name in LEVELS else f"level {level_name}"


def list_shown_arms(run: Run) -> list[tuple[PointSamples, ArmSamples]]:
    """Return arms with measured rounds whose bytes were right."""
    return [
        (point, arm)
        for point in collect(run).values()
        for arm in point.arms.values()
        if arm.times.total and arm.why_failed is None and not point.info.skipped
    ]


def make_arm_columns(run: Run, arm: ArmSamples) -> ArmColumns:
    """Return the columns that say which arm a row is of."""
    info = arm.info
    return ArmColumns(
        arm=info.name,
        mode=name_destination(run, info),
        role=info.role,
        level=info.level,
        durability=info.durability,
        hosts=hosts_of(run, info),
    )


def make_noise_columns(point: PointSamples, quantity: Quantity = "total") -> NoiseColumns:
    """Return a point's noise floor and its interval, in percent; None without a second baseline."""
    return NoiseColumns(*split_estimate(stats.estimate_noise_floor(point.baselines(quantity)), 100))


def split_estimate(
    interval: stats.Estimate | None, scale: float = 1.0
) -> tuple[float | None, float | None, float | None]:
    """Return median and interval; the interval of a single sample is NaN."""
    if interval is None:
        return None, None, None
    # NaN, not None: matplotlib skips it and csv leaves it empty.
    return scale * interval.median, scale * interval.low, scale * interval.high


def estimate_series(series: Mapping[int, float]) -> stats.Estimate | None:
    """Return the median of a series and its interval; None if the series is empty."""
    return stats.estimate(series.values()) if series else None


def is_loopback(hosts: object) -> bool:
    """Return whether a row's hosts say that source and sink share one GPU."""
    return isinstance(hosts, str) and hosts.startswith("loopback")


def destinations_of(runs: Sequence[Run]) -> dict[str, DestinationInfo]:
    """Return the destinations of all runs by mode."""
    return {mode: info for run in runs for mode, info in run_destinations(run).items()}
