"""Part of a report: ANSWER, which says in words what the numbers show. It stands first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.answers.judgement import Difference
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.answers.run_answers import ArmAnswer, RunAnswers, find_answers
from dejavubench.analysis.answers.sentences import cost_sentence, pair_sentence
from dejavubench.analysis.answers.summary import write_summary
from dejavubench.analysis.number_texts import format_3_digits, format_ms, format_nbytes
from dejavubench.analysis.tables import ending_part
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import PartContent, ReportPart, RunData
from dejavubench.analysis.tables.row_blocks import make_varying_cells
from dejavubench.analysis.tables.spreads import scale_estimate
from dejavubench.analysis.tables.text_cells import POINT_CELL
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.records import Run
from dejavubench.records.destination_info import NO_STREAMING

COST_QUESTION = "cost"
"""Question of a row about one arm against the baselines."""

COMPARISON_QUESTION = "comparison"
"""Question of a row about two arms."""

MOST_SIZES = 2
"""Sizes and settings that name a point beside its id."""


@dataclass
class AnswerRow:
    """Answers: one row for the cost of each arm at each point, and for each pair of arms.

    A difference is paired: the median over rounds of the ratio of two times, less one. It is told
    from noise if its interval excludes 0 and it exceeds `noise_reach_pct`.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep, such as p000."]
    question: Annotated[str, "cost (arm against the baselines) or comparison (of two arms)."]
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    other: Annotated[str | None, "Arm that it is compared with; missing for a cost."] = None
    samples: Annotated[int | None, "Rounds that the arms have in common."] = None
    difference_pct: Annotated[float | None, "Difference of total_ms."] = None
    difference_low_pct: Annotated[float | None, "Lower end of its 95 % interval."] = None
    difference_high_pct: Annotated[float | None, "Upper end of its 95 % interval."] = None
    noise_reach_pct: Annotated[
        float | None,
        "Largest difference of two identical arms: the farther end of the noise floor.",
    ] = None
    judgement: Annotated[
        str | None,
        "slower, faster, within noise, sign unknown, too few rounds or noise unknown.",
    ] = None
    more_rounds: Annotated[
        int | None, "Rounds that would show the difference, if it stays as it is."
    ] = None
    token_difference_pct: Annotated[float | None, "The same difference of token_ms; of costs."] = (
        None
    )
    token_judgement: Annotated[str | None, "Judgement of the token's difference."] = None
    limited_by: Annotated[
        str | None, "Cause of a cost, not known, or not looked for; missing for comparisons."
    ] = None
    limit_evidence: Annotated[str | None, "Numbers that say so."] = None
    limit_remedy: Annotated[str | None, "Advice on that limit."] = None
    sentence: Annotated[str, "The answer in words."] = ""


def _make_rows(run: str, answers: RunAnswers) -> list[AnswerRow]:
    return [
        *(_make_cost_row(run, answer) for answer in answers.arms),
        *(_make_pair_row(run, pair) for pair in answers.pairs),
    ]


def _make_cost_row(run: str, answer: ArmAnswer) -> AnswerRow:
    row = AnswerRow(
        run, answer.point_id, COST_QUESTION, answer.arm_name, sentence=cost_sentence(answer)
    )
    if answer.cost is not None:
        _add_difference(row, answer.cost)
    if answer.token_cost is not None:
        row.token_difference_pct = 100 * answer.token_cost.estimate.median
        row.token_judgement = str(answer.token_cost.judgement)
    if answer.limit is not None:
        row.limited_by = answer.limit.name
        row.limit_evidence = answer.limit.evidence_text
        row.limit_remedy = answer.limit.remedy or None
    return row


def _make_pair_row(run: str, pair: Pair) -> AnswerRow:
    sentence = pair_sentence(pair)
    row = AnswerRow(
        run, pair.point_id, COMPARISON_QUESTION, pair.arm_name, pair.other_name, sentence=sentence
    )
    _add_difference(row, pair.difference)
    return row


def _add_difference(row: AnswerRow, difference: Difference) -> None:
    row.samples = difference.estimate.sample_count
    interval = scale_estimate(difference.estimate, 100)
    row.difference_pct, row.difference_low_pct, row.difference_high_pct, _ = interval
    row.noise_reach_pct = None if difference.reach is None else 100 * difference.reach
    row.judgement = str(difference.judgement)
    row.more_rounds = difference.more_round_count


# ---- what else a run answers ----


def _label_points(rows: list[Row]) -> dict[str, str]:
    """Return names of the points with the sizes that tell them apart."""
    size_cells = [cell for cell in make_varying_cells(rows) if cell is not POINT_CELL]
    labels = {}
    for row in rows:
        sizes = [f"{cell.heading} {cell.write(row)}" for cell in size_cells[:MOST_SIZES]]
        labels[str(row.point)] = f"{row.point} ({', '.join(sizes)})" if sizes else str(row.point)
    return labels


def _name_unmeasured_arms(rows: Sequence[Row]) -> list[str]:
    """Name the arms that were not measured, with their status."""
    points = {row.point for row in rows}
    point_counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.is_streaming and not row.ok:
            point_counts[row.status, row.arm] = point_counts.get((row.status, row.arm), 0) + 1
    arms: dict[str, list[str]] = {}
    for (status, arm_name), point_count in point_counts.items():
        suffix = f" at {point_count} of {len(points)} points" if len(points) > 1 else ""
        arms.setdefault(status, []).append(f"{arm_name}{suffix}")
    return [
        f"No answer ({status}): {', '.join(arms_and_places)}."
        for status, arms_and_places in arms.items()
    ]


