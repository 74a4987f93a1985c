"""The part of a plan that runs here: resolved once, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.transports.base import Transport


@dataclass(frozen=True)
class RunnablePlan:
    """All that is measured.

    Attributes:
        skipped: for each point that cannot run here, by its id, the reason.
    """

    plan: Plan
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """The options of the run."""
        return self.plan.experiment

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that run: each of them once in every round."""
        return self.plan.unskipped_arms

    # Cached although the class is frozen: cached_property writes to the instance's __dict__.

    @cached_property
    def measured(self) -> tuple[Point, ...]:
        """The points that this session is to measure, as far as they can run here."""
        return tuple(point for point in self.plan.points if point.id in self.plan.starts)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The points that this session measures here."""
        return tuple(point for point in self.measured if point.id not in self.skipped)

    @cached_property
    def streaming(self) -> tuple[Arm, ...]:
        """The arms that stream, or swap."""
        return tuple(arm for arm in self.arms if arm.is_streaming)

    @cached_property
    def disk_arms(self) -> tuple[Arm, ...]:
        """The arms that write files."""
        return tuple(arm for arm in self.arms if arm.on_disk)

    @cached_property
    def transports(self) -> dict[str, Transport]:
        """The transports of the arms that run, by name, in the order of their arms."""
        transports = [arm.transport for arm in self.arms if arm.transport is not None]
        return {transport.name: transport for transport in transports}
