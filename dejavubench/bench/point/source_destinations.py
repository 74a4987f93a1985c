"""The destinations that one source streams to: each opened when an arm first needs it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import torch

from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.point.source_staging import SourceStaging
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.destinations.base import Destination, StorageError, Stream
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.transports.contexts import SourceContext


@dataclass
class OpenDestination:
    """One open destination.

    Attributes:
        managers: the cache managers by level, one per microbatch.
    """

    streamer: Streamer
    managers: dict[str, list[CacheManager]] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamFiles:
    """The files that a source's destinations on storage write.

    Attributes:
        prefix: text in their names, so that files of two scenarios can lie side by side.
        may_stay: true if ``--keep`` leaves them.
        outlives_failure: an arm whose device fails computes its request to the end, and only this
            arm fails.
    """

    prefix: str = ""
    may_stay: bool = True
    outlives_failure: bool = True


STREAMED_FILES = StreamFiles()
"""Files of the destinations that arms stream to."""


class SourceDestinations:
    """The streamers and cache managers of one source.

    Args:
        caches: one per microbatch.
        staging: may be shared, as only one arm works at a time.
        files: how the files of destinations on storage are named and kept.
    """

    def __init__(
        self,
        rank_at_point: RankAtPoint,
        caches: list[KVCache],
        staging: SourceStaging,
        files: StreamFiles = STREAMED_FILES,
    ) -> None:
        self._rank_at_point = rank_at_point
        self._worker_view = rank_at_point.worker_view
        self._caches = caches
        self._staging = staging
        self._files = files
        # By Arm.destination_key.
        self._open_destinations: dict[tuple[str, str | None], OpenDestination] = {}

    def streams(self, arm: Arm) -> list[list[Stream]]:
        """Return each microbatch's streams to the arm's destination."""
        return (
            self._worker_view.remote_streams()
            if arm.is_remote
            else self._worker_view.local_streams()
        )

    def open_managers(self, arm: Arm, level_name: str) -> list[CacheManager]:
        """Return the cache managers that stream each microbatch to the arm's destination."""
        open_destination = self._find_or_open(arm)
        # Levels of a destination share its helper thread, but not the lists of chunks.
        if level_name not in open_destination.managers:
            streams = self.streams(arm)
            timeout_s = self._rank_at_point.experiment.drain_timeout
            open_destination.managers[level_name] = [
                CacheManager(
                    cache,
                    streams[microbatch],
                    LEVELS[level_name],
                    open_destination.streamer,
                    timeout=timeout_s,
                )
                for microbatch, cache in enumerate(self._caches)
            ]
        return open_destination.managers[level_name]

    def open_streamer(self, arm: Arm) -> Streamer:
        """Return the helper thread of the arm's destination."""
        return self._find_or_open(arm).streamer

    def fill(self, arm: Arm, pattern: int) -> None:
        """Fill what the library holds for an arm: staging, and where its destination keeps chunks.

        Called after the streams have begun, outside the clock.
        """
        streamer = self.open_streamer(arm)
        # A stale byte in a slot or at the destination would look like one that was streamed.
        for slot in streamer.staging():
            slot.fill_(pattern)
        for microbatch_streams in self.streams(arm):
            for stream in microbatch_streams:
                for buffer in streamer.destination.buffers(stream):
                    buffer.fill_(pattern)
        if self._staging.on_cuda:  # chunks are packed on a stream of their own
            torch.cuda.synchronize(self._caches[0].k.device)

    def stream_alone(self, arm: Arm, level_name: str) -> float:
        """Stream the arm's chunks at a level with no compute beside them.

        Returns:
            Milliseconds from the first chunk until the last one is complete.
        """
        # Nothing is computed, so every layer and step is announced as ready at once.
        managers = self.open_managers(arm, level_name)
        worker_view = self._worker_view
        began_s = time.perf_counter()
        for manager in managers:
            for layer in range(worker_view.geometry.layers):
                manager.layer_ready(layer)
            for step in range(worker_view.point.generated_token_count):
                manager.step_ready(step)
        for manager in managers:
            manager.drain()
        return (time.perf_counter() - began_s) * 1e3

    def cpu_seconds(self, arm: Arm) -> float:
        """Return the CPU seconds so far of the arm's helper thread."""
        open_destination = self._open_destinations.get(arm.destination_key)
        return open_destination.streamer.cpu_seconds() if open_destination else 0.0

    def find_failure(self, arm: Arm) -> str | None:
        """Return why the arm streams no more, if its device has failed."""
        open_destination = self._open_destinations.get(arm.destination_key)
        return open_destination.streamer.failure if open_destination else None

    def fetch_buffer(self) -> torch.Tensor:
        """Return a buffer that verification reads one chunk into."""
        return self._staging.fetch_slot()

    @property
    def ways(self) -> dict[str, str]:
        """How chunks of each kind leave the device, once something was streamed from it.

        The name of a destination that chooses for itself stands before the kind.
        """
        destinations = [
            open_destination.streamer.destination
            for open_destination in self._open_destinations.values()
        ]
        own_ways = {
            f"{destination.entry.name} {kind}": way
            for destination in destinations
            for kind, way in destination.ways.items()
        }
        return {**self._staging.ways, **own_ways}

    def close_failed(self, arm: Arm) -> None:
        """Close the destination of an arm that has failed; other arms of it open it anew."""
        open_destination = self._open_destinations.pop(arm.destination_key, None)
        if open_destination is not None:
            with contextlib.suppress(StorageError):  # its failure was reported already
                open_destination.streamer.close()

    def close(self) -> None:
        """End the helper threads and close every destination that is open."""
        for open_destination in self._open_destinations.values():
            open_destination.streamer.close()

    def _find_or_open(self, arm: Arm) -> OpenDestination:
        if arm.destination_key not in self._open_destinations:
            # Opened outside the clock, when an arm is first prepared: it may connect or allocate.
            destination = self._connect_destination(arm)
            holds_failure = arm.on_disk and self._files.outlives_failure
            streamer = self._staging.make_streamer(destination, holds_failure)
            self._open_destinations[arm.destination_key] = OpenDestination(streamer)
        return self._open_destinations[arm.destination_key]

    def _connect_destination(self, arm: Arm) -> Destination:
        """Connect the arm's destination, with files only where it has a durability option."""
        rank_at_point = self._rank_at_point
        experiment = self._rank_at_point.experiment
        files = None
        if arm.durability is not None:
            keep = experiment.keep and self._files.may_stay
            files = rank_at_point.stream_files(arm.durability, self._files.prefix, keep)
        return rank_at_point.connector(arm).open_source(
            SourceContext(
                caches=self._caches,
                streams=self.streams(arm),
                peers=self._worker_view.peers(),
                make_slots=self._staging.slots,
                device=self._caches[0].k.device,
                timeout=experiment.drain_timeout,
                files=files,
            )
        )
