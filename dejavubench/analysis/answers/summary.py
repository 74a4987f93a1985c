"""The ANSWER block: a few sentences on a whole run, however many points and arms it has.

One point gets a sentence for each arm and each pair. Several points are summed up: a sentence for
each arm over all points, with the range of its cost and its worst point, and one for each pair.
Limits are grouped by their name, with the numbers of the arm that costs most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from dejavubench.analysis.answers.difference_texts import reach_text, with_range
from dejavubench.analysis.answers.judgement import Difference, Judgement
from dejavubench.analysis.answers.limits.rules import NOT_KNOWN, NOT_LOOKED_FOR
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
from dejavubench.analysis.number_texts import format_signed
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
        costs = _describe_costs(answers, labels)
    is_sweep = len(answers.point_ids) > 1
    turned = medians_sentence(answers.arms, labels if is_sweep else {})
    return [
        *costs,
        *([turned] if turned else []),
        *_describe_pairs(answers, labels),
        *_propose_rounds(answers),
        *_describe_limits(answers.arms, labels),
    ]


# ---- costs ----


def _describe_costs(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    by_arm = _group_by_arm(answers.arms)
    if len(answers.point_ids) == 1:
        return [cost_sentence(answer) for group in by_arm.values() for answer in group]
    return [
        _describe_cost_over_points(arm_name, group, labels) for arm_name, group in by_arm.items()
    ]


def _group_by_arm(arms: Iterable[ArmAnswer]) -> dict[str, list[ArmAnswer]]:
    """Return the answers by arm. Arms of the default level come first: they are the question."""
    groups: dict[str, list[ArmAnswer]] = {}
    for answer in sorted(arms, key=lambda answer: _level_of(answer.arm_name) != DEFAULT_LEVEL):
        groups.setdefault(answer.arm_name, []).append(answer)
    return groups


TOKENS_ALONE = "a cost of tokens alone"
"""Words for points whose requests show no cost, while their tokens do."""

JUDGEMENT_PHRASES = {
    Judgement.SLOWER: "a cost",
    Judgement.WITHIN_NOISE: "no cost shown",
    Judgement.OPEN: "no cost shown",
    Judgement.FASTER: "faster than without streaming",
    Judgement.TOO_FEW: "undecided (too few rounds)",
    Judgement.NOISE_UNKNOWN: "undecided (noise unknown)",
}
"""Each judgement in words."""


def _describe_cost_over_points(
    arm_name: str, group: list[ArmAnswer], labels: Mapping[str, str]
) -> str:
    """Count the points of each judgement, and show the largest cost; one point speaks alone."""
    answers_with_cost = [(answer, answer.cost) for answer in group if answer.cost is not None]
    if not answers_with_cost or len(group) == 1:
        suffix = f", at {labels[group[0].point_id]} alone" if len(group) == 1 else ""
        return cost_sentence(group[0]).replace(arm_name, f"{arm_name}{suffix}", 1)
    counts: dict[str, list[Difference]] = {}
    for answer, cost in answers_with_cost:
        if answer.has_token_cost and answer.token is not None:
            counts.setdefault(TOKENS_ALONE, []).append(answer.token)
        else:
            counts.setdefault(JUDGEMENT_PHRASES[cost.judgement], []).append(cost)
    clauses = [
        f"{phrase} at {len(costs)} of {len(group)} points ({_format_range(costs)})"
        for phrase, costs in sorted(counts.items(), key=lambda phrase_costs: -len(phrase_costs[1]))
    ]
    worst, worst_cost = max(
        answers_with_cost, key=lambda answer_cost: answer_cost[1].estimate.median
    )
    noise = f", noise {reach_text(worst_cost)}" if worst_cost.reach is not None else ""
    # A median that is not told from noise is no cost.
    noun = (
        "cost of a request"
        if worst_cost.judgement is Judgement.SLOWER
        else "median, not yet a cost,"
    )
    worst_text = f"largest {noun} at {labels[worst.point_id]}: {with_range(worst_cost)}{noise}"
    return f"{arm_name}: {', '.join(clauses)}; {worst_text}{_describe_targets(group)}."


def _format_range(costs: Sequence[Difference]) -> str:
    medians = sorted(100 * cost.estimate.median for cost in costs)
    texts = dict.fromkeys(_format_rough(median) for median in (medians[0], medians[-1]))
    return f"{' to '.join(texts)} %"


def _format_rough(percent: float) -> str:
    size = abs(percent)
    return format_signed(percent, 2 if size < 1 else 1 if size < 10 else 0)


def _describe_targets(group: Sequence[ArmAnswer]) -> str:
    counts = Counter(answer.verdict for answer in group if answer.verdict is not None)
    if not counts or group[0].target is None:
        return ""
    verdicts = ", ".join(f"{verdict} at {number}" for verdict, number in counts.most_common())
    return f"; target ≤ {100 * group[0].target:g} %: {verdicts}"


def _propose_rounds(answers: RunAnswers) -> list[str]:
    """Say how to measure the rounds that sentences of arms and pairs propose; none if none do.

    Sums over points propose no rounds.
    """
    if len(answers.point_ids) > 1:
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


def _describe_pairs(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    level_pairs = [pair for pair in answers.pairs if pair.destination is not None]
    destination_pairs = [pair for pair in answers.pairs if pair.destination is None]
    if len(answers.point_ids) == 1:
        return [
            *_describe_ladders(level_pairs),
            *(pair_sentence(pair) for pair in destination_pairs),
        ]
    return [*_describe_ladders(level_pairs), *_describe_over_points(destination_pairs)]


def _describe_ladders(pairs: Iterable[Pair]) -> list[str]:
    """Return a sentence for each destination: what each level buys over the one below it."""
    ordered = sorted(pairs, key=lambda pair: str(pair.destination))
    texts = []
    for destination, ladder in groupby(ordered, key=lambda pair: pair.destination):
        steps: dict[tuple[str, str], list[Difference]] = {}
        for pair in ladder:
            key = (_level_of(pair.arm_name), _level_of(pair.other_name))
            steps.setdefault(key, []).append(pair.difference)
        clauses = [
            f"{level} {_describe_ranking(differences, lower_level)}"
            for (level, lower_level), differences in steps.items()
        ]
        texts.append(f"{destination} by level: {'; '.join(clauses)}.")
    return texts


def _level_of(arm_name: str) -> str:
    return arm_name.partition("@")[2].partition("/")[0]


def _describe_over_points(pairs: Iterable[Pair]) -> list[str]:
    groups: dict[tuple[str, str], list[Difference]] = {}
    for pair in pairs:
        groups.setdefault((pair.arm_name, pair.other_name), []).append(pair.difference)
    return [
        f"{arm_name} against {other_name}: {_describe_ranking(differences)}."
        for (arm_name, other_name), differences in groups.items()
    ]


def _describe_ranking(differences: Sequence[Difference], other_name: str = "") -> str:
    """Return ``faster than 0 (−67 to −33 %)``, with the number of points if there are several."""
    than, against = (f" than {other_name}", f" against {other_name}") if other_name else ("", "")
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
    clauses = []
    for phrase, group in groups.items():
        count = f" at {len(group)} of {len(differences)} points" if len(differences) > 1 else ""
        if group:
            clauses.append(f"{phrase}{count} ({_format_range(group)}{_describe_noise(group)})")
    return ", ".join(clauses)


def _describe_noise(group: Sequence[Difference]) -> str:
    """Name the largest noise that hides differences of a group; nothing if other reasons do."""
    hidden_differences = [cost for cost in group if cost.judgement is Judgement.WITHIN_NOISE]
    if not hidden_differences:
        return ""
    noisiest = max(hidden_differences, key=lambda difference: difference.reach or 0.0)
    return f", below the noise of {reach_text(noisiest)}"


# ---- limits ----


def _describe_limits(arms: Sequence[ArmAnswer], labels: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[ArmAnswer]] = {}
    for answer in arms:
        if answer.limit is not None:
            groups.setdefault(answer.limit.name, []).append(answer)
    is_sweep = len({answer.point_id for answer in arms}) > 1
    without_cost = groups.pop(NOT_LOOKED_FOR, [])
    texts = []
    # Known limits come first.
    for _, group in sorted(groups.items(), key=lambda name_group: name_group[0] == NOT_KNOWN):
        example = _choose_example(group)
        assert example.limit is not None
        arm_names = _name_arms(group, arms)
        example_arm_name = _arm_with_tokens(example) if len(arm_names) > 1 else ""
        example_label = labels[example.point_id] if is_sweep else ""
        texts.append(limit_sentence(example.limit, arm_names, example_arm_name, example_label))
    # An arm with a cost at some point has its sentence above.
    costly = {answer.arm_name for group in groups.values() for answer in group}
    answers_without_cost = [answer for answer in without_cost if answer.arm_name not in costly]
    if answers_without_cost and answers_without_cost[0].limit is not None:
        arm_names = list(dict.fromkeys(answer.arm_name for answer in answers_without_cost))
        texts.append(limit_sentence(answers_without_cost[0].limit, arm_names))
    return texts


def _arm_with_tokens(answer: ArmAnswer) -> str:
    return f"{answer.arm_name}{TOKENS_MARK}" if answer.has_token_cost else answer.arm_name


def _name_arms(group: Sequence[ArmAnswer], arms: Sequence[ArmAnswer]) -> list[str]:
    """Return each arm once; with its tokens alone only if that holds at all points.

    An arm that has another limit elsewhere is named with the number of its points.

    Args:
        arms: the answers of all limits.
    """
    costly_requests = {answer.arm_name for answer in group if not answer.has_token_cost}
    points_here = Counter(answer.arm_name for answer in group)
    points_in_all = Counter(
        answer.arm_name for answer in arms if answer.limit and answer.limit.name != NOT_LOOKED_FOR
    )
    arm_names: dict[str, None] = {}
    for answer in group:
        name = answer.arm_name if answer.arm_name in costly_requests else _arm_with_tokens(answer)
        count = points_here[answer.arm_name]
        is_elsewhere = count < points_in_all[answer.arm_name]
        arm_names[f"{name} at {count} point{'s' * (count > 1)}" if is_elsewhere else name] = None
    return list(arm_names)


def _choose_example(group: Sequence[ArmAnswer]) -> ArmAnswer:
    """Return the answer whose numbers are shown: the costliest, of the default level if any is."""
    default_level_answers = [
        answer for answer in group if _level_of(answer.arm_name) == DEFAULT_LEVEL
    ]
    return max(default_level_answers or group, key=lambda answer: answer.median)
