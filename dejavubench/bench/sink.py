"""The sink's part in a point: caches that receive, nothing that computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from dejavubench.bench.handover import Successor, TakenOver
from dejavubench.bench.side import Side
from dejavubench.bench.source import Place
from dejavubench.bench.verify import compare, received_pieces
from dejavubench.config.experiment import Experiment
from dejavubench.config.points import Arm, Mode
from dejavubench.dejavulib.copies import staging
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.dejavulib.device_receiver import DeviceReceiver, device_slots
from dejavubench.dejavulib.kvcache import KVCache, Span
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.receiver import CacheReceiver, SinkEndpoint, largest_chunk, receive_all
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from dejavubench.transports.session import SinkContext


@dataclass
class Received:
    nbytes: int = 0
    messages: int = 0
    cpu_s: float = 0.0
    taken: TakenOver | None = None


class Sink:
    """One worker that receives: what comes by MPI in host memory, else in its device's.

    Args:
        side: this worker's place in the point's plan.
        dtype: of the cache.
        device: where NCCL and NIXL bring it; a cache is made there once an arm needs it.
    """

    def __init__(self, side: Side, dtype: torch.dtype, place: Place, device: torch.device) -> None:
        self.side = side
        self.place = place
        self.device = device
        self._dtype = dtype
        self._caches: dict[str, list[KVCache]] = {}  # by the type of device that they are on
        self._endpoints: dict[Mode, SinkEndpoint] = {}
        self._receivers: dict[tuple[Mode, str], list[CacheReceiver]] = {}
        self._slots: dict[
            str, list[list[torch.Tensor]]
        ] = {}  # likewise; of each stream, for all of its receivers
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
            for slot in receiver.slots:
                slot.fill_(pattern)
            receiver.begin()

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
        self._successor = Successor(
            self.side, experiment, model, collectives, caches, self.place.handover
        )

    def verify(self, arm: Arm) -> str | None:
        """Compare the caches with what the sources have; None, or where they first differ."""
        if not arm.remote:
            return None
        first = None
        for ubatch, (cache, streams) in enumerate(
            zip(self._caches_of(arm.mode), self.side.remote(), strict=True)
        ):
            piece = received_pieces(self.place.verification, cache)
            found = compare(
                cache, streams, piece, self._pattern, self.side, ubatch, self._own_positions()
            )
            first = first or found
        return first

    def _own_positions(self) -> Span:
        """What this sink's own model has written."""
        point = self.side.point
        return Span(point.streamed, point.written if self._successor else point.streamed)

    # ---- of each destination, of which one at a time works ----

    def _device_of(self, mode: Mode) -> torch.device:
        return self.device if DESTINATIONS[mode].device_memory else torch.device("cpu")

    def _caches_of(self, mode: Mode) -> list[KVCache]:
        device = self._device_of(mode)
        if device.type not in self._caches:
            made = [
                KVCache.allocate(self.side.geometry, self._dtype, device)
                for _ in range(self.side.ubatches)
            ]
            self._caches[device.type] = made
        return self._caches[device.type]

    def _slots_of(self, mode: Mode) -> list[list[torch.Tensor]]:
        device = self._device_of(mode)
        if device.type not in self._slots:
            largest = [largest_chunk(stream) for _, stream in self._streams_of(mode)]
            slots = self._receiver_kind(mode).SLOTS
            on_device = device.type == "cuda"
            self._slots[device.type] = [
                device_slots(nbytes, slots, device) if on_device else staging(nbytes, slots)
                for nbytes in largest
            ]
        return self._slots[device.type]

    def _streams_of(self, mode: Mode) -> list[tuple[KVCache, Stream]]:
        """Every stream, with the cache that it fills."""
        caches = zip(self._caches_of(mode), self.side.remote(), strict=True)
        return [(cache, stream) for cache, streams in caches for stream in streams]

    def _endpoint_of(self, mode: Mode) -> SinkEndpoint:
        if mode not in self._endpoints:
            self._endpoints[mode] = self._make_endpoint(mode)
        return self._endpoints[mode]

    def _make_endpoint(self, mode: Mode) -> SinkEndpoint:
        context = SinkContext(
            self._streams_of(mode),
            self.side.peers(),
            lambda: self._slots_of(mode),
            self._device_of(mode),
        )
        return cast(SinkEndpoint, self.place.sessions[mode].open_sink(context))

    def _receivers_of(self, mode: Mode, level: str) -> list[CacheReceiver]:
        if (mode, level) not in self._receivers:
            pairs, kind = self._streams_of(mode), self._receiver_kind(mode)
            slots = self._slots_of(mode) if LEVELS[level].buffered else [[] for _ in pairs]
            self._receivers[mode, level] = [
                kind(cache, stream, LEVELS[level], self._endpoint_of(mode), own)
                for (cache, stream), own in zip(pairs, slots, strict=True)
            ]
        return self._receivers[mode, level]

    def _receiver_kind(self, mode: Mode) -> type[CacheReceiver]:
        return DeviceReceiver if self._device_of(mode).type == "cuda" else CacheReceiver

    def close(self) -> None:
        self._receivers.clear()
        for endpoint in self._endpoints.values():
            endpoint.close()
