"""One rank at one point: this worker's part in the point, beside the context of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from dejavubench.bench.assignment.identity import identify_streams
from dejavubench.bench.assignment.worker import WorkerView
from dejavubench.bench.startup.connectors import make_point_context
from dejavubench.bench.startup.context import RunContext
from dejavubench.config.arms import Arm
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Point
from dejavubench.config.restart_request import name_stream
from dejavubench.models.dtypes import dtype_of
from dejavubench.records import Record
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import FileContext


@dataclass(frozen=True, kw_only=True)
class RankAtPoint:
    """All that sources, sinks and scenarios of one rank share at a point.

    Attributes:
        context: all that the rank has for the whole run.
        worker_view: this worker's cache and streams.
        stream_identity: entries for the headers of this rank's stream files.
    """

    context: RunContext
    worker_view: WorkerView
    stream_identity: Mapping[str, str]

    @classmethod
    def connect(cls, context: RunContext, point: Point) -> RankAtPoint:
        """Connect this rank with the other side, for every destination. Collective."""
        point_context = make_point_context(context.experiment, point, context.ranks)
        # In one order on all ranks, as connecting may be collective.
        for connector in context.connectors.values():
            connector.connect(point_context)
        # A restart compares these entries with its own.
        header_entries = identify_streams(
            context.plan,
            point,
            context.devices.compute_type,
            context.workspace.stream_id,
            context.rank,
        )
        return cls(
            context=context,
            worker_view=context.find_worker_view(point),
            stream_identity=header_entries,
        )

    @property
    def experiment(self) -> Experiment:
        """The options of the run."""
        return self.context.experiment

    @property
    def point(self) -> Point:
        """The point of the sweep."""
        return self.worker_view.point

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on, or receives to."""
        return self.context.devices.own_device

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the caches."""
        return dtype_of(self.point.data_type)

    @property
    def write(self) -> Callable[[Record], None]:
        """Appends a record to this rank's file."""
        return self.context.recorder.write

    def connector(self, arm: Arm) -> Connector:
        """Return this rank's part in the destination of a streaming arm."""
        assert arm.transport is not None
        return self.context.connectors[arm.transport.name]

    def stream_files(self, durability: str, prefix: str, keep: bool) -> FileContext:
        """Describe the files of this source's streams.

        Args:
            prefix: text in their names, so that files of two scenarios can lie side by side.
            keep: they stay when they are closed.
        """
        stream_id = self.context.workspace.stream_id
        name = name_stream(stream_id, self.point.id, self.context.rank, f"{prefix}{durability}")
        folder = self.context.workspace.stream_dir
        return FileContext(durability, folder, name, keep, self.stream_identity)

    def probe_files(self, durability: str) -> FileContext:
        """Describe the files that probes of a storage device write; they never stay."""
        workspace = self.context.workspace
        name = f"{workspace.stream_id}-{self.point.id}-{durability}"
        return FileContext(durability, workspace.stream_dir, name)
