"""A and B → rows: the change of each arm's time and of its overhead, with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dejavubench.analysis.comparison import differences, gate
from dejavubench.analysis.comparison.change_rows import ComparisonRow, make_row
from dejavubench.analysis.comparison.changes import ArmChanges, compare_arms
from dejavubench.analysis.comparison.comparable import NotComparableError, require_comparable
from dejavubench.analysis.comparison.differences import RunDifference
from dejavubench.analysis.comparison.gate import GateJudgement, GateVerdict
from dejavubench.analysis.comparison.matching import match_operands
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.comparison.pairing import Pairing, choose_pairing
from dejavubench.analysis.number_texts import format_counts
from dejavubench.analysis.numbers.round_changes import Change
from dejavubench.errors import ExitStatus
from dejavubench.records import PointInfo, RunHeader


@dataclass(frozen=True)
class Comparison:
    """A comparison of B with A.

    Attributes:
        compared_difference: the one setting or arm that differs on purpose; None if nothing does.
        differences: everything else in which the runs differ.
        unmatched_names: points and arms that A or B alone has, by its name.
        limit: a fraction; 0 where none was asked for.
        is_gated: whether a limit was asked for.
        complaints: jobs and arms that failed, one line each.
    """

    a: Operand
    b: Operand
    metric: Metric
    pairing: Pairing
    rows: list[ComparisonRow]
    compared_difference: RunDifference | None
    differences: list[RunDifference]
    unmatched_names: dict[str, list[str]]
    limit: float
    is_gated: bool
    complaints: list[str]

    @property
    def verdict(self) -> GateVerdict:
        """The worst verdict of all rows that have one."""
        return gate.judge_all_rows(
            row.gate.verdict for row in self.rows if row.gate.verdict is not None
        )

    @property
    def exit_status(self) -> ExitStatus:
        """The status of the command; a failed job or arm wins over every verdict."""
        if self.complaints:
            return ExitStatus.FAILED
        return gate.EXIT_STATUSES[self.verdict] if self.is_gated else ExitStatus.OK


def compare(a: Operand, b: Operand, metric: Metric, limit: float | None = None) -> Comparison:
    """Compare B with A.

    Args:
        limit: largest change that is no regression, as a fraction; None asks for no gate.

    Raises:
        NotComparableError: the message names what differs.
    """
    require_comparable([*a.runs, *b.runs])
    pairing = choose_pairing(a, b)
    for operand in (a, b):
        _require_alike(operand)
    settings = differences.find_setting_differences(a.header, b.header)
    matching = match_operands(a, b)
    # Only one thing may differ on purpose: with two, a change could come from either.
    compared_difference = differences.require_one(
        [*differences.find_compared_settings(settings), *matching.compared_differences]
    )
    changes = [
        change
        for pair in matching.pairs
        if (change := compare_arms(a.samples, b.samples, pair, metric, pairing)) is not None
    ]
    if not changes:
        raise NotComparableError(
            f"no arm that A and B have in common was measured in {metric} in A and in B"
        )
    rows = make_rows(changes, metric, pairing, limit or 0.0)
    return Comparison(
        a=a,
        b=b,
        metric=metric,
        pairing=pairing,
        rows=rows,
        compared_difference=compared_difference,
        differences=[
            *(difference for difference in settings if difference != compared_difference),
            *_compare_rounds(rows),
            *differences.find_environment_differences(a.header, b.header),
        ],
        unmatched_names=matching.unmatched_names,
        limit=limit or 0.0,
        is_gated=limit is not None,
        # A and B may be arms of one run, whose complaints are then the same.
        complaints=list(dict.fromkeys([*a.list_complaints(), *b.list_complaints()])),
    )


def _compare_rounds(rows: Sequence[ComparisonRow]) -> list[RunDifference]:
    """Return the difference in measured rounds; nothing if there is none."""
    a = format_counts([row.samples_a for row in rows])
    b = format_counts([row.samples_b for row in rows])
    return [RunDifference("setting", "measured rounds", a, b)] if a != b else []


def _require_alike(operand: Operand) -> None:
    """Refuse runs of one operand that differ in settings, points or arms.

    Their spread would hold the difference.
    """
    first_header = operand.header
    for run in operand.runs[1:]:
        run_differences = [
            *differences.find_compared_settings(
                differences.find_setting_differences(first_header, run.header)
            ),
            *differences.find_point_setting_differences(
                first_header,
                run.header,
                *(_list_points_with_settings(header) for header in (first_header, run.header)),
            ),
        ]
        if run_differences or (first_header.points, first_header.arms) != (
            run.header.points,
            run.header.arms,
        ):
            differences_text = "; ".join(map(str, run_differences)) or "points or arms"
            raise NotComparableError(
                f"the runs of {operand.name} differ in {differences_text}: "
                f"{operand.runs[0].path.name} and {run.path.name}"
            )


def _list_points_with_settings(header: RunHeader) -> list[PointInfo]:
    return [header.with_settings(point) for point in header.points]


def make_rows(
    changes: Sequence[ArmChanges], metric: Metric, pairing: Pairing, limit: float
) -> list[ComparisonRow]:
    """Make rows, whose judged intervals all hold together in 95 % of comparisons."""
    # Of runs apart the overheads are judged, so a baseline is not judged unless it is all there is.
    by_overhead = pairing is Pairing.APART and any(change.overhead for change in changes)
    judged_changes = [change for change in changes if change.overhead or not by_overhead]
    confidence = gate.compute_joint_confidence(len(judged_changes))
    rows = []
    for change in changes:
        time_change = change.time.compute_change(confidence)
        overhead_change = change.overhead.compute_change(confidence) if change.overhead else None
        judgement = None
        if change in judged_changes:
            judgement = _judge_row(change, time_change, overhead_change, pairing, limit)
        rows.append(
            make_row(change, metric, pairing, (time_change, overhead_change), judgement, limit)
        )
    return rows


def _judge_row(
    changes: ArmChanges,
    time_change: Change,
    overhead_change: Change | None,
    pairing: Pairing,
    limit: float,
) -> GateJudgement:
    if pairing is not Pairing.APART:
        return gate.judge_by_interval(time_change, limit)
    baseline_change = (
        changes.baseline.compute_change(time_change.confidence) if changes.baseline else None
    )
    return gate.judge_runs_apart(time_change, overhead_change, baseline_change, limit)
