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
from dejavubench.analysis.answers.limits import NOT_KNOWN, NOTHING
from dejavubench.analysis.answers.pairs import Pair
from dejavubench.analysis.answers.run_answers import ArmAnswer, RunAnswers
from dejavubench.analysis.answers.sentences import (
    TOKENS_MARK,
    cost_sentence,
    limit_sentence,
    pair_sentence,
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
    if any(each.cost is not None for each in answers.arms):
        costs = _costs(answers, labels)
    return [*costs, *_pairs(answers, labels), *_limits(answers.arms, labels)]


# ---- costs ----


def _costs(answers: RunAnswers, labels: Mapping[str, str]) -> list[str]:
    by_arm = _group_by_arm(answers.arms)
    if len(answers.points) == 1:
        return [cost_sentence(each) for group in by_arm.values() for each in group]
    return [_cost_over_points(arm, group, labels) for arm, group in by_arm.items()]


def _group_by_arm(arms: Iterable[ArmAnswer]) -> dict[str, list[ArmAnswer]]:
    """Return the answers by arm. Arms of the default level come first: they are the question."""
    groups: dict[str, list[ArmAnswer]] = {}
    for each in sorted(arms, key=lambda each: _level(each.arm) != DEFAULT_LEVEL):
        groups.setdefault(each.arm, []).append(each)
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


def _cost_over_points(arm: str, group: list[ArmAnswer], labels: Mapping[str, str]) -> str:
    known = [(each, each.cost) for each in group if each.cost is not None]
    if not known or len(group) == 1:
        where = f", at {labels[group[0].point]} alone" if len(group) == 1 else ""
        return cost_sentence(group[0]).replace(arm, f"{arm}{where}", 1)
    counts: dict[str, list[Difference]] = {}
    for answer, cost in known:
        if answer.in_tokens and answer.token is not None:
            counts.setdefault(TOKENS_ALONE, []).append(answer.token)
        else:
            counts.setdefault(PHRASES[cost.judgement], []).append(cost)
    parts = [
        f"{phrase} at {len(costs)} of {len(group)} points ({_range(costs)})"
        for phrase, costs in sorted(counts.items(), key=lambda item: -len(item[1]))
    ]
    worst, cost = max(known, key=lambda item: item[1].estimate.median)
    noise = f", noise {reach_text(cost)}" if cost.reach is not None else ""
    # A median that is not told from noise is no cost.
    what = "cost of a request" if cost.judgement is Judgement.SLOWER else "median, not yet a cost,"
    most = f"largest {what} at {labels[worst.point]}: {with_range(cost)}{noise}"
    return f"{arm}: {', '.join(parts)}; {most}{_targets(group)}."


def _range(costs: Sequence[Difference]) -> str:
    medians = sorted(100 * cost.estimate.median for cost in costs)
    ends = list(dict.fromkeys(_format_rough(each) for each in (medians[0], medians[-1])))
    return f"{' to '.join(ends)} %"


def _format_rough(percent: float) -> str:
    size = abs(percent)
    return format_signed(percent, 2 if size < 1 else 1 if size < 10 else 0)


def _targets(group: Sequence[ArmAnswer]) -> str:
    counts = Counter(each.verdict for each in group if each.verdict is not None)
    if not counts or group[0].target is None:
        return ""
    met = ", ".join(f"{verdict} at {number}" for verdict, number in counts.most_common())
    return f"; target ≤ {100 * group[0].target:g} %: {met}"


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


def _level(arm: str) -> str:
    return arm.partition("@")[2].partition("/")[0]


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
    for each in differences:
        groups[phrases[each.judgement]].append(each)
    words = []
    for phrase, group in groups.items():
        where = f" at {len(group)} of {len(differences)} points" if len(differences) > 1 else ""
        if group:
            words.append(f"{phrase}{where} ({_range(group)})")
    return ", ".join(words)


# ---- limits ----


def _limits(arms: Sequence[ArmAnswer], labels: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[ArmAnswer]] = {}
    for each in arms:
        if each.limit is not None:
            groups.setdefault(each.limit.name, []).append(each)
    several = len({each.point for each in arms}) > 1
    nothing = groups.pop(NOTHING, [])
    texts = []
    # Known limits come first.
    for _, group in sorted(groups.items(), key=lambda item: item[0] == NOT_KNOWN):
        shown = _example(group)
        assert shown.limit is not None
        names = _arm_names(group, arms)
        arm = _name(shown) if len(names) > 1 else ""
        point = labels[shown.point] if several else ""
        texts.append(limit_sentence(shown.limit, names, arm, point))
    # An arm with a cost at some point has its sentence above.
    costly = {each.arm for group in groups.values() for each in group}
    free = [each for each in nothing if each.arm not in costly]
    if free and free[0].limit is not None:
        names = list(dict.fromkeys(each.arm for each in free))
        texts.append(limit_sentence(free[0].limit, names))
    return texts


def _name(answer: ArmAnswer) -> str:
    return f"{answer.arm}{TOKENS_MARK}" if answer.in_tokens else answer.arm


def _arm_names(group: Sequence[ArmAnswer], arms: Sequence[ArmAnswer]) -> list[str]:
    """Return each arm once; with its tokens alone only if that holds at all points.

    An arm that has another limit elsewhere is named with the number of its points.

    Args:
        arms: the answers of all limits.
    """
    whole = {each.arm for each in group if not each.in_tokens}
    here = Counter(each.arm for each in group)
    costly = Counter(each.arm for each in arms if each.limit and each.limit.name != NOTHING)
    names: dict[str, None] = {}
    for each in group:
        name = each.arm if each.arm in whole else _name(each)
        some = here[each.arm] < costly[each.arm]
        points = f"{here[each.arm]} point{'s' * (here[each.arm] > 1)}"
        names[f"{name} at {points}" if some else name] = None
    return list(names)


def _example(group: Sequence[ArmAnswer]) -> ArmAnswer:
    """Return the answer whose numbers are shown: the costliest, of the default level if any is."""
    default = [each for each in group if _level(each.arm) == DEFAULT_LEVEL]
    return max(default or group, key=_median)


def _median(answer: ArmAnswer) -> float:
    return 0.0 if answer.cost is None else answer.cost.estimate.median
