"""Sentences of a comparison: the result first, then what differs, then what to beware of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.doubts import DOUBT, doubts
from dejavubench.analysis.comparison.gate import GateVerdict, joint_confidence
from dejavubench.analysis.comparison.metric import MEANINGS, Metric
from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.number_texts import signed_percent
from dejavubench.analysis.numbers.round_changes import fewest_rounds
from dejavubench.records import Note, NoteKind
from dejavubench.records.destination_info import NO_STREAMING

FAILED_JOB = NoteKind("failed-job", "error")
UNDECIDED = NoteKind("undecided", "warning")
DECIDING = NoteKind("deciding", "info")
PAIRING = NoteKind("pairing", "info")
CONFIDENCE = NoteKind("confidence", "info")
TIMES = NoteKind("compared-times", "info")
ONE_ALONE = NoteKind("one-alone", "info")
"""Kinds of a comparison's notes."""

KINDS = (FAILED_JOB, UNDECIDED, DOUBT, DECIDING, PAIRING, TIMES, CONFIDENCE, ONE_ALONE)
"""Kinds of notes on a comparison."""

PAIRINGS = {
    Pairing.ROUNDS: "Both arms ran in every round, so times are paired round by round.",
    Pairing.TURNS: (
        "The runs took turns. Neighbours are a pair, and the pairs are the sample. So intervals "
        "hold what differs from run to run."
    ),
    Pairing.APART: (
        "One run each, at different times. Overheads are judged, from which the machine's state "
        "cancels. Intervals of times do not hold what differs from run to run."
    ),
}
"""How samples of A and B were paired, in words."""


HOW_NONE_IS_MADE = "The row none is both baselines together: their geometric mean in each round."

HOW_MEDIANS_ARE_MADE = (
    "Medians are of logarithms, so those of an even number of rounds differ slightly from "
    "process's."
)

SIGN = "A change above 0 means that B is slower, or that its streaming costs more."


def title(comparison: Comparison) -> str:
    """Return the heading: what is compared, in which metric."""
    what = comparison.compared
    subject = "B against A" if what is None else f"{what.name} {what.b} against {what.a}"
    return f"{subject}: {MEANINGS[comparison.metric]}"


def operand_line(operand: Operand) -> str:
    """Return one line on an operand: its folders, its program and its start."""
    header, where = operand.header, operand.header.where
    words = [
        where.source_revision and f"source {where.source_revision}",
        header.started_utc,
    ]
    return f"{operand.name}: {operand.title}, {', '.join(word for word in words if word)}"


def result(comparison: Comparison) -> str:
    """Return the result in one sentence or two, with the arms that it rests on."""
    judged = [row for row in comparison.rows if row.gate.judged_by is not None]
    listed = partial(_list_changes, several=several_points(comparison))
    if not comparison.gated:
        return _without_gate(judged, listed)
    limit = f"{100 * comparison.limit:g} %"
    match comparison.verdict:
        case GateVerdict.REGRESSION:
            worse = [row for row in judged if row.gate.verdict is GateVerdict.REGRESSION]
            return f"REGRESSION: slower by more than {limit}: {listed(worse)}."
        case GateVerdict.PASS:
            return f"PASS: no arm is slower by more than {limit}: {listed(judged)}."
        case GateVerdict.UNRESOLVED:
            open_rows = [row for row in judged if row.gate.verdict is GateVerdict.UNRESOLVED]
            return f"UNRESOLVED: may be slower by more than {limit}: {listed(open_rows)}."


def _without_gate(
    judged: Iterable[ComparisonRow], listed: Callable[[Sequence[ComparisonRow]], str]
) -> str:
    slower: list[ComparisonRow] = []
    faster: list[ComparisonRow] = []
    too_few: list[ComparisonRow] = []
    rest: list[ComparisonRow] = []
    for row in judged:
        _, low, high = judged_change(row)
        # A reason says why the interval tells nothing, such as another baseline.
        if _has_too_few(row):
            too_few.append(row)
        elif low is None or high is None or row.gate.reason is not None:
            rest.append(row)
        else:
            (slower if low > 0 else faster if high < 0 else rest).append(row)
    named = (
        ("Slower", slower),
        ("Faster", faster),
        ("No change shown", rest),
        ("Undecided, too few rounds or pairs", too_few),
    )
    return " ".join(f"{word}: {listed(rows)}." for word, rows in named if rows)


def _has_too_few(row: ComparisonRow) -> bool:
    """Return whether a row has too few rounds or pairs for an interval of its confidence."""
    samples = min(row.samples_a, row.samples_b) if row.pairs is None else row.pairs
    return samples < _count_needed(row)


