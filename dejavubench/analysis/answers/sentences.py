"""Answers as sentences: about one arm, about two, and about the run's rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dejavubench.analysis.answers.difference_texts import (
    format_cost_and_noise,
    format_median,
    format_noise_of,
    format_with_range,
)
from dejavubench.analysis.answers.judgement import MOST_ROUNDS, Difference, Judgement
from dejavubench.analysis.answers.limits.rules import NOT_KNOWN, NOT_LOOKED_FOR, Limit
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.answers.run_answers import NOT_SHOWN, ArmAnswer
from dejavubench.analysis.number_texts import format_ms, format_unsigned_percent
from dejavubench.analysis.numbers.stats import COVERING_ROUND_COUNT

LEAST_HIDDEN_PCT = 5.0
"""Upper end of an interval, in percent, from which a sentence begins with what could hide."""

TOKENS_MARK = " (tokens)"
"""Follows an arm of which the tokens alone cost something."""


def cost_sentence(answer: ArmAnswer) -> str:
    """Return the sentence on an arm's cost, and on whether it is told from noise."""
    if answer.cost is None:
        return f"{answer.arm_name}: its cost is unknown without an arm none."
    clauses = (
        _describe_cost(answer.cost),
        _describe_others(answer),
        _describe_tokens(answer),
        _describe_target(answer),
    )
    return f"{answer.arm_name}: {''.join(clauses)}."


def _describe_others(answer: ArmAnswer) -> str:
    """Describe what others took, beside a cost: an equal run on an idle machine may cost less."""
    if answer.judgement is not Judgement.SLOWER or answer.others_text is None:
        return ""
    return f", while {answer.others_text}"


def _describe_tokens(answer: ArmAnswer) -> str:
    """Describe a cost of the tokens that the whole request does not show."""
    if answer.cost is None:
        return ""
    if answer.has_token_cost and answer.token_cost is not None:
        token_cost, noise = format_cost_and_noise(answer.token_cost)
        return f", but its tokens cost {token_cost}, beyond their noise ({noise})"
    if not proposes_rounds(answer):
        return ""
    cost_text = format_median(answer.cost)
    more_round_count = answer.cost.more_round_count
    return f"; about {more_round_count:,} more rounds would show a cost of {cost_text}"


def proposes_rounds(answer: ArmAnswer) -> bool:
    """Return whether the sentence on a cost says how many more rounds would show it."""
    if answer.cost is None or answer.judgement not in NOT_SHOWN or answer.has_token_cost:
        return False
    return answer.cost.more_round_count is not None and answer.median > 0


def _describe_cost(cost: Difference) -> str:
    text = format_with_range(cost)
    match cost.judgement:
        case Judgement.WITHIN_NOISE | Judgement.OPEN:
            return _describe_no_cost(cost)
        case Judgement.SLOWER:
            shown_cost, noise = format_cost_and_noise(cost)
            return f"{shown_cost}: a cost, beyond this machine's noise ({noise})"
        case Judgement.FASTER:
            return (
                f"{text}, noise {format_noise_of(cost)}: faster than without streaming. Something "
                "else differs between these arms"
            )
        case Judgement.TOO_FEW:
            return f"{text}: undecided, as an interval needs {COVERING_ROUND_COUNT} rounds"
        case Judgement.NOISE_UNKNOWN:
            return f"{text}: undecided, as the noise is unknown without a second arm none"


def _describe_no_cost(cost: Difference) -> str:
    """Describe an arm without a shown cost; where a large one could hide, how large comes first."""
    text = format_with_range(cost)
    noise = format_noise_of(cost)
    high_pct = 100 * cost.estimate.high
    if high_pct >= LEAST_HIDDEN_PCT:
        # The arm's own interval bounds its cost. The noise says only why it is so wide.
        largest_hidden = f"{format_unsigned_percent(high_pct)} %"
        measured_text = text.replace(" (", ", ").removesuffix(")")
        return (
            f"no cost shown; one of up to {largest_hidden} could hide (measured {measured_text}; "
            f"this machine's noise {noise})"
        )
    if cost.judgement is Judgement.OPEN:
        return f"{text}, noise {noise}: the interval contains 0, so no cost is shown"
    return f"{text}, within this machine's noise ({noise}): no cost shown"


def _describe_target(answer: ArmAnswer) -> str:
    if answer.target is None or answer.verdict is None:
        return ""
    return f"; target ≤ {100 * answer.target:g} %: {answer.verdict}"


def pair_sentence(pair: Pair) -> str:
    """Return the sentence that ranks two arms, or that says that they cannot be ranked."""
    text = f"{pair.arm_name} against {pair.other_name}: {format_with_range(pair.difference)}"
    judgement = pair.difference.judgement
    if judgement.is_shown:
        faster_arm_name = pair.arm_name if judgement is Judgement.FASTER else pair.other_name
        return f"{text}: {faster_arm_name} is faster."
    return f"{text}: cannot be ranked{_describe_rounds_needed(pair.difference)}."


