"""The ANSWER block: a few sentences on a whole run, however many points and arms it has.

One point gets a sentence for each arm and each pair. Several points are summed up: a sentence for
each arm over all points, with the range of its cost and its worst point, and one for each pair.
Limits are grouped by their name, with the numbers of the arm that costs most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from dejavubench.analysis.answers.difference_texts import format_noise_of, format_with_range
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
from dejavubench.analysis.number_texts import format_signed_percent
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.units import format_count_of

NO_BASELINE = (
    "What streaming costs is unknown: this run has no arm none. Run it again with none among "
    "--streaming, or with --compare."
)
"""Sentence of a run without the arm ``none``."""


def write_summary(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    """Return the sentences of the block; none if no arm streamed in a measured round.

    Args:
        labels: names of the points, such as ``p003 (KV layout ft)``.
    """
    if not answers.arms:
        return []
    cost_sentences = [NO_BASELINE]
    if any(answer.cost is not None for answer in answers.arms):
        cost_sentences = _describe_costs(answers, labels)
    is_sweep = len(answers.point_ids) > 1
    drift_sentence = medians_sentence(answers.arms, labels if is_sweep else {})
    return [
        *cost_sentences,
        *([drift_sentence] if drift_sentence else []),
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
    answers_by_arm: dict[str, list[ArmAnswer]] = {}
    for answer in sorted(arms, key=lambda answer: _level_of(answer.arm_name) != DEFAULT_LEVEL):
        answers_by_arm.setdefault(answer.arm_name, []).append(answer)
    return answers_by_arm


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
    """Count the points of each judgement, and show the largest cost of an arm."""
    answers_with_cost = [(answer, answer.cost) for answer in group if answer.cost is not None]
    if not answers_with_cost or len(group) == 1:
        suffix = f", at {labels[group[0].point_id]} alone" if len(group) == 1 else ""
        return cost_sentence(group[0]).replace(arm_name, f"{arm_name}{suffix}", 1)
    costs_by_phrase: dict[str, list[Difference]] = {}
    for answer, cost in answers_with_cost:
        if answer.has_token_cost and answer.token_cost is not None:
            costs_by_phrase.setdefault(TOKENS_ALONE, []).append(answer.token_cost)
        else:
            costs_by_phrase.setdefault(JUDGEMENT_PHRASES[cost.judgement], []).append(cost)
    clauses = [
        f"{phrase} at {len(costs)} of {len(group)} points ({_format_range(costs)})"
        for phrase, costs in sorted(
            costs_by_phrase.items(), key=lambda phrase_costs: -len(phrase_costs[1])
        )
    ]
    worst_answer, worst_cost = max(
        answers_with_cost, key=lambda answer_cost: answer_cost[1].estimate.median
    )
    noise_clause = f", noise {format_noise_of(worst_cost)}" if worst_cost.reach is not None else ""
    # A median that is not told from noise is no cost.
    noun = (
        "cost of a request"
        if worst_cost.judgement is Judgement.SLOWER
        else "median, not yet a cost,"
    )
    worst_label = labels[worst_answer.point_id]
    worst_text = f"largest {noun} at {worst_label}: {format_with_range(worst_cost)}{noise_clause}"
    return f"{arm_name}: {', '.join(clauses)}; {worst_text}{_describe_targets(group)}."


def _format_range(costs: Sequence[Difference]) -> str:
    medians = sorted(100 * cost.estimate.median for cost in costs)
    texts = dict.fromkeys(format_signed_percent(median) for median in (medians[0], medians[-1]))
    return f"{' to '.join(texts)} %"


def _describe_targets(group: Sequence[ArmAnswer]) -> str:
    verdict_counts = Counter(answer.verdict for answer in group if answer.verdict is not None)
    if not verdict_counts or group[0].target is None:
        return ""
    verdicts = ", ".join(
        f"{verdict} at {point_count}" for verdict, point_count in verdict_counts.most_common()
    )
    return f"; target ≤ {100 * group[0].target:g} %: {verdicts}"


def _propose_rounds(answers: RunAnswers) -> list[str]:
    """Return how to measure the rounds that sentences of arms and pairs propose, if any do.

    Sums over points propose no rounds.
    """
    if len(answers.point_ids) > 1:
        return []
    costs = [answer.cost for answer in answers.arms if proposes_rounds(answer)]
    destination_differences = [
        pair.difference for pair in answers.pairs if pair.destination is None
    ]
    proposed_rounds = [
        (
            difference.estimate.sample_count + difference.more_round_count,
            difference.more_round_count,
        )
        for difference in (*costs, *destination_differences)
        if difference is not None and difference.more_round_count is not None
    ]
    if not proposed_rounds:
        return []
    all_round_count, added_round_count = max(proposed_rounds)
    return [
        rounds_sentence(
            answers.continue_command, all_round_count, added_round_count, answers.round_ms
        )
    ]


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
    pairs_by_destination = sorted(pairs, key=lambda pair: str(pair.destination))
    texts = []
    for destination, ladder in groupby(pairs_by_destination, key=lambda pair: pair.destination):
        differences_by_levels: dict[tuple[str, str], list[Difference]] = {}
        for pair in ladder:
            key = (_level_of(pair.arm_name), _level_of(pair.other_name))
            differences_by_levels.setdefault(key, []).append(pair.difference)
        clauses = [
            f"{level} {_describe_ranking(differences, lower_level)}"
            for (level, lower_level), differences in differences_by_levels.items()
        ]
        texts.append(f"{destination} by level: {'; '.join(clauses)}.")
    return texts


def _level_of(arm_name: str) -> str:
    return arm_name.partition("@")[2].partition("/")[0]


def _describe_over_points(pairs: Iterable[Pair]) -> list[str]:
    differences_by_arms: dict[tuple[str, str], list[Difference]] = {}
    for pair in pairs:
        differences_by_arms.setdefault((pair.arm_name, pair.other_name), []).append(pair.difference)
    return [
        f"{arm_name} against {other_name}: {_describe_ranking(differences)}."
        for (arm_name, other_name), differences in differences_by_arms.items()
    ]


def _describe_ranking(differences: Sequence[Difference], other_name: str = "") -> str:
    """Return ``faster than 0 (−67 to −33 %)``, with the number of points if there are several."""
    than_other = f" than {other_name}" if other_name else ""
    against_other = f" against {other_name}" if other_name else ""
    phrases = {
        Judgement.FASTER: f"faster{than_other}",
        Judgement.SLOWER: f"slower{than_other}",
        Judgement.WITHIN_NOISE: f"cannot be ranked{against_other}",
        Judgement.OPEN: f"cannot be ranked{against_other}",
        Judgement.TOO_FEW: f"undecided{against_other} after too few rounds",
        Judgement.NOISE_UNKNOWN: f"undecided{against_other} as the noise is unknown",
    }
    differences_by_phrase: dict[str, list[Difference]] = {phrase: [] for phrase in phrases.values()}
    for difference in differences:
        differences_by_phrase[phrases[difference.judgement]].append(difference)
    clauses = []
    for phrase, group in differences_by_phrase.items():
        count_text = (
            f" at {len(group)} of {len(differences)} points" if len(differences) > 1 else ""
        )
        if group:
            clauses.append(f"{phrase}{count_text} ({_format_range(group)}{_describe_noise(group)})")
    return ", ".join(clauses)


def _describe_noise(group: Sequence[Difference]) -> str:
    """Name the largest noise that hides differences of a group; nothing if other reasons do."""
    hidden_differences = [cost for cost in group if cost.judgement is Judgement.WITHIN_NOISE]
    if not hidden_differences:
        return ""
    noisiest = max(hidden_differences, key=lambda difference: difference.reach or 0.0)
    return f", below the noise of {format_noise_of(noisiest)}"


# ---- limits ----


def _describe_limits(arms: Sequence[ArmAnswer], labels: Mapping[str, str]) -> list[str]:
    answers_by_limit: dict[str, list[ArmAnswer]] = {}
    for answer in arms:
        if answer.limit is not None:
            answers_by_limit.setdefault(answer.limit.name, []).append(answer)
    is_sweep = len({answer.point_id for answer in arms}) > 1
    answers_without_limit = answers_by_limit.pop(NOT_LOOKED_FOR, [])
    texts = []
    # Known limits come first.
    for _, group in sorted(
        answers_by_limit.items(), key=lambda name_group: name_group[0] == NOT_KNOWN
    ):
        example = _choose_example(group)
        assert example.limit is not None
        arm_names = _name_arms(group, arms)
        example_arm_name = _name_arm_with_tokens(example) if len(arm_names) > 1 else ""
        example_label = labels[example.point_id] if is_sweep else ""
        texts.append(limit_sentence(example.limit, arm_names, example_arm_name, example_label))
    # An arm with a cost at some point has its sentence above.
    arms_with_limit = {answer.arm_name for group in answers_by_limit.values() for answer in group}
    answers_of_costless_arms = [
        answer for answer in answers_without_limit if answer.arm_name not in arms_with_limit
    ]
    if answers_of_costless_arms and answers_of_costless_arms[0].limit is not None:
        arm_names = list(dict.fromkeys(answer.arm_name for answer in answers_of_costless_arms))
        texts.append(limit_sentence(answers_of_costless_arms[0].limit, arm_names))
    return texts


def _name_arm_with_tokens(answer: ArmAnswer) -> str:
    return f"{answer.arm_name}{TOKENS_MARK}" if answer.has_token_cost else answer.arm_name


def _name_arms(group: Sequence[ArmAnswer], arms: Sequence[ArmAnswer]) -> list[str]:
    """Return the name of each arm once, marked if at all of its points only tokens cost something.

    An arm that has another limit elsewhere is named with the number of its points.

    Args:
        arms: the answers of all limits.
    """
    arms_with_request_cost = {answer.arm_name for answer in group if not answer.has_token_cost}
    points_here = Counter(answer.arm_name for answer in group)
    points_in_all = Counter(
        answer.arm_name for answer in arms if answer.limit and answer.limit.name != NOT_LOOKED_FOR
    )
    arm_names: dict[str, None] = {}
    for answer in group:
        has_request_cost = answer.arm_name in arms_with_request_cost
        name = answer.arm_name if has_request_cost else _name_arm_with_tokens(answer)
        point_count = points_here[answer.arm_name]
        is_elsewhere = point_count < points_in_all[answer.arm_name]
        if is_elsewhere:
            name += f" at {format_count_of(point_count, 'point')}"
        arm_names[name] = None
    return list(arm_names)


def _choose_example(group: Sequence[ArmAnswer]) -> ArmAnswer:
    """Return the answer whose numbers are shown: the costliest, of the default level if any is."""
    default_level_answers = [
        answer for answer in group if _level_of(answer.arm_name) == DEFAULT_LEVEL
    ]
    return max(default_level_answers or group, key=lambda answer: answer.median)
