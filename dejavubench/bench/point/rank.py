"""One rank at one point: this worker's part in the point, and what it needs of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from mpi4py import MPI

from dejavubench.bench.assignment.identity import identity
from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.recording.chunk_file import ChunkFile
from dejavubench.bench.recording.recorder import Recorder
from dejavubench.bench.startup.communicators import Communicators
from dejavubench.bench.startup.connectors import Connectors, point_context
from dejavubench.bench.startup.context import RunContext
from dejavubench.bench.startup.devices import Devices
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.config.restart_request import stream_name
from dejavubench.dejavulib.destinations.disk.saved_stream import SavedStream
from dejavubench.models.dtypes import dtype_of
from dejavubench.parallel.collectives import Collectives
from dejavubench.records import Record
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import FileContext


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
        connectors: this rank's part in each destination, connected.
        saved_streams: the files of this rank that a killed run has left, if this run restarts a
            request.
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
    connectors: Connectors
    saved_streams: list[SavedStream]
    shares_host_with_sources: bool
    _run_id: str
    _files: FileContext

    @classmethod
    def connect(cls, context: RunContext, point: Point) -> RankAtPoint:
        """Connect this rank with the other side, for every destination. Collective."""
        described = point_context(context.experiment, point, context.ranks)
        # In one order on all ranks, as connecting may be collective.
        for connector in context.connectors.values():
            connector.connect(described)
        workspace, run_id = context.workspace, context.workspace.stream_id
        # For the headers of stream files: a restart compares them with its own.
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
            connectors=context.connectors,
            saved_streams=context.saved_streams,
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
        """The point of the sweep."""
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

    def connector(self, arm: Arm) -> Connector:
        """Return this rank's part in the destination of a streaming arm."""
        assert arm.destination is not None
        return self.connectors[arm.destination.name]

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
