"""A worker that receives at one point: caches by device, and the receivers that fill them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dejavubench.bench.engine.batch_maker import MarkPhase
from dejavubench.bench.point.rank import RankAtPoint
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.config.arms import Arm
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import device_staging, staging
from dejavubench.dejavulib.receiver import (
    CacheReceiver,
    SinkEndpoint,
    largest_chunk,
    receive_all,
    receiving_slots,
)
from dejavubench.dejavulib.upload import DeviceUpload
from dejavubench.models.gpt import GPT
from dejavubench.transports.contexts import SinkContext


@dataclass(frozen=True)
class ReceivedIteration:
    """The outcome of one iteration.

    Attributes:
        cpu_s: CPU seconds of receiving.
        began_ns: when it began to receive, by ``perf_counter_ns``.
        receivers: with the number of each one's microbatch.
    """

    nbytes: int = 0
    message_count: int = 0
    cpu_s: float = 0.0
    began_ns: int = 0
    receivers: Sequence[tuple[int, CacheReceiver]] = ()


class Sink:
    """One worker that receives: what comes by MPI in host memory, else in its device's.

    A sink that has a model receives into the memory of the model's device in any case.

    Args:
        model: this worker's part, loaded, where sinks have one.

    Attributes:
        pattern: the byte that its caches were filled with before the newest iteration.
    """

    def __init__(self, rank_at_point: RankAtPoint, model: GPT | None = None) -> None:
        self.rank_at_point = rank_at_point
        ranks = rank_at_point.context.ranks
        self._shares_host_with_sources = ranks.on_this_host(ranks.topology.sources) > 0
        self.worker_view = rank_at_point.worker_view
        self.model = model
        self.pattern = 0
        self._caches: dict[str, list[KVCache]] = {}  # by the type of device that they are on
        # By the type of device that they are on, for each stream.
        self._slots: dict[str, list[list[torch.Tensor]]] = {}
        self._upload: DeviceUpload | None = None
        self._endpoints: dict[str, SinkEndpoint] = {}
        self._receivers: dict[tuple[str, str], list[CacheReceiver]] = {}

    def run_undisturbed(self, mark: MarkPhase) -> None:
        """Run nothing: sources alone have requests from the beginning."""

    def write_tokens(self, generated_tokens: torch.Tensor) -> None:
        """Record nothing: rank 0 is a source."""

    def prepare(self, arm: Arm, level_name: str | None, pattern: int) -> None:
        """Fill the caches with a pattern and post the first receives, outside the clock."""
        if level_name is None or not arm.is_remote:
            return
        self.pattern = pattern
        for cache in self.caches(arm.mode):
            cache.fill(pattern)
        for receiver in self._receivers_of(arm.mode, level_name):
            for slot in receiver.slots:
                slot.fill_(pattern)
            receiver.begin()  # after the fill: from here on a chunk may arrive at any time

    @property
    def copy_ways(self) -> dict[str, str]:
        """Nothing: chunks leave no device here."""
        return {}

    def stream_alone(self, arm: Arm, level_name: str) -> None:
        """Receive what the sources stream with no compute beside it."""
        self.receive(arm, level_name)

    def receive(self, arm: Arm, level_name: str | None) -> ReceivedIteration:
        """Receive all that the sources stream to other ranks in one iteration, if they do."""
        if level_name is None or not arm.is_remote:
            return ReceivedIteration()
        receivers = self._receivers_of(arm.mode, level_name)
        # CPU time of all threads: receiving may have helpers of its own.
        began_s = time.process_time()
        began_ns = time.perf_counter_ns()
        # NCCL's and NIXL's chunks on a device get on only while their sink looks.
        to_host = self._slots_device_of(arm.mode).type == "cpu"
        receive_all(receivers, self._shares_host_with_sources and to_host)
        # Acknowledgements may still be leaving: the sources' drain waits for them.
        self._open_endpoint(arm.mode).finish()
        return ReceivedIteration(
            sum(receiver.nbytes for receiver in receivers),
            sum(receiver.messages for receiver in receivers),
            time.process_time() - began_s,
            began_ns,
            [*zip(self._list_microbatches(), receivers, strict=True)],
        )

    def record_times(
        self, arm: Arm, iteration_id: IterationId, received_iteration: ReceivedIteration
    ) -> None:
        """Write when each chunk of an iteration came and was in its place."""
        if self.rank_at_point.experiment.chunk_times:
            self.rank_at_point.context.chunk_file.write_arrivals(
                arm, iteration_id, received_iteration.began_ns, received_iteration.receivers
            )

    def caches(self, mode: str) -> list[KVCache]:
        """Return the cache of each microbatch on the device that the mode brings it to."""
        # Modes that bring the cache to the same device share it: only one arm works at a time.
        device = self._device_of(mode)
        if device.type not in self._caches:
            geometry = self.worker_view.geometry
            dtype = self.rank_at_point.dtype
            self._caches[device.type] = [
                KVCache.allocate(geometry, dtype, device)
                for _ in range(self.worker_view.microbatch_count)
            ]
        return self._caches[device.type]

    def close(self) -> None:
        """Drop the receivers and close the endpoints; NCCL's wait for the sources to do so."""
        self._receivers.clear()
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _device_of(self, mode: str) -> torch.device:
        """Return the device of the caches that a mode fills."""
        # A model goes on over the caches, so they are where it is.
        return self._slots_device_of(mode) if self.model is None else self.model.device

    def _slots_device_of(self, mode: str) -> torch.device:
        """Return the device that a mode's chunks arrive on."""
        return (
            self.rank_at_point.device if DESTINATIONS[mode].device_memory else torch.device("cpu")
        )

    def _slots_of(self, mode: str) -> list[list[torch.Tensor]]:
        """Return the slots of each stream; modes that end on one type of device share them."""
        device = self._slots_device_of(mode)
        if device.type not in self._slots:
            # A slot per chunk under way, each as large as the largest chunk of its stream.
            slot_count = receiving_slots(device)
            nbytes_of_slots = [largest_chunk(stream) for _, stream in self._list_streams(mode)]
            is_pinned = self._needs_upload(mode)
            self._slots[device.type] = [
                device_staging(nbytes, slot_count, device)
                if device.type == "cuda"
                else staging(nbytes, slot_count, is_pinned)
                for nbytes in nbytes_of_slots
            ]
        return self._slots[device.type]

    def _needs_upload(self, mode: str) -> bool:
        """Return whether chunks of a mode come in host memory and go on to a device."""
        return self._device_of(mode).type != self._slots_device_of(mode).type

    def _upload_of(self, mode: str) -> DeviceUpload | None:
        """Return the way to the device, which all streams share; None where none is needed."""
        if not self._needs_upload(mode):
            return None
        if self._upload is None:
            largest_nbytes = max(largest_chunk(stream) for _, stream in self._list_streams(mode))
            self._upload = DeviceUpload(self._device_of(mode), largest_nbytes)
        return self._upload

    def _list_streams(self, mode: str) -> list[tuple[KVCache, Stream]]:
        """Return every stream, with the cache that it fills."""
        caches = zip(self.caches(mode), self.worker_view.remote_streams(), strict=True)
        return [(cache, stream) for cache, streams in caches for stream in streams]

    def _list_microbatches(self) -> list[int]:
        """Return the number of the microbatch that each stream fills."""
        numbered_streams = enumerate(self.worker_view.remote_streams())
        return [microbatch for microbatch, streams in numbered_streams for _ in streams]

    def _open_endpoint(self, mode: str) -> SinkEndpoint:
        if mode not in self._endpoints:
            self._endpoints[mode] = self.rank_at_point.context.connectors[mode].open_sink(
                SinkContext(
                    self._list_streams(mode),
                    self.worker_view.peers(),
                    lambda: self._slots_of(mode),
                    self._device_of(mode),
                    self.rank_at_point.experiment.drain_timeout,
                )
            )
        return self._endpoints[mode]

    def _receivers_of(self, mode: str, level_name: str) -> list[CacheReceiver]:
        """Return the receiver of each stream, made once for each mode and level."""
        if (mode, level_name) not in self._receivers:
            pairs = self._list_streams(mode)
            slots = self._slots_of(mode) if LEVELS[level_name].buffered else [[] for _ in pairs]
            self._receivers[mode, level_name] = [
                CacheReceiver(
                    cache=cache,
                    stream=stream,
                    level=LEVELS[level_name],
                    endpoint=self._open_endpoint(mode),
                    slots=own_slots,
                    timed=self.rank_at_point.experiment.chunk_times,
                    upload=self._upload_of(mode),
                )
                for (cache, stream), own_slots in zip(pairs, slots, strict=True)
            ]
        return self._receivers[mode, level_name]
