"""Pairs of arms that a reader wants to compare: the levels of a destination, and destinations.

A run of ten arms has 45 pairs. Two questions are asked of them: what does each level of one
destination buy, and which destination costs least at the same level?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from dejavubench.analysis.answers.judgement import Difference, estimate_cost, estimate_difference
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS

MOST_PAIRED_DESTINATIONS = 3
"""Destinations of which every pair is compared. Of more, each is compared with the cheapest."""


@dataclass(frozen=True)
class Pair:
    """Two arms of a point, and how much slower the first is.

    Attributes:
        destination: mode whose levels are compared, with its durability; None for a pair of
            destinations.
    """

    point_id: str
    arm_name: str
    other_name: str
    difference: Difference
    destination: str | None = None


def compare_pairs(point: PointSamples) -> list[Pair]:
    """Return the pairs of a point: those of levels, destination by destination, then the others.

    Without a baseline arms can be compared as well; the noise is then unknown.
    """
    measured_arms = [
        arm
        for arm in point.arms.values()
        if arm.info.is_streaming and arm.why_failed is None and arm.times.total
    ]
    return [*_pair_levels(point, measured_arms), *_pair_destinations(point, measured_arms)]


def _pair_levels(point: PointSamples, arms: Sequence[ArmSamples]) -> Iterator[Pair]:
    """Yield each level against the one below it."""
    level_names = list(LEVELS)
    ladders: dict[str, list[ArmSamples]] = {}
    for arm in arms:
        if arm.info.level in level_names:
            ladders.setdefault(_name_without_level(arm), []).append(arm)
    for destination, ladder in ladders.items():
        ladder.sort(key=lambda arm: level_names.index(str(arm.info.level)))
        for lower_arm, higher_arm in pairwise(ladder):
            yield from _make_pair(point, higher_arm, lower_arm, destination)


def _pair_destinations(point: PointSamples, arms: Sequence[ArmSamples]) -> Iterator[Pair]:
    """Yield pairs of destinations at one level: all of few, or else each with the cheapest."""
    level_names = {arm.info.level for arm in arms}
    level_name = max(level_names, key=str, default=None)
    if DEFAULT_LEVEL in level_names:
        level_name = DEFAULT_LEVEL
    arms_at_level = [arm for arm in arms if arm.info.level == level_name]
    if len(arms_at_level) <= MOST_PAIRED_DESTINATIONS:
        for arm, other_arm in combinations(arms_at_level, 2):
            yield from _make_pair(point, arm, other_arm)
        return
    arms_and_costs = [
        (arm, cost.estimate.median)
        for arm in arms_at_level
        if (cost := estimate_cost(point, arm)) is not None
    ]
    if arms_and_costs:
        cheapest_arm, _ = min(arms_and_costs, key=lambda arm_and_cost: arm_and_cost[1])
        for arm, _ in arms_and_costs:
            if arm is not cheapest_arm:
                yield from _make_pair(point, arm, cheapest_arm)


def _name_without_level(arm: ArmSamples) -> str:
    """Return an arm's name without its level: ``mpi``, or ``disk/page-cache`` of several."""
    mode, _, level_and_durability = arm.info.name.partition("@")
    return "/".join([mode, *level_and_durability.split("/")[1:]])


def _make_pair(
    point: PointSamples, arm: ArmSamples, other_arm: ArmSamples, destination: str | None = None
) -> Iterator[Pair]:
    """Yield a pair; nothing if the arms have no round in common."""
    difference = estimate_difference(point, arm, other_arm)
    if difference is not None:
        yield Pair(point.info.id, arm.info.name, other_arm.info.name, difference, destination)
