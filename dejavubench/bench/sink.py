"""The sink's part in a point: caches that receive, nothing that computes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import torch

from dejavubench.bench.source import Place
from dejavubench.bench.streams import Side
from dejavubench.bench.verify import compare, received_pieces
from dejavubench.dejavulib.copies import staging
from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.receiver import CacheReceiver, largest_chunk, receive_all
from dejavubench.kvcache import KVCache
from dejavubench.points import Arm


@dataclass
class Received:
    nbytes: int = 0
    messages: int = 0
    cpu_s: float = 0.0


class Sink:
    """One worker that receives.

    Args:
        side: this worker's place in the point's plan.
        dtype: of the cache.
    """

    def __init__(self, side: Side, dtype: torch.dtype, place: Place) -> None:
        self.side = side
        self.place = place
        self.caches = [KVCache.allocate(side.geometry, dtype) for _ in range(side.ubatches)]
        self._endpoint = MPISinkEndpoint(place.data)
        self._receivers: dict[str, list[CacheReceiver]] = {}
        self._slots: list[list[torch.Tensor]] = []  # of each stream, for the receivers of all levels
        self._pattern = 0

    def prepare(self, arm: Arm, pattern: int, level: str | None = None) -> None:
        """Fill the caches with the arm's pattern and post the first receives, outside the clock."""
        self._pattern = pattern
        for cache in self.caches:
            cache.fill(pattern)
        if arm.remote:
            for receiver in self._receivers_of(level or cast(str, arm.level)):
                receiver.begin(pattern)

    def run(self, arm: Arm, level: str | None = None) -> Received:
        """Receive one iteration of a remote arm; in the others this rank has nothing to do."""
        if not arm.remote:
            return Received()
        receivers = self._receivers_of(level or cast(str, arm.level))
        began = time.process_time()
        receive_all(receivers)
        self._endpoint.finish()
        return Received(
            sum(receiver.nbytes for receiver in receivers),
            sum(receiver.messages for receiver in receivers),
            time.process_time() - began,
        )

    def alone(self, arm: Arm) -> None:
        self.run(arm, DEFAULT_LEVEL)

    def verify(self, arm: Arm) -> str | None:
        """Compare the caches with what the sources have; None, or where they first differ."""
        if not arm.remote:
            return None
        first = None
        for ubatch, (cache, streams) in enumerate(zip(self.caches, self.side.remote(), strict=True)):
            piece = received_pieces(self.place.verification, cache)
            found = compare(cache, streams, piece, self._pattern, self.side, ubatch)
            first = first or found
        return first

    def _receivers_of(self, level: str) -> list[CacheReceiver]:
        if level not in self._receivers:
            pairs = [
                (cache, stream)
                for cache, streams in zip(self.caches, self.side.remote(), strict=True)
                for stream in streams
            ]
            if LEVELS[level].buffered and not self._slots:
                self._slots = [staging(largest_chunk(stream), CacheReceiver.SLOTS) for _, stream in pairs]
            slots = self._slots or [[] for _ in pairs]
            self._receivers[level] = [
                CacheReceiver(cache, stream, LEVELS[level], self._endpoint, own)
                for (cache, stream), own in zip(pairs, slots, strict=True)
            ]
        return self._receivers[level]

    def close(self) -> None:
        self._receivers.clear()
