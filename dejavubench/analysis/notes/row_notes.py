"""Parts of a report that are notes on its rows: too few rounds, streams that hardly fit."""

from __future__ import annotations

from dejavubench.analysis.breakdown.tails import FEWEST_TOKENS
from dejavubench.analysis.number_texts import format_ms, format_rate
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.cell_texts import format_ceiling_share, has_alone
from dejavubench.analysis.tables.process_columns import NO_ROUNDS, TOO_SHORT, Row
from dejavubench.analysis.tables.report_part import RunData, RunPart, make_notes_alone
from dejavubench.records import Note, NoteKind, Restart
from dejavubench.records.destination_info import NO_STREAMING
from dejavubench.units import format_count_of

LARGEST_ALONE_SHARE = 0.9
"""Share of a request's time that a stream may take alone; above it, the stream hardly fits."""

ARM_WITHOUT_NUMBERS = {
    "SKIPPED": NoteKind("skipped", "info"),
    "FAILED": NoteKind("failed-arm", "error"),
    NO_ROUNDS: NoteKind("no-rounds", "warning"),
    TOO_SHORT: NoteKind("too-short", "warning"),
}
"""Kinds of the notes that say why an arm has no numbers, by the status of its rows."""

RUN_LABEL = NoteKind("run-label", "info")
"""Kind of the note that the user gave the run."""

FEW_ROUNDS = NoteKind("few-rounds", "warning")
"""Kind of the note on intervals of so few rounds that they are wide, or cover less than 95 %."""

FEW_TOKENS = NoteKind("few-tokens", "info")
"""Kind of the note on a p99 that is missing."""

HARDLY_FITS = NoteKind("hardly-fits", "warning")
"""Kind of the note on a stream that takes nearly all of a request's time, or more."""

CEILING_INCOMPLETE = NoteKind("ceiling-incomplete", "info")
"""Kind of the note on shares that are missing because some source measured no ceiling."""

RESTART_CHECKSUM = NoteKind("restart-checksum", "error")
"""Kind of the notes on restored steps with a wrong checksum."""


def note_empty_rows(rows: list[Row]) -> list[Note]:
    """Note why rows have no numbers, each reason once. Points stand for all of their rows."""
    points: dict[str | None, list[Row]] = {}
    for row in rows:
        points.setdefault(row.point, []).append(row)
    index_by_point = {point_id: point_index for point_index, point_id in enumerate(points)}
    labels_by_reason: dict[tuple[str, str | None], list[str | int]] = {}
    for point_id, rows_of_point in points.items():
        reasons = [None if row.ok else (row.status, row.reason) for row in rows_of_point]
        # All arms for one reason: the point's name is enough.
        for_all_arms = reasons[0] is not None and point_id is not None and len(set(reasons)) == 1
        for row, reason in zip(rows_of_point, reasons, strict=True):
            labels = labels_by_reason.setdefault(reason, []) if reason is not None else []
            if not for_all_arms:
                labels.append(" ".join(text for text in (point_id, row.arm) if text))
            elif index_by_point[point_id] not in labels:
                labels.append(index_by_point[point_id])
    point_names = [str(point_id) for point_id in points]
    return [
        ARM_WITHOUT_NUMBERS[status].note(
            f"{status}: {reason} ({', '.join(_join_labels(labels, point_names))})"
        )
        for (status, reason), labels in labels_by_reason.items()
    ]


def _join_labels(labels: list[str | int], point_names: list[str]) -> list[str]:
    """Return places in words. Three or more numbers of points in a row become ``p003 to p008``."""
    texts: list[str] = []
    start_index = 0
    while start_index < len(labels):
        first_label = labels[start_index]
        last_index = start_index
        if isinstance(first_label, str):
            texts.append(first_label)
        else:
            # Numbers that rise by one with their places are a range.
            while (
                last_index + 1 < len(labels)
                and labels[last_index + 1] == first_label + last_index + 1 - start_index
            ):
                last_index += 1
            group = point_names[first_label : first_label + last_index - start_index + 1]
            texts += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else group
        start_index = last_index + 1
    return texts


