"""One rank at one point: the run, this worker's part in the point, and the connected sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpi4py import MPI

from dejavubench.bench.layout.identity import identity
from dejavubench.bench.layout.worker import WorkerView
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.destinationsessions import point_context
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.records import Record
from dejavubench.transports.session import Session


@dataclass(frozen=True)
class RankAtPoint:
    """All that sources, sinks and scenarios of one rank share at a point.

    Attributes:
        context: what the rank has for the whole run.
        view: this worker's cache and streams.
        identity: strings for the headers of stream files, which a resume compares.
    """

    context: RunContext
    view: WorkerView
    identity: dict[str, str]

    @classmethod
    def connect(cls, context: RunContext, point: Point) -> RankAtPoint:
        """Connect this rank with the other side, for every destination. Collective."""
        described = point_context(context.experiment, point, context.ranks)
        for session in context.sessions.values():
            session.connect(described)
        own_identity = identity(
            context.plan,
            point,
            context.devices.computing,
            context.workspace.run_id,
            context.ranks.rank,
        )
        return cls(context, context.view(point), own_identity)

    @property
    def experiment(self) -> Experiment:
        """The options of the run."""
        return self.context.experiment

    @property
    def world(self) -> MPI.Intracomm:
        """The communicator of all ranks, for control messages between measurements."""
        return self.context.ranks.world

    @property
    def write(self) -> Callable[[Record], None]:
        """Appends a record to this rank's file."""
        return self.context.workspace.recorder.write

    def session(self, arm: Arm) -> Session:
        """Return this rank's part in the destination of a streaming arm."""
        assert arm.destination is not None
        return self.context.sessions[arm.destination.name]
