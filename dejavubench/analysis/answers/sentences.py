"""Answers as sentences: about one arm, and about two."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.analysis.answers.difference_texts import median_text, reach_text, with_range
from dejavubench.analysis.answers.judgement import MOST_ROUNDS, Difference, Judgement
from dejavubench.analysis.answers.limits import NOT_KNOWN, NOTHING, Limit
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.answers.run_answers import UNSHOWN, ArmAnswer
from dejavubench.analysis.numbers.stats import COVERING_ROUNDS

LOUD_PCT = 5.0
"""Noise, in percent, from which a sentence begins with how large a cost could hide in it."""


TOKENS_MARK = " (tokens)"
"""Follows an arm of which the tokens alone cost something."""


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
    return f"; about {more:,} more rounds would show a cost of {median_text(answer.cost)}"


def _cost(cost: Difference) -> str:
    text = with_range(cost)
    match cost.judgement:
        case Judgement.WITHIN_NOISE:
            return _within_noise(cost)
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


def _within_noise(cost: Difference) -> str:
    """Say that no cost is shown; where much noise could hide one, that comes first."""
    if cost.reach is None or 100 * cost.reach < LOUD_PCT:
        noise = f"within this machine's noise ({reach_text(cost)})"
        return f"{with_range(cost)}, {noise}: no cost shown"
    hidden = reach_text(cost).removeprefix("±")
    measured = with_range(cost).replace(" (", ", ").removesuffix(")")
    return (
        f"no cost shown; one of up to {hidden} could hide in this machine's noise (measured "
        f"{measured})"
    )


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
    return f"{text}: cannot be ranked{_describe_rounds_needed(pair.difference)}."


def _describe_rounds_needed(difference: Difference) -> str:
    if difference.judgement is Judgement.TOO_FEW:
        return f", as an interval needs {COVERING_ROUNDS} rounds"
    if difference.judgement is Judgement.NOISE_UNKNOWN:
        return ", as the noise is unknown without a second arm none"
    more = difference.more_rounds
    why = ""
    # An interval without 0 in it looks like a ranking.
    if difference.judgement is Judgement.WITHIN_NOISE:
        why = f", as the difference is below the noise ({reach_text(difference)})"
    if more is None:
        return f"{why}; {MOST_ROUNDS:,} more rounds would not be enough"
    return f"{why}; about {more:,} more rounds would"


def limit_sentence(limit: Limit, names: Sequence[str], arm: str = "", point: str = "") -> str:
    """Say what limits some arms, with the numbers of one of them.

    Args:
        arm: the one that the numbers are of, if there are several.
        point: the one that the numbers are of, if there are several.
    """
    arms, where = ", ".join(names), f"at {point}" if point else ""
    remedy = f" Try {limit.remedy}." if limit.remedy else ""
    if limit.name == NOTHING:
        shows = "show" if len(names) > 1 else "shows"
        return f"limit: not looked for, as {arms} {shows} no cost; see --long."
    if limit.name == NOT_KNOWN:
        example = " ".join(filter(None, (f"for {arm}" if arm else "", where)))
        numbers = f"{example}, {limit.numbers}" if example else limit.numbers
        subject = _tokens_of(names) or arms
        return f"{subject}: cause not known. {numbers[0].upper()}{numbers[1:]}.{remedy}"
    example = " ".join(filter(None, (f"numbers of {arm}" if arm else "", where)))
    whose = f" ({example})" if example else ""
    return f"limited by {limit.name}: {arms}{whose}: {limit.numbers}.{remedy}"


def _tokens_of(names: Sequence[str]) -> str | None:
    """Return ``tokens of disk@3 and mpi@3``; None unless only the tokens of each arm are meant."""
    bare = [name.removesuffix(TOKENS_MARK) for name in names]
    if len(bare) < 2 or any(name == arm for name, arm in zip(names, bare, strict=True)):
        return None
    return f"tokens of {', '.join(bare[:-1])} and {bare[-1]}"
