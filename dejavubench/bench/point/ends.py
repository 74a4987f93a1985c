"""This rank's ends of the streams of one point."""

from __future__ import annotations

from dataclasses import dataclass

from dejavubench.bench.plan.identity import identity
from dejavubench.bench.plan.side import Side
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.destinations import point_context
from dejavubench.config.arms import Arm
from dejavubench.config.points import Point
from dejavubench.transports.session import Session


@dataclass(frozen=True)
class Ends:
    """One rank's ends of the streams of a point.

    Attributes:
        identity: goes into the headers of stream files.
    """

    context: RunContext
    side: Side
    identity: dict[str, str]

    @classmethod
    def connect(cls, context: RunContext, point: Point) -> Ends:
        """Connect this rank with the other side, for every destination. Collective."""
        described = point_context(context.experiment, point, context.ranks)
        for session in context.sessions.values():
            session.connect(described)
        own = identity(
            context.plan,
            point,
            context.devices.computing,
            context.workspace.run_id,
            context.ranks.rank,
        )
        return cls(context, context.side(point), own)

    def session(self, arm: Arm) -> Session:
        """Return this rank's part in the destination of a streaming arm."""
        assert arm.destination is not None
        return self.context.sessions[arm.destination.name]
