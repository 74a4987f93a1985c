"""The ANSWER block: a few sentences on a whole run, however many points and arms it has.

One point gets a sentence for each arm and each pair. Several points are summed up: a sentence for
each arm over all points, with the range of its cost and its worst point, and one for each pair.
Limits are grouped by their name, with the numbers of the arm that costs most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from dejavubench.analysis.answers.difference_texts import format_signed, reach_text, with_range
from dejavubench.analysis.answers.judgement import Difference, Judgement
from dejavubench.analysis.answers.limits import NOT_KNOWN, NOT_LOOKED_FOR
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.answers.run_answers import ArmAnswer, RunAnswers
from dejavubench.analysis.answers.sentences import (
    TOKENS_MARK,
    cost_sentence,
    limit_sentence,
    medians_sentence,
    pair_sentence,
    proposes_rounds,
    rounds_sentence,
)
from dejavubench.dejavulib.levels import DEFAULT_LEVEL

NO_BASELINE = (
    "What streaming costs is unknown: this run has no arm none. Run it again with none among "
    "--streaming, or with --compare."
)
"""Sentence of a run without the arm ``none``."""


def summary(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    """Return the sentences of the block; none if no arm streamed in a measured round.

    Args:
        labels: names of the points, such as ``p003 (KV layout ft)``.
    """
    if not answers.arms:
        return []
    costs = [NO_BASELINE]
    if any(answer.cost is not None for answer in answers.arms):
        costs = _costs(answers, labels)
    several = len(answers.points) > 1
    turned = medians_sentence(answers.arms, labels if several else {})
    return [
        *costs,
        *([turned] if turned else []),
        *_pairs(answers, labels),
        *_rounds(answers),
        *_limits(answers.arms, labels),
    ]


# ---- costs ----


def _costs(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    by_arm = _group_by_arm(answers.arms)
    if len(answers.points) == 1:
        return [cost_sentence(answer) for group in by_arm.values() for answer in group]
    return [_cost_over_points(arm_name, group, labels) for arm_name, group in by_arm.items()]


def _group_by_arm(arms: Iterable[ArmAnswer]) -> dict[str, list[ArmAnswer]]:
    """Return the answers by arm. Arms of the default level come first: they are the question."""
    groups: dict[str, list[ArmAnswer]] = {}
    for answer in sorted(arms, key=lambda answer: _level(answer.arm) != DEFAULT_LEVEL):
        groups.setdefault(answer.arm, []).append(answer)
    return groups


TOKENS_ALONE = "a cost of tokens alone"

PHRASES = {
    Judgement.SLOWER: "a cost",
    Judgement.WITHIN_NOISE: "no cost shown",
    Judgement.OPEN: "no cost shown",
    Judgement.FASTER: "faster than without streaming",
    Judgement.TOO_FEW: "undecided (too few rounds)",
    Judgement.NOISE_UNKNOWN: "undecided (noise unknown)",
}
"""Each judgement in words."""


def _cost_over_points(arm_name: str, group: list[ArmAnswer], labels: Mapping[str, str]) -> str:
    """Count the points of each judgement, and show the largest cost; one point speaks alone."""
    costed = [(answer, answer.cost) for answer in group if answer.cost is not None]
    if not costed or len(group) == 1:
        place = f", at {labels[group[0].point]} alone" if len(group) == 1 else ""
        return cost_sentence(group[0]).replace(arm_name, f"{arm_name}{place}", 1)
    counts: dict[str, list[Difference]] = {}
    for answer, cost in costed:
        if answer.in_tokens and answer.token is not None:
            counts.setdefault(TOKENS_ALONE, []).append(answer.token)
        else:
            counts.setdefault(PHRASES[cost.judgement], []).append(cost)
    parts = [
        f"{phrase} at {len(costs)} of {len(group)} points ({_range(costs)})"
        for phrase, costs in sorted(counts.items(), key=lambda phrase_costs: -len(phrase_costs[1]))
    ]
    worst, cost = max(costed, key=lambda answer_cost: answer_cost[1].estimate.median)
    noise = f", noise {reach_text(cost)}" if cost.reach is not None else ""
    # A median that is not told from noise is no cost.
    noun = "cost of a request" if cost.judgement is Judgement.SLOWER else "median, not yet a cost,"
    most = f"largest {noun} at {labels[worst.point]}: {with_range(cost)}{noise}"
    return f"{arm_name}: {', '.join(parts)}; {most}{_targets(group)}."


def _range(costs: Sequence[Difference]) -> str:
    medians = sorted(100 * cost.estimate.median for cost in costs)
    ends = dict.fromkeys(_format_rough(median) for median in (medians[0], medians[-1]))
    return f"{' to '.join(ends)} %"


def _format_rough(percent: float) -> str:
    size = abs(percent)
    return format_signed(percent, 2 if size < 1 else 1 if size < 10 else 0)


def _targets(group: Sequence[ArmAnswer]) -> str:
    counts = Counter(answer.verdict for answer in group if answer.verdict is not None)
    if not counts or group[0].target is None:
        return ""
    met = ", ".join(f"{verdict} at {number}" for verdict, number in counts.most_common())
    return f"; target ≤ {100 * group[0].target:g} %: {met}"


def _rounds(answers: RunAnswers) -> list[str]:
    """Say how to measure the rounds that sentences of arms and pairs propose; none if none do.

    Sums over points propose no rounds.
    """
    if len(answers.points) > 1:
        return []
    costs = [answer.cost for answer in answers.arms if proposes_rounds(answer)]
    pairs = [pair.difference for pair in answers.pairs if pair.destination is None]
    rounds = [
        (difference.estimate.samples + difference.more_rounds, difference.more_rounds)
        for difference in (*costs, *pairs)
        if difference is not None and difference.more_rounds is not None
    ]
    return [rounds_sentence(*max(rounds), answers.round_ms)] if rounds else []


# ---- pairs ----


def _pairs(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    levels = [pair for pair in answers.pairs if pair.destination is not None]
    others = [pair for pair in answers.pairs if pair.destination is None]
    if len(answers.points) == 1:
        return [*_ladders(levels), *(pair_sentence(pair) for pair in others)]
    return [*_ladders(levels), *_over_points(others)]


def _ladders(pairs: Iterable[Pair]) -> list[str]:
    """Return a sentence for each destination: what each level buys over the one below it."""
    ordered = sorted(pairs, key=lambda pair: str(pair.destination))
    texts = []
    for destination, ladder in groupby(ordered, key=lambda pair: pair.destination):
        steps: dict[tuple[str, str], list[Difference]] = {}
        for pair in ladder:
            key = (_level(pair.arm), _level(pair.other))
            steps.setdefault(key, []).append(pair.difference)
        words = [
            f"{arm} {_describe_ranking(differences, other)}"
            for (arm, other), differences in steps.items()
        ]
        texts.append(f"{destination} by level: {'; '.join(words)}.")
    return texts


def _level(arm_name: str) -> str:
    return arm_name.partition("@")[2].partition("/")[0]


def _over_points(pairs: Iterable[Pair]) -> list[str]:
    groups: dict[tuple[str, str], list[Difference]] = {}
    for pair in pairs:
        groups.setdefault((pair.arm, pair.other), []).append(pair.difference)
    return [
        f"{arm} against {other}: {_describe_ranking(differences)}."
        for (arm, other), differences in groups.items()
    ]


def _describe_ranking(differences: Sequence[Difference], other: str = "") -> str:
    """Return ``faster than 0 (−67 to −33 %)``, with the number of points if there are several."""
    than, against = (f" than {other}", f" against {other}") if other else ("", "")
    phrases = {
        Judgement.FASTER: f"faster{than}",
        Judgement.SLOWER: f"slower{than}",
        Judgement.WITHIN_NOISE: f"cannot be ranked{against}",
        Judgement.OPEN: f"cannot be ranked{against}",
        Judgement.TOO_FEW: f"undecided{against} after too few rounds",
        Judgement.NOISE_UNKNOWN: f"undecided{against} as the noise is unknown",
    }
    groups: dict[str, list[Difference]] = {phrase: [] for phrase in phrases.values()}
    for difference in differences:
        groups[phrases[difference.judgement]].append(difference)
    words = []
    for phrase, group in groups.items():
        count = f" at {len(group)} of {len(differences)} points" if len(differences) > 1 else ""
        if group:
            words.append(f"{phrase}{count} ({_range(group)}{_describe_noise(group)})")
    return ", ".join(words)


def _describe_noise(group: Sequence[Difference]) -> str:
    """Name the largest noise that hides differences of a group; nothing if other reasons do."""
    hidden = [cost for cost in group if cost.judgement is Judgement.WITHIN_NOISE]
    if not hidden:
        return ""
    noisiest = max(hidden, key=lambda difference: difference.reach or 0.0)
    return f", below the noise of {reach_text(noisiest)}"


# ---- limits ----


def _limits(arms: Sequence[ArmAnswer], labels: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[ArmAnswer]] = {}
    for answer in arms:
        if answer.limit is not None:
            groups.setdefault(answer.limit.name, []).append(answer)
    several = len({answer.point for answer in arms}) > 1
    without_cost = groups.pop(NOT_LOOKED_FOR, [])
    texts = []
    # Known limits come first.
    for _, group in sorted(groups.items(), key=lambda name_group: name_group[0] == NOT_KNOWN):
        shown = _example(group)
        assert shown.limit is not None
        arm_names = _arm_names(group, arms)
        example_arm = _name(shown) if len(arm_names) > 1 else ""
        example_point = labels[shown.point] if several else ""
        texts.append(limit_sentence(shown.limit, arm_names, example_arm, example_point))
    # An arm with a cost at some point has its sentence above.
    costly = {answer.arm for group in groups.values() for answer in group}
    free = [answer for answer in without_cost if answer.arm not in costly]
    if free and free[0].limit is not None:
        arm_names = list(dict.fromkeys(answer.arm for answer in free))
        texts.append(limit_sentence(free[0].limit, arm_names))
    return texts


def _name(answer: ArmAnswer) -> str:
    return f"{answer.arm}{TOKENS_MARK}" if answer.in_tokens else answer.arm


def _arm_names(group: Sequence[ArmAnswer], arms: Sequence[ArmAnswer]) -> list[str]:
    """Return each arm once; with its tokens alone only if that holds at all points.

    An arm that has another limit elsewhere is named with the number of its points.

    Args:
        arms: the answers of all limits.
    """
    costly_requests = {answer.arm for answer in group if not answer.in_tokens}
    points_here = Counter(answer.arm for answer in group)
    points_in_all = Counter(
        answer.arm for answer in arms if answer.limit and answer.limit.name != NOT_LOOKED_FOR
    )
    arm_names: dict[str, None] = {}
    for answer in group:
        name = answer.arm if answer.arm in costly_requests else _name(answer)
        count = points_here[answer.arm]
        elsewhere = count < points_in_all[answer.arm]
        arm_names[f"{name} at {count} point{'s' * (count > 1)}" if elsewhere else name] = None
    return list(arm_names)


def _example(group: Sequence[ArmAnswer]) -> ArmAnswer:
    """Return the answer whose numbers are shown: the costliest, of the default level if any is."""
    of_default_level = [answer for answer in group if _level(answer.arm) == DEFAULT_LEVEL]
    return max(of_default_level or group, key=lambda answer: answer.median)