def _describe_model(rows: Sequence[Row]) -> list[str]:
    """Describe how long prompts and tokens take, for a run in which nothing streams."""
    baseline_times = [row.times for row in rows if row.ok and row.arm == NO_STREAMING]
    phase_pairs = [
        (times_of_point.prompt_ms, times_of_point.token_ms) for times_of_point in baseline_times
    ]
    known_pairs = [(prompt, token) for prompt, token in phase_pairs if prompt is not None and token]
    if not known_pairs:
        return []
    suffix = f" over {len(known_pairs)} points" if len(known_pairs) > 1 else ""
    prompts, tokens = (
        _format_range(sorted(phase_times)) for phase_times in zip(*known_pairs, strict=True)
    )
    ratios = sorted(prompt / token for prompt, token in known_pairs)
    return [
        f"Nothing is streamed in this run. A prompt takes {prompts}, a token {tokens}{suffix}.",
        f"A prompt takes as long as {_join_ends(f'{ratio:.3g}' for ratio in ratios)} tokens.",
    ]


def _format_range(sorted_ms: Sequence[float]) -> str:
    return f"{_join_ends(map(format_3_digits, sorted_ms))} ms"


def _join_ends(texts: Iterable[str]) -> str:
    all_texts = list(texts)
    return all_texts[0] if all_texts[0] == all_texts[-1] else f"{all_texts[0]} to {all_texts[-1]}"


def _restart_sentences(rows: Sequence[Row]) -> list[str]:
    """Compare putting a killed run's cache back with computing it again."""
    texts = []
    for row in rows:
        restart = row.restart
        if restart.restored_bytes is None or restart.restore_ms is None:
            continue
        size_text = format_nbytes(restart.restored_bytes)
        restore_text = format_ms(restart.restore_ms)
        text = f"{row.arm}: putting {size_text} back took {restore_text} ms"
        if restart.anew_ms is not None:
            text += f", computing them again takes {format_ms(restart.anew_ms)} ms"
        texts.append(f"{text}.")
    return texts


def _handover_sentences(rows: Sequence[Row]) -> list[str]:
    """Describe how long a hand-over takes. Its sources stop there, so it has no baseline."""
    is_sweep = len({row.point for row in rows}) > 1
    texts = []
    for row in rows:
        if row.handover.handover_ms is not None:
            name = f"{row.point} {row.arm}" if is_sweep else row.arm
            times = row.handover
            text = (
                f"{name}: the sinks have their first token {format_ms(times.handover_ms)} ms after "
                "the sources' last computation."
            )
            if times.handover_floor_ms is not None:
                text += (
                    f" The floor is {format_ms(times.handover_floor_ms)} ms: the bytes left at the "
                    "rate of the link, and one step."
                )
            texts.append(
                f"{text} A hand-over has no arm without streaming, so its cost is unknown."
            )
    return texts


def _explain_missing_rounds(run: Run, rows: Sequence[Row]) -> list[str]:
    """Explain what is missing for an answer, and which command measures it."""
    point_count = len({row.point for row in rows})
    suffix = f" at any of {point_count} points" if point_count > 1 else ""
    arm_names = ", ".join(dict.fromkeys(row.arm for row in rows))
    return [
        f"No answer: no arm has a complete measured round{suffix}. Missing: {arm_names}.",
        *(note.text for note in ending_part.note_continue(run.last_session)),
    ]


def _explain_words(rows: Sequence[Row], sentences: Sequence[str]) -> str:
    """Return the legend: an arm's name, when chunks on disk count, and noise if it is named."""
    measured_rows = [row for row in rows if row.is_streaming and row.ok and row.level]
    # Sentences begin with the default level.
    measured_rows.sort(key=lambda row: row.level != DEFAULT_LEVEL)
    if not measured_rows:
        return ""
    arm = measured_rows[0]
    durability = f", {arm.durability}" if arm.durability else ""
    text = f"{arm.arm}: to {arm.mode}, level {arm.level}{durability}"
    # The name of an arm says its durability only where there are several, and not the default one.
    with_suffix = {row.mode for row in measured_rows if "/" in row.arm}
    unnamed_durabilities = {
        row.arm if row.mode in with_suffix else row.mode: row.durability
        for row in measured_rows
        if row.durability and "/" not in row.arm and row.mode != arm.mode
    }
    texts = (f"; {name}: {durability}" for name, durability in unnamed_durabilities.items())
    text += f"{''.join(texts)}."
    if any("noise" in sentence for sentence in sentences):
        text += " Noise: how far two arms without streaming differ."
    return text


def _make_content(run_data: RunData) -> PartContent:
    rows = run_data.reached_rows
    if not rows:
        return PartContent(_explain_missing_rounds(run_data.run, run_data.rows))
    answers = find_answers(
        run_data.run, run_data.points, run_data.hosts, run_data.chunk_files.bills
    )
    handover_sentences = _handover_sentences(rows)
    # Arms of a hand-over have no baseline, so a summary of costs could only say so.
    answer_sentences = [] if handover_sentences else write_summary(answers, _label_points(rows))
    sentences = [
        *_restart_sentences(rows),
        *handover_sentences,
        *answer_sentences,
        *_name_unmeasured_arms(rows),
    ]
    if not any(row.is_streaming for row in rows):
        sentences = _describe_model(rows)
    return PartContent(
        sentences=sentences,
        rows=list(_make_rows(run_data.run.path.name, answers)),
        legend=_explain_words(rows, sentences),
    )


ANSWER = ReportPart("answers", "ANSWER", _make_content, row=AnswerRow)
