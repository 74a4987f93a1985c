"""Sentences of a comparison: its title, its operands, and the notes that qualify the result."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_result import (
    count_needed_samples,
    has_drifted,
    has_several_points,
    has_too_few,
    name_row,
)
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.doubts import DOUBT, find_noise_warning
from dejavubench.analysis.comparison.gate import GateVerdict, compute_joint_confidence
from dejavubench.analysis.comparison.metric import MEANINGS, Metric
from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.numbers.round_changes import count_fewest_rounds
from dejavubench.records import Note, NoteKind
from dejavubench.records.destination_info import NO_STREAMING

FAILED_JOB = NoteKind("failed-job", "error")
"""Kind of the notes on jobs and arms that failed: their status wins over the gate's."""

UNDECIDED = NoteKind("undecided", "warning")
"""Kind of the notes with the reason why rows are not decided by their interval."""

DECIDING = NoteKind("deciding", "info")
"""Kind of the note on the measurement that would decide the comparison."""

PAIRING = NoteKind("pairing", "info")
"""Kind of the note on how samples of A and B were paired."""

CONFIDENCE = NoteKind("confidence", "info")
"""Kind of the note on the intervals in brackets, and on the sign of a change."""

TIMES = NoteKind("compared-times", "info")
"""Kind of the note on how the times of A and B are made."""

ONE_ALONE = NoteKind("one-alone", "info")
"""Kind of the notes on points and arms that A or B alone has."""

ONE_BASELINE = NoteKind("one-baseline", "info")
"""Kind of the note on a change from one baseline, which is no overhead."""

KINDS = (
    FAILED_JOB,
    UNDECIDED,
    DOUBT,
    DECIDING,
    PAIRING,
    TIMES,
    CONFIDENCE,
    ONE_ALONE,
    ONE_BASELINE,
)
"""Kinds of notes on a comparison."""

PAIRINGS = {
    Pairing.ROUNDS: (
        "Both arms ran in every round, so times are paired round by round. The interval alone "
        "decides. ANSWER asks as well that a difference exceeds the noise of two identical arms, "
        "because it judges many arms and pairs without widening their intervals."
    ),
    Pairing.TURNS: (
        "The runs took turns. Neighbours are a pair, and the pairs are the sample. So intervals "
        "hold what differs from run to run. Times are judged, those of none included, and not the "
        "overhead change."
    ),
    Pairing.APART: (
        "One run each, at different times. Overheads are judged, from which the machine's state "
        "cancels. Intervals of times do not hold what differs from run to run."
    ),
}
"""How samples of A and B were paired, in words."""

HOW_NONE_IS_MADE = "The row none is both baselines together: their geometric mean in each round."
"""Sentence on a table with a row of the baselines, which no single arm of a report equals."""

HOW_MEDIANS_ARE_MADE = (
    "Medians are of logarithms, so those of an even number of rounds differ slightly from "
    "process's."
)
"""Sentence on times that a reader may hold against those of ``process``."""

SIGN_SENTENCE = "A change above 0 means that B is slower, or that its streaming costs more."
"""Sentence on the sign of every change in the table."""


def make_title(comparison: Comparison) -> str:
    """Return the heading: what is compared, in which metric."""
    difference = comparison.compared_difference
    subject = "B against A"
    if difference is not None:
        subject = f"{difference.name} {difference.b} against {difference.a}"
    return f"{subject}: {MEANINGS[comparison.metric]}"


def describe_operand(operand: Operand) -> str:
    """Return one line on an operand: its folders, its program and its start."""
    header = operand.header
    environment = header.facts
    facts = [
        # An installed package knows no revision, and A may be installed where B is a checkout.
        environment.source_revision and f"source {environment.source_revision}",
        header.started_utc,
    ]
    return f"{operand.name}: {operand.title}, {', '.join(fact for fact in facts if fact)}"


def make_notes(comparison: Comparison) -> list[Note]:
    """Return the notes, those that qualify the result first."""
    is_sweep = has_several_points(comparison)
    # A drifted baseline is the reason of every arm of its point: one note names them all.
    reasons: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.gate.reason is not None:
            reasons.setdefault(row.gate.reason, []).append(name_row(row, is_sweep))
    return [
        *(FAILED_JOB.note(complaint) for complaint in comparison.complaints),
        *(
            UNDECIDED.note(f"{', '.join(dict.fromkeys(arms))}: {reason}.")
            for reason, arms in reasons.items()
        ),
        *(
            note
            for operand in _list_distinct_operands(comparison)
            for note in find_noise_warning(operand)
        ),
        *_suggest_measurement(comparison),
        PAIRING.note(PAIRINGS[comparison.pairing]),
        *_note_one_baseline(comparison),
        # A p99 is of pooled tokens: neither of the two sentences on medians holds for it.
        *([TIMES.note(_explain_times(comparison))] if not _is_of_tails(comparison) else []),
        CONFIDENCE.note(f"{SIGN_SENTENCE} {_explain_confidence(comparison.rows)}"),
        *(
            ONE_ALONE.note(f"Only {operand_name} has {', '.join(unmatched_names)}.")
            for operand_name, unmatched_names in comparison.unmatched_names.items()
            if unmatched_names
        ),
    ]


