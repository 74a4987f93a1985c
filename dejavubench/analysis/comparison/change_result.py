"""The result of a comparison in a few sentences, which stands above the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from dejavubench.analysis.answers.difference_texts import format_noise
from dejavubench.analysis.answers.judgement import estimate_noise, find_side, is_within_noise
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_rows import ComparisonRow
from dejavubench.analysis.comparison.differences import MACHINE_DIGEST
from dejavubench.analysis.comparison.gate import DRIFTED, GateVerdict
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.analysis.comparison.timings import QUANTITIES
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.analysis.numbers.round_changes import count_fewest_rounds

ChangePct = tuple[float | None, float | None, float | None]
"""A change and the ends of its interval, in percent; None where they are unknown."""


def describe_result(comparison: Comparison) -> str:
    """Return the result in a few sentences, with the arms that it rests on."""
    judged_rows = [row for row in comparison.rows if row.gate.judged_by is not None]
    # Another machine explains any change, so nobody should read a number before it.
    machine_texts = [
        f"A and B ran on different machines ({difference.a} and {difference.b}), which alone can "
        "make a change."
        for difference in comparison.differences
        if difference.name == MACHINE_DIGEST
    ]
    describe = _describe_verdict if comparison.is_gated else _sort_by_change
    return " ".join([*machine_texts, describe(comparison, judged_rows)])


def _describe_verdict(comparison: Comparison, judged_rows: Sequence[ComparisonRow]) -> str:
    """Return the gate's verdict, with the arms that decided it."""
    list_changes = partial(_list_changes, comparison)
    limit = f"{100 * comparison.limit:g} %"
    match comparison.verdict:
        case GateVerdict.REGRESSION:
            slower_rows = [row for row in judged_rows if row.gate.verdict is GateVerdict.REGRESSION]
            return f"REGRESSION: slower by more than {limit}: {list_changes(slower_rows)}."
        case GateVerdict.PASS:
            return f"PASS: no arm is slower by more than {limit}: {list_changes(judged_rows)}."
        case GateVerdict.UNRESOLVED:
            open_rows = [row for row in judged_rows if row.gate.verdict is GateVerdict.UNRESOLVED]
            drifted_rows = [row for row in open_rows if has_drifted(row)]
            undrifted_rows = [row for row in open_rows if not has_drifted(row)]
            texts = [_describe_drift(comparison, drifted_rows)] if drifted_rows else []
            if undrifted_rows:
                texts.append(f"may be slower by more than {limit}: {list_changes(undrifted_rows)}.")
            return f"UNRESOLVED: {' '.join(texts)}"


def _sort_by_change(comparison: Comparison, judged_rows: Iterable[ComparisonRow]) -> str:
    """Sort the arms by what their intervals show."""
    list_changes = partial(_list_changes, comparison)
    drifted_rows: list[ComparisonRow] = []
    slower_rows: list[ComparisonRow] = []
    faster_rows: list[ComparisonRow] = []
    short_rows: list[ComparisonRow] = []
    unchanged_rows: list[ComparisonRow] = []
    for row in judged_rows:
        _, low, high = choose_judged_change(row)
        # A reason says why the interval tells nothing, such as another baseline.
        if has_too_few(row):
            short_rows.append(row)
        elif has_drifted(row):
            drifted_rows.append(row)
        elif low is None or high is None or row.gate.reason is not None:
            unchanged_rows.append(row)
        else:
            side = find_side(low, high)
            (slower_rows if side > 0 else faster_rows if side < 0 else unchanged_rows).append(row)
    sorted_rows = (
        ("Slower", slower_rows),
        ("Faster", faster_rows),
        ("No change shown", unchanged_rows),
        ("Unresolved, too few rounds or pairs", short_rows),
    )
    texts = [f"Unresolved: {_describe_drift(comparison, drifted_rows)}"] if drifted_rows else []
    texts += [f"{word}: {list_changes(rows)}." for word, rows in sorted_rows if rows]
    return " ".join(texts)


def has_drifted(row: ComparisonRow) -> bool:
    """Return whether the baseline changed so much that the row's overheads do not compare."""
    return row.gate.reason is not None and row.gate.reason.startswith(DRIFTED)


def _describe_drift(comparison: Comparison, drifted_rows: Sequence[ComparisonRow]) -> str:
    """Describe what the times of these arms did: their overheads do not compare."""
    reason = str(drifted_rows[0].gate.reason)
    point_ids = {row.point_b for row in drifted_rows}
    if len(point_ids) > 1:
        reason = f"none itself changed at {len(point_ids)} points, so overheads do not compare"
    with_point = has_several_points(comparison)
    times_text = "; ".join(
        _format_change(name_row(row, with_point), _read_time_change(row), has_too_few(row))
        for row in drifted_rows
    )
    return f"{reason}. By time: {times_text}."


def has_too_few(row: ComparisonRow) -> bool:
    """Return whether a row has too few rounds or pairs for an interval of its confidence."""
    samples = min(row.samples_a, row.samples_b) if row.pairs is None else row.pairs
    return samples < count_needed_samples(row)


def count_needed_samples(row: ComparisonRow) -> int:
    """Return the rounds or pairs that an interval of the row's confidence needs."""
    assert row.gate.confidence_pct is not None
    return count_fewest_rounds(row.gate.confidence_pct / 100)


def has_several_points(comparison: Comparison) -> bool:
    """Return whether rows must name their point to be told apart."""
    return len({row.point_b for row in comparison.rows}) > 1


def name_row(row: ComparisonRow, with_point: bool) -> str:
    """Return the arm of a row, after its point if there are several."""
    return f"{row.point_b} {row.arm}" if with_point else row.arm


def _list_changes(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    with_point = has_several_points(comparison)
    return "; ".join(
        _format_change(name_row(row, with_point), choose_judged_change(row), has_too_few(row))
        + _describe_noise(comparison, row)
        for row in rows
    )


def _format_change(name: str, change: ChangePct, too_few: bool) -> str:
    middle, low, high = change
    if middle is None:
        return name
    interval_text = ""
    if low is not None and high is not None:
        prefix = "range " if too_few else ""
        interval_text = f" ({prefix}{format_signed_percent(low)} to {format_signed_percent(high)})"
    return f"{name} {format_signed_percent(middle)} %{interval_text}"


def _describe_noise(comparison: Comparison, row: ComparisonRow) -> str:
    """Name the noise if it hides a change that the interval shows: ANSWER asks for both."""
    quantity = QUANTITIES.get(comparison.metric)
    change, low, high = choose_judged_change(row)
    if comparison.pairing is not Pairing.ROUNDS or quantity is None:
        return ""
    if change is None or low is None or high is None or find_side(low, high) == 0:
        return ""
    noise = estimate_noise(comparison.a.samples[0][row.point_a], quantity)
    if noise is None or not is_within_noise(change / 100, noise):
        return ""
    return f", within the noise of two identical arms ({format_noise(noise)})"


def choose_judged_change(row: ComparisonRow) -> ChangePct:
    """Return the change that the gate judges, with its ends, in percent."""
    if row.gate.judged_by == "overhead" and row.overhead.overhead_change_pct is not None:
        change = row.overhead
        return (
            change.overhead_change_pct,
            change.overhead_change_low_pct,
            change.overhead_change_high_pct,
        )
    return _read_time_change(row)


def _read_time_change(row: ComparisonRow) -> ChangePct:
    change = row.time
    return change.time_change_pct, change.time_change_low_pct, change.time_change_high_pct
