"""A sink whose cache is on its device: chunks are scattered there, in stream order behind their receipt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from dejavubench.dejavulib.addresses import RunAddresses
from dejavubench.dejavulib.copies import Packing
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.levels import Level
from dejavubench.dejavulib.receiver import CacheReceiver, Request, SinkEndpoint
from dejavubench.dejavulib.schedule import Chunk


class DeviceEndpoint(SinkEndpoint, Protocol):
    """What a destination that reaches a sink's device offers there."""

    def post(  # type: ignore[override]
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Request: ...


def device_slots(nbytes: int, slots: int, device: torch.device) -> list[torch.Tensor]:
    """So many staging slots on a device."""
    return [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(slots)]


class DeviceReceiver(CacheReceiver):
    """Receives one microbatch's stream into a ``cache`` on the device; used as :class:`~.receiver.CacheReceiver` is.

    Args:
        slots: staging on the device, :attr:`SLOTS` of them; without it, the receiver has its own.
    """

    SLOTS = 8

    def __init__(
        self,
        cache: KVCache,
        stream: Stream,
        level: Level,
        endpoint: DeviceEndpoint,
        slots: Sequence[torch.Tensor] = (),
    ) -> None:
        self._device_endpoint = endpoint
        self._packings: list[Packing] = []
        if level.buffered:
            self._packings = [
                Packing(cache, chunk.region) for chunk in stream.schedule.all_chunks(level)
            ]
        super().__init__(cache, stream, level, endpoint, slots)

    def begin(self) -> None:
        if self._cache.k.is_cuda:
            # chunks arrive on streams of their own: whatever the owner still writes to cache and slots comes first
            torch.cuda.synchronize(self._cache.k.device)
        super().begin()

    def _make_slots(self, nbytes: int) -> Sequence[torch.Tensor]:
        return device_slots(nbytes, self.SLOTS, self._cache.k.device)

    def _find_runs(self) -> Any:
        return RunAddresses(self._cache, self._stream.schedule)

    def _receive(self, chunk: Chunk, packed: torch.Tensor) -> Request:
        return self._device_endpoint.post(self._stream, packed, self._packings[chunk.index].scatter)

    def _unpack(self, chunk: Chunk, packed: torch.Tensor) -> None:
        """It has been scattered already."""
