"""Samples of an arm in A and in B, and the changes of its time and overhead that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dejavubench.analysis.comparison.matching import CellPair
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.comparison.timings import Timing, make_baseline_timing, make_timing
from dejavubench.analysis.facts.samples import PointSamples
from dejavubench.analysis.numbers.round_changes import (
    Change,
    RoundSample,
    compute_paired_change,
    compute_unpaired_change,
    make_median_sample,
)
from dejavubench.records import ArmInfo, PointInfo

RunSamples = Sequence[Mapping[str, PointSamples]]
"""Samples of several runs by point."""


@dataclass(frozen=True)
class PairedSamples:
    """A quantity in A and in B, in logarithms.

    Attributes:
        ratio: of B over A, where the rounds or runs of both are paired. None: they are apart.
    """

    a: RoundSample
    b: RoundSample
    ratio: RoundSample | None = None

    def compute_change(self, confidence: float) -> Change:
        """Return the change from A to B, paired where common rounds allow it.

        Args:
            confidence: level of the interval, as a fraction.
        """
        if self.ratio is None:
            return compute_unpaired_change(self.a, self.b, confidence)
        return compute_paired_change(self.ratio, confidence)


@dataclass(frozen=True)
class ArmChanges:
    """The samples of one pair of arms; their intervals wait for the number of judged rows.

    Attributes:
        rounds: measured rounds of A and of B, in all runs.
        overhead: None for baselines, and without one.
        baseline: time of the point's baselines.
    """

    pair: CellPair
    rounds: tuple[int, int]
    time: PairedSamples
    overhead: PairedSamples | None
    baseline: PairedSamples | None


class _Cell(NamedTuple):
    """One arm of one run, with the baselines of its point if it has any."""

    arm: Timing
    base: Timing | None

    def sample_time(self) -> RoundSample | None:
        return self.arm.own_sample(sorted(self.arm.rounds))

    def sample_overhead(self) -> RoundSample | None:
        shared_rounds = sorted(self.arm.rounds & self.base.rounds) if self.base else []
        return (
            self.arm.ratio_sample(self.base, shared_rounds) if self.base and shared_rounds else None
        )


def compare_arms(
    a: RunSamples, b: RunSamples, pair: CellPair, metric: Metric, pairing: Pairing
) -> ArmChanges | None:
    """Return the samples of one pair of arms; None where A or B did not measure the metric.

    Args:
        a, b: samples of each run of A and of B; pairs of runs have equal places.
    """
    cells_a = _find_cells(a, pair.point_a, pair.arm_a, metric)
    cells_b = _find_cells(b, pair.point_b, pair.arm_b, metric)
    if cells_a is None or cells_b is None:
        return None
    if pairing is Pairing.ROUNDS:
        # A and B are arms of one run here, so each has a single cell.
        return _compare_rounds(pair, cells_a[0], cells_b[0])
    combine = _join_turns if pairing is Pairing.TURNS else _join_apart
    paired_times = combine(
        [cell.sample_time() for cell in cells_a], [cell.sample_time() for cell in cells_b]
    )
    if paired_times is None:
        return None
    rounds = [sum(len(cell.arm.rounds) for cell in cells) for cells in (cells_a, cells_b)]
    return ArmChanges(
        pair,
        (rounds[0], rounds[1]),
        paired_times,
        combine(
            [cell.sample_overhead() for cell in cells_a],
            [cell.sample_overhead() for cell in cells_b],
        ),
        combine(
            [_sample_baseline_time(cell) for cell in cells_a],
            [_sample_baseline_time(cell) for cell in cells_b],
        ),
    )


def _find_cells(
    runs: RunSamples, point: PointInfo, arm: ArmInfo | None, metric: Metric
) -> list[_Cell] | None:
    """Return the cell of each run; None where a run lacks it or measured it wrongly."""
    cells = [_find_cell(points[point.id], arm, metric) for points in runs]
    measured_cells = [cell for cell in cells if cell is not None]
    return measured_cells if len(measured_cells) == len(cells) else None


def _find_cell(point: PointSamples, arm: ArmInfo | None, metric: Metric) -> _Cell | None:
    base = make_baseline_timing(point, metric)
    if arm is None:
        return _Cell(base, None) if base and base.rounds else None
    samples = point.arms.get(arm.name)
    if samples is None or samples.why_failed is not None:
        return None
    timing = make_timing(samples, metric)
    # A baseline that was asked for by its name is an arm like others, but has no overhead.
    own_base = base if samples.info.is_streaming else None
    return _Cell(timing, own_base) if timing and timing.rounds else None


def _sample_baseline_time(cell: _Cell) -> RoundSample | None:
    return (
        cell.base.own_sample(sorted(cell.base.rounds)) if cell.base and cell.base.rounds else None
    )


def _compare_rounds(pair: CellPair, a: _Cell, b: _Cell) -> ArmChanges | None:
    """Compare two arms of one point round by round; their baselines are the same and cancel."""
    rounds = sorted(a.arm.rounds & b.arm.rounds)
    if not rounds:
        return None
    time_a, time_b = a.arm.own_sample(rounds), b.arm.own_sample(rounds)
    ratio = b.arm.ratio_sample(a.arm, rounds)
    if time_a is None or time_b is None or ratio is None:
        return None
    overhead_a, overhead_b = a.sample_overhead(), b.sample_overhead()
    overhead = None
    if overhead_a is not None and overhead_b is not None:
        overhead = PairedSamples(overhead_a, overhead_b, ratio)
    round_counts = len(rounds), len(rounds)
    return ArmChanges(pair, round_counts, PairedSamples(time_a, time_b, ratio), overhead, None)


def _join_apart(
    a: Sequence[RoundSample | None], b: Sequence[RoundSample | None]
) -> PairedSamples | None:
    """Return the samples of two single runs."""
    sample_a, sample_b = a[0], b[0]
    if sample_a is None or sample_b is None:
        return None
    return PairedSamples(sample_a, sample_b)


def _join_turns(
    a: Sequence[RoundSample | None], b: Sequence[RoundSample | None]
) -> PairedSamples | None:
    """Return one value per run and one ratio per pair. The runs' own rounds count no more.

    Rounds of one run are alike in what differs from run to run, so pairs of runs are the sample.
    """
    logs = [
        np.array([sample.log for sample in operand if sample is not None]) for operand in (a, b)
    ]
    # A run without the metric would leave its neighbour without a partner.
    if len(logs[0]) < len(a) or len(logs[1]) < len(b):
        return None
    return PairedSamples(
        make_median_sample(logs[0]),
        make_median_sample(logs[1]),
        make_median_sample(logs[1] - logs[0]),
    )
