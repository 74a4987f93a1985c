"""Pairs of points and arms that A and B have, and what differs within such a pair.

Points with equal sizes and settings belong together, and arms with equal destination, level and
durability. Where A and B have a single point or arm each, and these differ in one of them, that
difference is what is compared. So is a setting with one value in A and another one in B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dejavubench.analysis.comparison.comparable import NotComparableError, format_value, refuse
from dejavubench.analysis.comparison.differences import (
    RunDifference,
    find_point_setting_differences,
)
from dejavubench.analysis.comparison.operands import Operand
from dejavubench.analysis.facts.arm_destinations import hosts_of
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS, SETTING_COLUMNS
from dejavubench.records import ArmInfo, PointInfo
from dejavubench.records.destination_info import NO_STREAMING

POINT_COMPARED = ("kv_layout",)
"""Sizes of a point that may be what is compared. The work is the same with each of their values."""

ARM_COLUMNS = ("mode", "level", "durability")
"""Columns by which arms are paired."""


@dataclass(frozen=True)
class CellPair:
    """A point and an arm of each operand; without an arm, the baselines of both points."""

    point_a: PointInfo
    point_b: PointInfo
    arm_a: ArmInfo | None = None
    arm_b: ArmInfo | None = None

    @property
    def arm_name(self) -> str:
        """The arm's name; both names with an arrow if they differ."""
        names = [arm.name if arm else NO_STREAMING for arm in (self.arm_a, self.arm_b)]
        return " → ".join(dict.fromkeys(names))


@dataclass(frozen=True)
class Matching:
    """The pairs of A and B, in the order of B.

    Attributes:
        compared_differences: differences between points or arms that were paired nevertheless.
        unmatched_names: points and arms that A or B alone has, by its name.
    """

    pairs: list[CellPair]
    compared_differences: list[RunDifference]
    unmatched_names: dict[str, list[str]] = field(default_factory=dict)


def match_operands(a: Operand, b: Operand) -> Matching:
    """Pair the points and arms of A and B.

    Raises:
        NotComparableError: they have no point or no arm in common.
    """
    points, point_differences = _pair_points(a, b)
    arms, arm_differences = _pair_arms(a, b)
    unmatched_names = {
        operand.name: _list_unmatched(operand, operand_index, points, arms, other)
        for operand_index, (operand, other) in enumerate(((a, b), (b, a)))
    }
    _require_same_places(a, b, arms)
    # A user who names an arm asks for that arm alone.
    baselines = a.arm_name is None and b.arm_name is None and _has_baseline(a) and _has_baseline(b)
    pairs = []
    for point_a, point_b in points:
        if baselines:
            pairs.append(CellPair(point_a, point_b))
        pairs += [CellPair(point_a, point_b, *pair) for pair in arms]
    if not pairs:
        raise NotComparableError("A and B have no arm in common: one of them has no arm at all")
    return Matching(pairs, [*point_differences, *arm_differences], unmatched_names)


def _pair_points(
    a: Operand, b: Operand
) -> tuple[list[tuple[PointInfo, PointInfo]], list[RunDifference]]:
    """Pair the points of equal values; return the settings in which all of them differ, too."""
    points_a, points_b = a.list_points(), b.list_points()
    setting_differences = find_point_setting_differences(a.header, b.header, points_a, points_b)
    columns = _find_matched_columns(a, b, setting_differences)
    for operand, points in ((a, points_a), (b, points_b)):
        _require_distinct(operand, points, columns)
    # By values and not by ids: p001 of two sweeps may be two different points.
    points_by_values = {_values_of(point, columns): point for point in points_a}
    pairs = [
        (points_by_values[values], point)
        for point in points_b
        if (values := _values_of(point, columns)) in points_by_values
    ]
    if pairs:
        return pairs, setting_differences
    if len(points_a) != 1 or len(points_b) != 1:
        raise NotComparableError(
            "A and B have no point of equal sizes and settings: "
            f"{len(points_a)} against {len(points_b)} points that could run. Name one point of "
            "each, as in FOLDER:p000"
        )
    differences = _list_differences("setting", points_a[0], points_b[0], POINT_COLUMNS)
    refuse([str(size) for size in differences if size.name not in POINT_COMPARED])
    return [(points_a[0], points_b[0])], [*differences, *setting_differences]


def _find_matched_columns(
    a: Operand, b: Operand, setting_differences: Sequence[RunDifference]
) -> list[str]:
    """Return the columns in which the two points of a pair are equal."""
    # A setting with one value in A and another in B is what is compared. An older program may not
    # have had it; its default then held for all points.
    left_out = {setting.name for setting in setting_differences}
    in_both = {*a.header.experiment} & {*b.header.experiment}
    settings = [name for name in SETTING_COLUMNS if name in in_both and name not in left_out]
    return [*POINT_COLUMNS, *settings]