def _count_needed(row: ComparisonRow) -> int:
    assert row.gate.confidence_pct is not None
    return fewest_rounds(row.gate.confidence_pct / 100)


def several_points(comparison: Comparison) -> bool:
    """Return whether rows must name their point to be told apart."""
    return len({row.point_b for row in comparison.rows}) > 1


def _name(row: ComparisonRow, several: bool) -> str:
    return f"{row.point_b} {row.arm}" if several else row.arm


def _list_changes(rows: Sequence[ComparisonRow], several: bool) -> str:
    return "; ".join(_change_text(row, _name(row, several)) for row in rows)


def _change_text(row: ComparisonRow, name: str) -> str:
    middle, low, high = judged_change(row)
    if middle is None:
        return name
    ends = ""
    if low is not None and high is not None:
        word = "range " if _has_too_few(row) else ""
        ends = f" ({word}{signed_percent(low)} to {signed_percent(high)})"
    return f"{name} {signed_percent(middle)} %{ends}"


def judged_change(row: ComparisonRow) -> tuple[float | None, float | None, float | None]:
    """Return the change that the gate judges, with its ends, in percent."""
    if row.gate.judged_by == "overhead" and row.overhead.overhead_change_pct is not None:
        change = row.overhead
        return (
            change.overhead_change_pct,
            change.overhead_change_low_pct,
            change.overhead_change_high_pct,
        )
    time = row.time
    return time.time_change_pct, time.time_change_low_pct, time.time_change_high_pct


def notes(comparison: Comparison) -> list[Note]:
    """Return the notes, those that qualify the result first."""
    several = several_points(comparison)
    reasons: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.gate.reason is not None:
            reasons.setdefault(row.gate.reason, []).append(_name(row, several))
    return [
        *(FAILED_JOB.note(complaint) for complaint in comparison.complaints),
        *(
            UNDECIDED.note(f"{', '.join(dict.fromkeys(arms))}: {reason}.")
            for reason, arms in reasons.items()
        ),
        *(note for operand in _operands(comparison) for note in doubts(operand)),
        *_deciding(comparison),
        PAIRING.note(PAIRINGS[comparison.pairing]),
        *([TIMES.note(_how_times_are_made(comparison))] if not _of_tails(comparison) else []),
        CONFIDENCE.note(f"{SIGN} {_confidence(comparison.rows)}"),
        *(
            ONE_ALONE.note(f"Only {name} has {', '.join(items)}.")
            for name, items in comparison.only.items()
            if items
        ),
    ]


def _of_tails(comparison: Comparison) -> bool:
    return comparison.metric is Metric.P99


def _how_times_are_made(comparison: Comparison) -> str:
    with_none = any(row.arm == NO_STREAMING for row in comparison.rows)
    return " ".join([*([HOW_NONE_IS_MADE] if with_none else []), HOW_MEDIANS_ARE_MADE])


def _operands(comparison: Comparison) -> list[Operand]:
    """Return A and B, or A alone if both are arms or points of the same run."""
    same = [run.path for run in comparison.a.runs] == [run.path for run in comparison.b.runs]
    return [comparison.a] if same else [comparison.a, comparison.b]


def _confidence(rows: Sequence[ComparisonRow]) -> str:
    judged = sum(row.gate.judged_by is not None for row in rows)
    few = [row for row in rows if _has_too_few(row)]
    if few:
        what = "pairs of runs" if few[0].pairing == Pairing.TURNS else "rounds"
        fewer = (
            f"In rows with fewer than {_count_needed(few[0])} {what}, [ ] is a range, no interval."
        )
        if len(few) == len(rows):
            return fewer
        return f"{fewer} {_intervals(rows, judged)}"
    return _intervals(rows, judged)


def _intervals(rows: Sequence[ComparisonRow], judged: int) -> str:
    if judged < 2:
        return "[ ] is a 95 % interval."
    confidence = rows[0].gate.confidence_pct or 0.0
    return (
        f"Each interval holds with {confidence:.4g} %, so all {judged} that are judged hold "
        "together with 95 %."
    )


def _deciding(comparison: Comparison) -> list[Note]:
    """Return a note on the measurement that would decide an unresolved comparison."""
    if not comparison.gated or comparison.verdict is not GateVerdict.UNRESOLVED:
        return []
    if comparison.pairing is Pairing.APART:
        # In turns the baselines are judged, too: each row of the table needs that many pairs.
        pairs = fewest_rounds(joint_confidence(len(comparison.rows)))
        more = f"more rounds, or at least {pairs} runs each that take turns (A B A B)."
    else:
        what = "rounds" if comparison.pairing is Pairing.ROUNDS else "pairs of runs"
        more = f"more {what}. Four times as many halve an interval."
    return [DECIDING.note(f"To decide: {more}")]
