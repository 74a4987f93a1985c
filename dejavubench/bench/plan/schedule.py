"""The arms and points of a run, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dejavubench.bench.plan.destinations import destination_of, entry_of
from dejavubench.config.arms import Arm
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.dejavulib.destinations.registry import DestinationEntry


@dataclass(frozen=True)
class Schedule:
    """All that is measured.

    Attributes:
        all_arms: every arm of the plan.
        all_points: every point of the plan.
        skipped: for each point that cannot run here, by its id, the reason.
    """

    all_arms: tuple[Arm, ...]
    all_points: tuple[Point, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Schedule:
        """Return the schedule before any point was found not to run here."""
        return cls(plan.arms, plan.points)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that run: each of them once in every round."""
        return tuple(arm for arm in self.all_arms if not arm.skipped)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The points that run here."""
        return tuple(point for point in self.all_points if point.id not in self.skipped)

    @cached_property
    def streaming(self) -> tuple[Arm, ...]:
        """The arms that stream, or swap."""
        return tuple(arm for arm in self.arms if arm.level is not None)

    @cached_property
    def on_disk(self) -> tuple[Arm, ...]:
        """The arms that write files."""
        return tuple(arm for arm in self.arms if arm.on_disk)

    @cached_property
    def destinations(self) -> dict[str, DestinationEntry]:
        """The destinations of the arms that run, by name, in the order of their arms."""
        return {destination_of(arm): entry_of(arm) for arm in self.streaming}