def _note_one_baseline(comparison: Comparison) -> list[Note]:
    """Note why the change from one baseline is not the overhead that the run's report has."""
    # Only arms of one run share the baselines of a report. Its p99 pools the tokens of both.
    if comparison.pairing is not Pairing.ROUNDS or _is_of_tails(comparison):
        return []
    arms = [*comparison.a.list_arms(), *comparison.b.list_arms()]
    streaming_arms = [arm for arm in arms if arm.is_streaming]
    baselines = [arm for arm in comparison.a.header.arms if not arm.is_streaming]
    # Two arms that stream are no cost, and with a single none both numbers are the same.
    if len(streaming_arms) != 1 or len(arms) != 2 or len(baselines) < 2:
        return []
    (baseline,) = (arm for arm in arms if not arm.is_streaming)
    return [
        ONE_BASELINE.note(
            f"This change is relative to {baseline.name} alone. The overhead in the run's report "
            "is relative to both baselines, their geometric mean in each round, so it differs."
        )
    ]


def _is_of_tails(comparison: Comparison) -> bool:
    return comparison.metric is Metric.P99


def _explain_times(comparison: Comparison) -> str:
    has_none = any(row.arm == NO_STREAMING for row in comparison.rows)
    return " ".join([*([HOW_NONE_IS_MADE] if has_none else []), HOW_MEDIANS_ARE_MADE])


def _list_distinct_operands(comparison: Comparison) -> list[Operand]:
    """Return A and B, or A alone if both are arms or points of the same run."""
    # By folders, as A and B were read apart. Twice the same doubts would look like two runs'.
    is_same = [run.path for run in comparison.a.runs] == [run.path for run in comparison.b.runs]
    return [comparison.a] if is_same else [comparison.a, comparison.b]


def _explain_confidence(rows: Sequence[ComparisonRow]) -> str:
    judged_count = sum(row.gate.judged_by is not None for row in rows)
    short_rows = [row for row in rows if has_too_few(row)]
    if short_rows:
        unit = "pairs of runs" if short_rows[0].pairing == Pairing.TURNS else "rounds"
        # All rows have one confidence, so each needs as many rounds as the first one.
        needed_count = count_needed_samples(short_rows[0])
        ranges = (
            f"In rows with fewer than {needed_count} {unit}, brackets hold a range, no interval."
        )
        if len(short_rows) == len(rows):
            return ranges
        return f"{ranges} {_explain_intervals(rows, judged_count)}"
    return _explain_intervals(rows, judged_count)


def _explain_intervals(rows: Sequence[ComparisonRow], judged_count: int) -> str:
    if judged_count < 2:
        return "Brackets hold a 95 % interval."
    confidence = rows[0].gate.confidence_pct or 0.0
    return (
        "Several rows are judged, and each could err. So each interval is wider, one of "
        f"{confidence:.4g} %: all {judged_count} are right together in 95 % of comparisons."
    )


def _suggest_measurement(comparison: Comparison) -> list[Note]:
    """Return a note on the measurement that would decide an unresolved comparison."""
    if not comparison.is_gated or comparison.verdict is not GateVerdict.UNRESOLVED:
        return []
    if comparison.pairing is Pairing.APART:
        # In turns the baselines are judged, too: each row of the table needs that many pairs.
        fewest_pair_count = count_fewest_rounds(compute_joint_confidence(len(comparison.rows)))
        remedy = (
            f"at least {fewest_pair_count} runs each that take turns (A B A B); fewer pairs make "
            "no interval."
        )
        # More rounds measure a baseline that changed more exactly, and leave it changed.
        if not any(has_drifted(row) for row in comparison.rows):
            remedy = f"more rounds, or {remedy}"
    else:
        unit = "rounds" if comparison.pairing is Pairing.ROUNDS else "pairs of runs"
        remedy = f"more {unit}. Four times as many halve an interval."
    status = int(comparison.exit_status)
    return [DECIDING.note(f"The exit status is {status}. To decide: {remedy}")]
