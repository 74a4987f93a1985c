"""Answers as sentences: about one arm, and about two."""

from __future__ import annotations

from dejavubench.analysis.answers.answers import UNSHOWN, ArmAnswer
from dejavubench.analysis.answers.differencetexts import reach_text, with_range
from dejavubench.analysis.answers.judgement import MOST_ROUNDS, Difference, Judgement
from dejavubench.analysis.answers.limits import NOT_KNOWN, NOTHING, Limit
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.stats import COVERING_ROUNDS


def cost_sentence(answer: ArmAnswer) -> str:
    """Say what an arm costs, and whether that is told from noise."""
    if answer.cost is None:
        return f"{answer.arm}: its cost is unknown without an arm none."
    return f"{answer.arm}: {_cost(answer.cost)}{_tokens(answer)}{_target(answer)}."


def _tokens(answer: ArmAnswer) -> str:
    """Say that the tokens cost something where the whole request does not show it."""
    if answer.token is None or answer.cost is None:
        return ""
    if answer.in_tokens:
        noise = f"their noise ({reach_text(answer.token)})"
        return f", but its tokens cost {with_range(answer.token)}, beyond {noise}"
    more = answer.cost.more_rounds
    if answer.judgement not in UNSHOWN or more is None or answer.cost.estimate.median <= 0:
        return ""
    return f" (some {more:,} more rounds would show one of this size)"


def _cost(cost: Difference) -> str:
    text = with_range(cost)
    match cost.judgement:
        case Judgement.WITHIN_NOISE:
            return f"{text}, within this machine's noise ({reach_text(cost)}): no cost shown"
        case Judgement.OPEN:
            return f"{text}, noise {reach_text(cost)}: the interval contains 0, so no cost is shown"
        case Judgement.SLOWER:
            return f"{text}: a cost, beyond this machine's noise ({reach_text(cost)})"
        case Judgement.FASTER:
            return (
                f"{text}, noise {reach_text(cost)}: faster than without streaming. Something else "
                "differs between these arms"
            )
        case Judgement.TOO_FEW:
            return f"{text}: undecided, as an interval needs {COVERING_ROUNDS} rounds"
        case Judgement.NOISE_UNKNOWN:
            return f"{text}: undecided, as the noise is unknown without a second arm none"


def _target(answer: ArmAnswer) -> str:
    if answer.target is None or answer.verdict is None:
        return ""
    return f"; target ≤ {100 * answer.target:g} %: {answer.verdict}"


def pair_sentence(pair: Pair) -> str:
    """Say which of two arms is faster, or that they cannot be ranked."""
    text = f"{pair.arm} against {pair.other}: {with_range(pair.difference)}"
    judgement = pair.difference.judgement
    if judgement.shown:
        faster = pair.arm if judgement is Judgement.FASTER else pair.other
        return f"{text}: {faster} is faster."
    return f"{text}: cannot be ranked{_more(pair.difference)}."


def _more(difference: Difference) -> str:
    if difference.judgement is Judgement.TOO_FEW:
        return f", as an interval needs {COVERING_ROUNDS} rounds"
    if difference.judgement is Judgement.NOISE_UNKNOWN:
        return ", as the noise is unknown without a second arm none"
    more = difference.more_rounds
    if more is None:
        return f"; {MOST_ROUNDS:,} more rounds would not be enough"
    return f"; some {more:,} more rounds would"


def limit_sentence(limit: Limit, arms: str, example: str = "") -> str:
    """Say what limits some arms, with the numbers of one of them.

    Args:
        example: names the arm that the numbers are of, if there are several.
    """
    whose = f" ({example})" if example else ""
    remedy = f" Try {limit.remedy}." if limit.remedy else ""
    if limit.name == NOTHING:
        return f"limited by nothing measurable: {arms} ({limit.numbers})."
    if limit.name == NOT_KNOWN:
        return f"limit not known: {arms}{whose}: {limit.numbers}.{remedy}"
    return f"limited by {limit.name}: {arms}{whose}: {limit.numbers}.{remedy}"