def _require_distinct(
    operand: Operand, points: Sequence[PointInfo], columns: Sequence[str]
) -> None:
    ids_by_values: dict[tuple[object, ...], str] = {}
    for point in points:
        other_id = ids_by_values.setdefault(_values_of(point, columns), point.id)
        if other_id != point.id:
            raise NotComparableError(
                f"points {other_id} and {point.id} of {operand.name} have equal sizes. Name one of "
                f"them, as in FOLDER:{other_id}"
            )


def _values_of(point: PointInfo, columns: Sequence[str]) -> tuple[object, ...]:
    return tuple(getattr(point, column) for column in columns)


def _pair_arms(a: Operand, b: Operand) -> tuple[list[tuple[ArmInfo, ArmInfo]], list[RunDifference]]:
    """Pair arms of equal destination, level and durability, or the only two that there are."""
    arms_a, arms_b = a.list_arms(), b.list_arms()
    arms_by_key = {_key_of(arm): arm for arm in arms_a}
    pairs = [(arms_by_key[_key_of(arm)], arm) for arm in arms_b if _key_of(arm) in arms_by_key]
    # Where one side streams nothing, the baselines alone can be compared.
    if pairs or not arms_a or not arms_b:
        return pairs, []
    if len(arms_a) != 1 or len(arms_b) != 1:
        raise NotComparableError(
            f"A and B have no arm in common: {_join_names(arms_a, b)} against "
            f"{_join_names(arms_b, a)}. Name one arm of each, as in FOLDER:mpi@3"
        )
    differences = _list_differences("arm", arms_a[0], arms_b[0], ARM_COLUMNS)
    # Only a disk has a durability, and a baseline no level: another destination says it all.
    if arms_a[0].mode != arms_b[0].mode:
        differences = [
            difference
            for difference in differences
            if difference.name == "destination"
            or None not in [getattr(arm, difference.name) for arm in (arms_a[0], arms_b[0])]
        ]
    return [(arms_a[0], arms_b[0])], differences


def _key_of(arm: ArmInfo) -> tuple[object, ...]:
    return tuple(getattr(arm, name) for name in ARM_COLUMNS)


def _join_names(arms: Sequence[ArmInfo], other: Operand) -> str:
    return ", ".join(_name_beside(arm, other) for arm in arms)


def _list_differences(
    kind: str,
    matched_a: PointInfo | ArmInfo,
    matched_b: PointInfo | ArmInfo,
    columns: Sequence[str],
) -> list[RunDifference]:
    shown_names = {"mode": "destination"}
    return [
        RunDifference(
            kind, shown_names.get(column, column), format_value(value_a), format_value(value_b)
        )
        for column in columns
        if (value_a := getattr(matched_a, column)) != (value_b := getattr(matched_b, column))
    ]


def _has_baseline(operand: Operand) -> bool:
    return any(not arm.is_streaming for arm in operand.header.arms)


def _require_same_places(a: Operand, b: Operand, arms: Sequence[tuple[ArmInfo, ArmInfo]]) -> None:
    """Refuse arms of one destination that went to the same host in A or B alone."""
    different_places = []
    for arm_a, arm_b in arms:
        # The same destination within one host and between two is not the same work.
        hosts = hosts_of(a.runs[0], arm_a), hosts_of(b.runs[0], arm_b)
        if arm_a.mode == arm_b.mode and hosts[0] != hosts[1]:
            different_places.append(
                f"the place of {arm_b.name}: {' → '.join(map(format_value, hosts))}"
            )
    refuse(different_places)


def _list_unmatched(
    operand: Operand,
    operand_index: int,
    points: Sequence[tuple[PointInfo, PointInfo]],
    arms: Sequence[tuple[ArmInfo, ArmInfo]],
    other: Operand,
) -> list[str]:
    """Return the names of an operand's points and arms that the other one lacks."""
    paired_points = {pair[operand_index].id for pair in points}
    paired_arms = {pair[operand_index].name for pair in arms}
    return [
        *(point.id for point in operand.list_points() if point.id not in paired_points),
        *(_name_beside(arm, other) for arm in operand.list_arms() if arm.name not in paired_arms),
    ]


def _name_beside(arm: ArmInfo, other: Operand) -> str:
    """Return an arm's name, with its durability if the other operand has an arm of that name."""
    # A run with one durability leaves it out of the name.
    is_shared = arm.name in {other_arm.name for other_arm in other.list_arms()}
    return f"{arm.name} ({arm.durability})" if is_shared and arm.durability else arm.name
