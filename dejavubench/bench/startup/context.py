"""One rank's view of a run: all that its points share."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpi4py import MPI

from dejavubench.bench.assignment.runnable import RunnablePlan
from dejavubench.bench.assignment.worker import WorkerView, make_worker_view
from dejavubench.bench.environment.conditions import Conditions
from dejavubench.bench.environment.sampler import ConditionsSampler
from dejavubench.bench.recording.chunk_file import ChunkFile
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.startup.communicators import Communicators, may_spin
from dejavubench.bench.startup.connectors import Connectors
from dejavubench.bench.startup.devices import Devices
from dejavubench.bench.startup.process_settings import ProcessSettings
from dejavubench.bench.startup.ranks import Ranks
from dejavubench.bench.startup.workspace import Workspace
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.parallel.collectives import Collectives


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """All that one rank has from the start of a run to its end.

    Attributes:
        runnable: the plan, and which arms and points of it run here.
        collectives: connects the workers of this side; None on a sink without a model.
        process_settings: threads and cores of this process.
        conditions: cores, CPU time and file system of this rank.
        sampler: samples the conditions around each iteration.
        connectors: this rank's part in each destination.
        saved_streams: the files of this rank that a killed run has left, if this run restarts a
            request.
    """

    runnable: RunnablePlan
    ranks: Ranks
    devices: Devices
    workspace: Workspace
    comms: Communicators
    collectives: Collectives | None
    process_settings: ProcessSettings
    conditions: Conditions
    sampler: ConditionsSampler
    connectors: Connectors
    saved_streams: list[SavedStream] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """The run, as rank 0 has resolved it."""
        return self.runnable.plan

    @property
    def experiment(self) -> Experiment:
        """The options of the run."""
        return self.runnable.experiment

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that run."""
        return self.runnable.arms

    @property
    def world(self) -> MPI.Intracomm:
        """The communicator of all ranks, for control messages between measurements."""
        return self.ranks.world

    @property
    def rank(self) -> int:
        """This rank's number."""
        return self.ranks.rank

    @property
    def recorder(self) -> Recorder:
        """This rank's records."""
        return self.workspace.recorder

    @property
    def chunk_file(self) -> ChunkFile:
        """The times of this rank's chunks."""
        return self.workspace.chunk_file

    @property
    def computes(self) -> bool:
        """True if this rank has a part of the model."""
        return self.collectives is not None

    def find_worker_view(self, point: Point, rank: int | None = None) -> WorkerView:
        """Return the part of this rank, or of another one, at a point."""
        return make_worker_view(point, self.ranks.topology, rank)

    def apply_settings(self, point: Point) -> None:
        """Give this process the threads and cores of a point. Called before its model is loaded."""
        self.process_settings.apply(point.settings)
        # A point with more threads may leave a busy-waiting rank no core of its own.
        if self.collectives is not None:
            self.collectives.spin = may_spin(self.ranks, point.settings.threads)