def _note_tight_streams(rows: list[Row]) -> list[Note]:
    """Name arms whose stream alone takes nearly all of a request's time, or more."""
    requests = {row.point: row.times.total_ms for row in rows if row.arm == NO_STREAMING}
    is_sweep = len({row.point for row in rows}) > 1
    notes = []
    for row in rows:
        request_ms = requests.get(row.point)
        alone_ms = row.rates.alone_ms
        if (
            not has_alone(row)
            or not request_ms
            or not alone_ms
            or alone_ms < LARGEST_ALONE_SHARE * request_ms
        ):
            continue
        share = f", {format_ceiling_share(row)}" if row.rates.ceiling_share_pct is not None else ""
        fit_text = (
            "does not fit behind the model"
            if alone_ms > request_ms
            else "hardly fits behind the model: a slower round ends in a drain"
        )
        gb_per_s = format_rate(row.rates.alone_gb_per_s, 2)
        notes.append(
            HARDLY_FITS.note(
                f"{f'{row.point} ' * is_sweep}{row.arm} {fit_text}. Its stream alone takes "
                f"{format_ms(alone_ms)} ms "
                f"({gb_per_s} GB/s{share}), a request takes {format_ms(request_ms)} ms."
            )
        )
    return notes


def _note_missing_ceilings(rows: list[Row]) -> list[Note]:
    """Note that shares of a ceiling are missing: a sum over some sources bounds no other one."""
    timed_rates = [row.rates for row in rows if row.rates.alone_gb_per_s is not None]
    if any(rates.ceiling is not None and rates.ceiling_share_pct is None for rates in timed_rates):
        return [
            CEILING_INCOMPLETE.note(
                "No share of the ceiling is shown: not every source measured the ceiling."
            )
        ]
    return []


def note_few_rounds(rows: list[Row]) -> list[Note]:
    """Warn of intervals from so few rounds that they are wide, or cover less than 95 %."""
    round_counts = [row.times.samples for row in rows if row.times.samples]
    if not round_counts or min(round_counts) >= stats.FEW_ROUND_COUNT:
        return []
    rounds = f"Only {format_count_of(min(round_counts), 'round')}"
    if min(round_counts) < stats.COVERING_ROUND_COUNT:
        need_text = f"a 95 % interval needs {stats.COVERING_ROUND_COUNT}"
        return [FEW_ROUNDS.note(f"{rounds}: {need_text}. Give more --rounds, or --precision.")]
    return [FEW_ROUNDS.note(f"{rounds}: intervals are wide. Give more --rounds, or --precision.")]


def _note_few_tokens(rows: list[Row]) -> list[Note]:
    """Note why a p99 is missing."""
    token_counts = [row.tails.token_samples for row in rows if row.tails.token_samples]
    if not token_counts or min(token_counts) >= FEWEST_TOKENS:
        return []
    return [
        FEW_TOKENS.note(
            f"Only {min(token_counts)} tokens: a p99 needs {FEWEST_TOKENS}. Give more --rounds, or "
            "a larger --output-len."
        )
    ]


def _note_label(run_data: RunData) -> list[Note]:
    label = run_data.run.header.note
    return [RUN_LABEL.note(f"note: {label}")] if label else []


def _note_wrong_checksums(run_data: RunData) -> list[Note]:
    return [
        RESTART_CHECKSUM.note(step)
        for _, restart in run_data.run.records_of(Restart)
        for step in restart.wrong
    ]


# ---- the parts ----

LABEL = RunPart("label", "the run's own note", make_notes_alone(_note_label), (RUN_LABEL,))
EMPTY_ARMS = RunPart(
    "empty-arms",
    "arms without numbers",
    make_notes_alone(lambda run_data: note_empty_rows(run_data.rows)),
    tuple(ARM_WITHOUT_NUMBERS.values()),
)
FEW_SAMPLES = RunPart(
    "few-samples",
    "too few rounds or tokens",
    make_notes_alone(
        lambda run_data: [*note_few_rounds(run_data.rows), *_note_few_tokens(run_data.rows)]
    ),
    (FEW_ROUNDS, FEW_TOKENS),
)
FIT = RunPart(
    "fit",
    "streams that hardly fit behind the model",
    make_notes_alone(lambda run_data: _note_tight_streams(run_data.rows)),
    (HARDLY_FITS,),
)
CEILING_SHARES = RunPart(
    "ceiling-shares",
    "shares of ceilings that are missing",
    make_notes_alone(lambda run_data: _note_missing_ceilings(run_data.rows)),
    (CEILING_INCOMPLETE,),
)
RESTART_CHECKS = RunPart(
    "restart-checks",
    "checksums of a restart",
    make_notes_alone(_note_wrong_checksums),
    (RESTART_CHECKSUM,),
)