def _describe_rounds_needed(difference: Difference) -> str:
    if difference.judgement is Judgement.TOO_FEW:
        return f", as an interval needs {COVERING_ROUND_COUNT} rounds"
    if difference.judgement is Judgement.NOISE_UNKNOWN:
        return ", as the noise is unknown without a second arm none"
    more_round_count = difference.more_round_count
    reason = ""
    # An interval without 0 in it looks like a ranking.
    if difference.judgement is Judgement.WITHIN_NOISE:
        reason = f", as the difference is below the noise ({format_noise_of(difference)})"
    if more_round_count is None:
        return f"{reason}; {MOST_ROUNDS:,} more rounds would not be enough"
    return f"{reason}; about {more_round_count:,} more rounds would"


def limit_sentence(
    limit: Limit, arm_names: Sequence[str], example_arm_name: str = "", example_label: str = ""
) -> str:
    """Return the sentence on what limits some arms, with the numbers of one of them.

    Args:
        example_arm_name: name of the arm that the numbers are of, if there are several.
        example_label: label of the point that the numbers are of, if there are several.
    """
    arms = ", ".join(arm_names)
    if limit.name == NOT_LOOKED_FOR:
        verb = "show" if len(arm_names) > 1 else "shows"
        return f"limit: {NOT_LOOKED_FOR}, as {arms} {verb} no cost."
    remedy = f" Try {limit.remedy}." if limit.remedy else ""
    where_text = f"at {example_label}" if example_label else ""
    if limit.name == NOT_KNOWN:
        owner_texts = (f"for {example_arm_name}" if example_arm_name else "", where_text)
        prefix = " ".join(filter(None, owner_texts))
        evidence_text = f"{prefix}, {limit.evidence_text}" if prefix else limit.evidence_text
        subject = _name_tokens(arm_names) or arms
        return f"{subject}: cause not known. {evidence_text[0].upper()}{evidence_text[1:]}.{remedy}"
    owner_texts = (f"numbers of {example_arm_name}" if example_arm_name else "", where_text)
    owner = " ".join(filter(None, owner_texts))
    bracketed_owner = f" ({owner})" if owner else ""
    return f"limited by {limit.name}: {arms}{bracketed_owner}: {limit.evidence_text}.{remedy}"


def _name_tokens(marked_names: Sequence[str]) -> str | None:
    """Return ``tokens of disk@3 and mpi@3``; None unless only the tokens of each arm are meant."""
    arm_names = [name.removesuffix(TOKENS_MARK) for name in marked_names]
    are_tokens_alone = all(
        name != arm_name for name, arm_name in zip(marked_names, arm_names, strict=True)
    )
    if len(arm_names) < 2 or not are_tokens_alone:
        return None
    return f"tokens of {', '.join(arm_names[:-1])} and {arm_names[-1]}"


# ---- about the whole run ----


def medians_sentence(answers: Sequence[ArmAnswer], labels: Mapping[str, str]) -> str | None:
    """Explain costs whose sign is not that of the medians in the table of times; None without one.

    Args:
        labels: names of the points; empty if the run has one.
    """
    turned_answers = [answer for answer in answers if answer.is_turned_by_drift]
    if not turned_answers:
        return None
    example = max(turned_answers, key=lambda answer: abs(answer.median))
    assert example.median_totals_ms is not None
    none_ms, arm_ms = example.median_totals_ms
    arm_names = list(dict.fromkeys(answer.arm_name for answer in turned_answers))
    point_text = f" at {labels[example.point_id]}" if labels else ""
    owner = f"of {example.arm_name}{point_text} " if len(arm_names) > 1 or point_text else ""
    return (
        f"{', '.join(arm_names)}: the medians of the times point the other way ({owner}none "
        f"{format_ms(none_ms)} ms, {example.arm_name} {format_ms(arm_ms)} ms). A cost is the "
        "median of the ratios within rounds, from which the machine's drift cancels."
    )


def rounds_sentence(
    continue_command: str, all_round_count: int, added_round_count: int, round_ms: float
) -> str:
    """Return the sentence on the command that measures that many rounds, and on their duration.

    Args:
        continue_command: the command that goes on with the run.
        all_round_count: those measured and those to add.
        added_round_count: those to add.
        round_ms: time of the requests of one round, over all points and arms.
    """
    minutes = math.ceil(added_round_count * round_ms / 60e3)
    return (
        f"For more rounds go on with this run: {continue_command} --rounds {all_round_count} (the "
        f"requests of the added rounds take about {minutes:,} min)."
    )
