"""Columns of a comparison: one row for each point and arm that A and B have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from dejavubench.analysis.comparison.changes import ArmChanges
from dejavubench.analysis.comparison.gate import JUDGED_BY, GateJudgement, GateVerdict
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.numbers.round_changes import Change
from dejavubench.analysis.tables.process_columns import SettingColumns, Sizes


@dataclass
class TimeChange:
    """Times of the arm in A and in B, in the metric, and the change from A to B."""

    a_ms: Annotated[float | None, "Time in A, median over rounds; for p99 over all its tokens."] = (
        None
    )
    b_ms: Annotated[float | None, "Time in B, likewise."] = None
    time_change_pct: Annotated[float | None, "b_ms over a_ms, less one; paired if they are."] = None
    time_change_low_pct: Annotated[
        float | None, "Lower end of its interval; of runs apart, it leaves drift between runs out."
    ] = None
    time_change_high_pct: Annotated[float | None, "Upper end of its interval."] = None


@dataclass
class OverheadChange:
    """Time over that of the baselines in the same rounds, less one, and the change from A to B."""

    a_overhead_pct: Annotated[float | None, "Overhead in A, in the metric."] = None
    b_overhead_pct: Annotated[float | None, "Overhead in B, in the metric."] = None
    overhead_change_pct: Annotated[
        float | None, "Ratio of both times over their baselines, less one."
    ] = None
    overhead_change_low_pct: Annotated[float | None, "Lower end of its interval."] = None
    overhead_change_high_pct: Annotated[float | None, "Upper end of its interval."] = None


@dataclass
class GateColumns:
    """Judgement of the row against the limit of --fail-above, which is 0 without it."""

    judged_by: Annotated[
        str | None, "Change that is judged, time or overhead; missing if none is."
    ] = None
    confidence_pct: Annotated[
        float | None, "Confidence of each interval: 95 % that all judged ones hold together."
    ] = None
    limit_pct: Annotated[float | None, "Largest change that is no regression."] = None
    verdict: Annotated[GateVerdict | None, "Verdict: regression, pass or unresolved."] = None
    reason: Annotated[str | None, "Reason for a verdict that the interval alone does not give."] = (
        None
    )


@dataclass
class ComparisonRow:
    """Comparison: one row per point and arm that A and B have in common."""

    point_a: Annotated[str, "Point of A."]
    point_b: Annotated[str, "Point of B."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm, or of both arms; none is all baselines together."]
    metric: Annotated[str, "Time that is compared: total, prompt, token or p99."]
    pairing: Annotated[str, "Kind of pairs: rounds or turns; apart if there are none."]
    samples_a: Annotated[int, "Measured rounds of A, of all its runs."]
    samples_b: Annotated[int, "Measured rounds of B, of all its runs."]
    pairs: Annotated[int | None, "Pairs of rounds or of runs; missing if there are none."] = None
    time: TimeChange = field(default_factory=TimeChange)
    overhead: OverheadChange = field(default_factory=OverheadChange)
    gate: GateColumns = field(default_factory=GateColumns)
    setting: SettingColumns = field(default_factory=SettingColumns)


def make_row(
    changes: ArmChanges,
    metric: Metric,
    pairing: Pairing,
    estimates: tuple[Change, Change | None],
    judgement: GateJudgement | None,
    limit: float,
) -> ComparisonRow:
    """Make the row of one pair of arms.

    Args:
        estimates: changes of the time and of the overhead.
        judgement: None if the row is not judged.
    """
    time_change, overhead_change = estimates
    row = ComparisonRow(
        point_a=changes.pair.point_a.id,
        point_b=changes.pair.point_b.id,
        sizes=Sizes.of_point(changes.pair.point_b),
        arm=changes.pair.arm_name,
        metric=str(metric),
        pairing=str(pairing),
        samples_a=changes.rounds[0],
        samples_b=changes.rounds[1],
        pairs=None if pairing is Pairing.APART else time_change.sample_count,
        setting=SettingColumns.of_point(changes.pair.point_b),
    )
    # Samples are logarithms, of which the median is turned back into a time or a ratio.
    row.time = TimeChange(
        math.exp(changes.time.a.log), math.exp(changes.time.b.log), *_to_percent(time_change)
    )
    if changes.overhead is not None:
        row.overhead = OverheadChange(
            100 * math.expm1(changes.overhead.a.log),
            100 * math.expm1(changes.overhead.b.log),
            *_to_percent(overhead_change),
        )
    row.gate = GateColumns(confidence_pct=100 * time_change.confidence, limit_pct=100 * limit)
    if judgement is not None:
        row.gate.judged_by = JUDGED_BY[pairing]
        row.gate.verdict = judgement.verdict
        row.gate.reason = judgement.reason
    return row


def _to_percent(change: Change | None) -> tuple[float | None, float | None, float | None]:
    """Return a change and the ends of its interval in percent; None where they are unknown."""
    if change is None:
        return None, None, None
    if math.isnan(change.low):  # a single round or pair
        return 100 * change.middle, None, None
    return 100 * change.middle, 100 * change.low, 100 * change.high
