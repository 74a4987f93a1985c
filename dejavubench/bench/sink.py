"""The sink's part in a point: caches that receive, nothing that computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from dejavubench.bench.handover import Successor, TakenOver
from dejavubench.bench.source import Place
from dejavubench.bench.streams import Side
from dejavubench.bench.verify import compare, received_pieces
from dejavubench.dejavulib.copies import staging
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint
from dejavubench.dejavulib.destinations.nccl import NCCLSinkEndpoint
from dejavubench.dejavulib.device_receiver import DeviceReceiver, device_slots
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.receiver import CacheReceiver, SinkEndpoint, largest_chunk, receive_all
from dejavubench.experiment import Experiment
from dejavubench.kvcache import KVCache, Span
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from dejavubench.points import Arm, Mode


@dataclass
class Received:
    nbytes: int = 0
    messages: int = 0
    cpu_s: float = 0.0
    taken: TakenOver | None = None


class Sink:
    """One worker that receives: in host memory what comes by MPI, in its device's what comes by NCCL.

    Args:
        side: this worker's place in the point's plan.
        dtype: of the cache.
        device: where NCCL brings it; a cache is made there once an arm needs it.
    """

    def __init__(self, side: Side, dtype: torch.dtype, place: Place, device: torch.device) -> None:
        self.side = side
        self.place = place
        self.device = device
        self._dtype = dtype
        self._caches: dict[Mode, list[KVCache]] = {}
        self._endpoints: dict[Mode, SinkEndpoint] = {}
        self._receivers: dict[tuple[Mode, str], list[CacheReceiver]] = {}
        self._slots: dict[Mode, list[list[torch.Tensor]]] = {}  # of each stream, for the receivers of all levels
        self._pattern = 0
        self._successor: Successor | None = None

    def prepare(self, arm: Arm, pattern: int, level: str | None = None) -> None:
        """Fill the caches with the arm's pattern and post the first receives, outside the clock."""
        if not arm.remote:
            return
        self._pattern = pattern
        for cache in self._caches_of(arm.mode):
            cache.fill(pattern)
        for receiver in self._receivers_of(arm.mode, level or cast(str, arm.level)):
            receiver.begin(pattern)

    def run(self, arm: Arm, mark: Callable[[str], None]) -> Received:
        """Receive one iteration of a remote arm, and go on from there; in the others this rank has nothing to do."""
        if not arm.remote:
            return Received()
        began = time.perf_counter()
        received = self._receive(arm.mode, cast(str, arm.level))
        if self._successor is not None:
            mark("take over")
            received.taken = self._successor.run(began)
        return received

    def alone(self, arm: Arm) -> None:
        if arm.remote:
            self._receive(arm.mode, DEFAULT_LEVEL)

    def _receive(self, mode: Mode, level: str) -> Received:
        receivers = self._receivers_of(mode, level)
        began = time.process_time()
        receive_all(receivers)
        self._endpoint_of(mode).finish()
        return Received(
            sum(receiver.nbytes for receiver in receivers),
            sum(receiver.messages for receiver in receivers),
            time.process_time() - began,
        )

    def take_over(self, experiment: Experiment, model: GPT, collectives: Collectives) -> None:
        """From now on go on with ``model``, this sink's part of it, once an iteration's cache is here."""
        caches = self._caches_of("mpi")
        self._successor = Successor(self.side, experiment, model, collectives, caches, self.place.handover)

    def verify(self, arm: Arm) -> str | None:
        """Compare the caches with what the sources have; None, or where they first differ."""
        if not arm.remote:
            return None
        first = None
        for ubatch, (cache, streams) in enumerate(zip(self._caches_of(arm.mode), self.side.remote(), strict=True)):
            piece = received_pieces(self.place.verification, cache)
            found = compare(cache, streams, piece, self._pattern, self.side, ubatch, self._own_positions())
            first = first or found
        return first

    def _own_positions(self) -> Span:
        """What this sink's own model has written."""
        point = self.side.point
        return Span(point.streamed, point.written if self._successor else point.streamed)

    # ---- of each destination ----

    def _device_of(self, mode: Mode) -> torch.device:
        return self.device if mode == "nccl" else torch.device("cpu")

    def _caches_of(self, mode: Mode) -> list[KVCache]:
        if mode not in self._caches:
            geometry, device = self.side.geometry, self._device_of(mode)
            self._caches[mode] = [KVCache.allocate(geometry, self._dtype, device) for _ in range(self.side.ubatches)]
        return self._caches[mode]

    def _endpoint_of(self, mode: Mode) -> SinkEndpoint:
        if mode not in self._endpoints:
            self._endpoints[mode] = self._make_endpoint(mode)
        return self._endpoints[mode]

    def _make_endpoint(self, mode: Mode) -> SinkEndpoint:
        if mode == "nccl":
            # it is handed what scatters as well, which DeviceReceiver knows
            return cast(SinkEndpoint, NCCLSinkEndpoint(self.place.announcements, self.place.links))
        return MPISinkEndpoint(self.place.data)

    def _receivers_of(self, mode: Mode, level: str) -> list[CacheReceiver]:
        if (mode, level) not in self._receivers:
            pairs = [
                (cache, stream)
                for cache, streams in zip(self._caches_of(mode), self.side.remote(), strict=True)
                for stream in streams
            ]
            if LEVELS[level].buffered and mode not in self._slots:
                self._slots[mode] = [self._staging(mode, stream) for _, stream in pairs]
            slots, kind = self._slots.get(mode) or [[] for _ in pairs], _receiver_kind(mode)
            self._receivers[mode, level] = [
                kind(cache, stream, LEVELS[level], self._endpoint_of(mode), own)
                for (cache, stream), own in zip(pairs, slots, strict=True)
            ]
        return self._receivers[mode, level]

    def _staging(self, mode: Mode, stream: Stream) -> list[torch.Tensor]:
        slots = _receiver_kind(mode).SLOTS
        if mode == "nccl":
            return device_slots(largest_chunk(stream), slots, self.device)
        return staging(largest_chunk(stream), slots)

    def close(self) -> None:
        self._receivers.clear()
        for endpoint in self._endpoints.values():
            endpoint.close()


def _receiver_kind(mode: Mode) -> type[CacheReceiver]:
    return DeviceReceiver if mode == "nccl" else CacheReceiver
