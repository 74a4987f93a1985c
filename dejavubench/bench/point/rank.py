"""One rank at one point: this worker's part in the point, and what it needs of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from mpi4py import MPI

from dejavubench.bench.layout.identity import identity
from dejavubench.bench.layout.worker import WorkerView
from dejavubench.bench.recording.chunk_file import ChunkFile
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.startup.communicators import Communicators
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.destination_sessions import Sessions, point_context
from dejavubench.bench.startup.devices import Devices
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.interrupted import stream_name
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.models.dtypes import dtype_of
from dejavubench.parallel.collectives import Collectives
from dejavubench.records import Record
from dejavubench.transports.contexts import FileContext
from dejavubench.transports.session import Session


@dataclass(frozen=True, kw_only=True)
class RankAtPoint:
    """All that sources, sinks and scenarios of one rank share at a point.

    Attributes:
        plan: the run, as rank 0 has resolved it.
        arms: the arms that run.
        view: this worker's cache and streams.
        world: the communicator of all ranks, for control messages between measurements.
        comms: the communicators of verification and hand-over.
        workers: connects the workers of this side; None on a sink without a model.
        recorder: this rank's records.
        chunk_file: the times of this rank's chunks.
        sessions: this rank's part in each destination, connected.
        saved: the files that a killed run has left of this rank, where that run is resumed.
        shares_host_with_sources: sources compute on this rank's host.
    """

    plan: Plan
    arms: Sequence[Arm]
    view: WorkerView
    world: MPI.Intracomm
    comms: Communicators
    workers: Collectives | None
    devices: Devices
    recorder: Recorder
    chunk_file: ChunkFile
    sessions: Sessions
    saved: list[SavedStream]
    shares_host_with_sources: bool
    _run_id: str
    _files: FileContext

    @classmethod
    def connect(cls, context: RunContext, point: Point) -> RankAtPoint:
        """Connect this rank with the other side, for every destination. Collective."""
        described = point_context(context.experiment, point, context.ranks)
        # In one order on all ranks, as connecting may be collective.
        for session in context.sessions.values():
            session.connect(described)
        workspace, run_id = context.workspace, context.workspace.stream_id
        # For the headers of stream files: a resume compares them with its own.
        own_identity = identity(
            context.plan, point, context.devices.computing, run_id, context.rank
        )
        return cls(
            plan=context.plan,
            arms=context.arms,
            view=context.view(point),
            world=context.world,
            comms=context.comms,
            workers=context.workers,
            devices=context.devices,
            recorder=workspace.recorder,
            chunk_file=workspace.chunk_file,
            sessions=context.sessions,
            saved=context.saved,
            shares_host_with_sources=context.ranks.on_this_host(context.ranks.topology.sources) > 0,
            _run_id=run_id,
            _files=FileContext("", workspace.stream_dir, run_id, identity=own_identity),
        )

    @property
    def experiment(self) -> Experiment:
        """The options of the run."""
        return self.plan.experiment

    @property
    def point(self) -> Point:
        return self.view.point

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on, or receives to."""
        return self.devices.own

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the caches."""
        return dtype_of(self.point.data_type)

    @property
    def write(self) -> Callable[[Record], None]:
        """Appends a record to this rank's file."""
        return self.recorder.write

    def session(self, arm: Arm) -> Session:
        """Return this rank's part in the destination of a streaming arm."""
        assert arm.destination is not None
        return self.sessions[arm.destination.name]

    def stream_files(self, durability: str, prefix: str, keep: bool) -> FileContext:
        """Describe the files of this source's streams.

        Args:
            prefix: text in their names, so that files of two scenarios can lie side by side.
            keep: they stay when they are closed.
        """
        rank, suffix = self.view.topology.rank, f"{prefix}{durability}"
        name = stream_name(self._run_id, self.point.id, rank, suffix)
        return replace(self._files, durability=durability, name=name, keep=keep)

    def probe_files(self, durability: str) -> FileContext:
        """Describe the files that probes of a storage device write; they never stay."""
        name = f"{self._run_id}-{self.point.id}-{durability}"
        return replace(self._files, durability=durability, name=name, identity={})
