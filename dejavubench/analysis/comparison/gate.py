"""The gate: verdicts of single rows and of a whole comparison, by docs/method/compare.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from dejavubench.analysis.answers.judgement import find_side
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.analysis.numbers.round_changes import Change, count_fewest_rounds
from dejavubench.analysis.numbers.stats import CONFIDENCE, Verdict
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.errors import ExitStatus


class GateVerdict(StrEnum):
    """Relation of a change to the limit."""

    PASS = "pass"
    REGRESSION = "regression"
    UNRESOLVED = "unresolved"


MOST_DRIFT = 0.05
"""Change of the baseline from which on the overheads of two runs apart say nothing of a change.

An overhead is a share of the baseline. It rises where the baseline alone gets faster.
"""


DRIFTED = "none itself changed by"
"""First words of the reason of an arm whose baseline changed; the headline looks for them."""


@dataclass(frozen=True)
class GateJudgement:
    """A verdict, and the reason where the interval alone does not give it."""

    verdict: GateVerdict
    reason: str | None = None


def compute_joint_confidence(judged_count: int) -> float:
    """Return the confidence of each of several intervals, so that all hold together with 95 %."""
    # Bonferroni: the chances that single intervals err add up at most.
    return 1 - (1 - CONFIDENCE) / max(1, judged_count)


def judge_by_interval(change: Change, limit: float) -> GateJudgement:
    """Judge a change by its interval alone."""
    if not change.decides:
        fewest_samples = count_fewest_rounds(change.confidence)
        return GateJudgement(
            GateVerdict.UNRESOLVED,
            f"{change.sample_count} of at least {fewest_samples} rounds or pairs",
        )
    if find_side(change.low, change.high, limit) > 0:
        return GateJudgement(GateVerdict.REGRESSION)
    # An interval that holds the limit decides nothing, however close its median is.
    return GateJudgement(GateVerdict.PASS if change.high <= limit else GateVerdict.UNRESOLVED)


def judge_runs_apart(
    time_change: Change | None,
    overhead_change: Change | None,
    baseline_change: Change | None,
    limit: float,
) -> GateJudgement:
    """Judge an arm of two runs that were measured apart, by its overhead.

    The time of a run holds the state of the machine in it, which one run each cannot tell from
    a change. The overhead does not, as long as the baseline is the same.

    Args:
        baseline_change: change of the baselines' time.
    """
    if time_change is None or overhead_change is None or baseline_change is None:
        return GateJudgement(
            GateVerdict.UNRESOLVED,
            "without a baseline, one run each cannot tell a change from the machine's drift",
        )
    judgement = judge_by_interval(overhead_change, limit)
    if judgement.reason is not None:
        return judgement
    # Said of an interval that decides nothing as well: more rounds alone would not help.
    if abs(baseline_change.middle) > MOST_DRIFT:
        return GateJudgement(
            GateVerdict.UNRESOLVED,
            f"{DRIFTED} {format_signed_percent(100 * baseline_change.middle)} %, so overheads do "
            "not compare",
        )
    if (
        judgement.verdict is GateVerdict.PASS
        and find_side(time_change.low, time_change.high, limit) > 0
    ):
        return GateJudgement(
            GateVerdict.UNRESOLVED,
            "its overhead passes, but its time rose: the model or the machine is slower",
        )
    return judgement


def judge_all_rows(verdicts: Iterable[GateVerdict]) -> GateVerdict:
    """Return the verdict of all rows together: one regression is enough, a pass takes all."""
    distinct_verdicts = set(verdicts)
    if GateVerdict.REGRESSION in distinct_verdicts:
        return GateVerdict.REGRESSION
    return GateVerdict.PASS if distinct_verdicts == {GateVerdict.PASS} else GateVerdict.UNRESOLVED


EXIT_STATUSES = {
    GateVerdict.PASS: ExitStatus.OK,
    GateVerdict.UNRESOLVED: ExitStatus.UNRESOLVED,
    GateVerdict.REGRESSION: ExitStatus.WORSE,
}
"""Exit status of each verdict, unless a job or its records failed."""

_VERDICTS_OF_TARGETS = {
    Verdict.MET: GateVerdict.PASS,
    Verdict.UNRESOLVED: GateVerdict.UNRESOLVED,
    Verdict.MISSED: GateVerdict.REGRESSION,
}


def judge_targets(rows: Iterable[Row]) -> tuple[GateVerdict, str]:
    """Judge a single run by its arms' targets; return the verdict and a sentence on it.

    Arms that could not run here count as little as in the run's own status.
    """
    judged_rows = [row for row in rows if row.is_streaming and row.ok]
    # An arm without a verdict, as without a baseline, must not pass the gate.
    target_verdicts = [row.overhead.verdict or Verdict.UNRESOLVED for row in judged_rows]
    verdict = judge_all_rows(
        _VERDICTS_OF_TARGETS[target_verdict] for target_verdict in target_verdicts
    )
    if verdict is GateVerdict.PASS:
        return verdict, "each arm met its target"
    deciding_verdict = Verdict.MISSED if verdict is GateVerdict.REGRESSION else Verdict.UNRESOLVED
    arm_names = [
        row.arm
        for row, target_verdict in zip(judged_rows, target_verdicts, strict=True)
        if target_verdict is deciding_verdict
    ]
    return (
        verdict,
        f"{deciding_verdict}: {', '.join(dict.fromkeys(arm_names)) or 'no arm was measured'}",
    )


JUDGED_BY = {
    Pairing.ROUNDS: "time",
    Pairing.TURNS: "time",
    Pairing.APART: "overhead",
}
"""Change that the gate judges, by how A and B were measured."""
