"""Packed bytes of host memory to their place in a cache on a CUDA device, beside the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import torch

from .kv_cache import KVCache
from .levels import DEFAULT_LEVEL, LEVELS
from .packing import Packing, pinned_buffer
from .schedule import StreamSchedule


class DeviceUpload:
    """Puts packed bytes in their place in the caches of one device. Nothing here waits.

    A copy engine brings the bytes into staging on the device, and a kernel scatters them from
    there. Both run on one CUDA stream of their own, in order. So all bytes can pass through the
    same staging.

    Args:
        nbytes: bytes of the staging. It grows if more bytes are put at once.
    """

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self._cuda_stream = torch.cuda.Stream(device)
        self._device = device
        with torch.cuda.stream(self._cuda_stream):
            self._staging = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def put(self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]) -> None:
        """Issue the copy of packed bytes to the device, and their scatter behind it.

        Args:
            packed: uint8 in host memory. Page-locked memory must stay as it is until a later
                :meth:`mark` is reached. Other memory is free when this returns.
            scatter: puts the bytes on the device in their place, on torch's current stream.
        """
        with torch.cuda.stream(self._cuda_stream):
            if packed.numel() > self._staging.numel():
                # Staging is allocated on this CUDA stream, so the old one is not given to anybody
                # else before the scatter that reads it has ended.
                self._staging = torch.empty(packed.numel(), dtype=torch.uint8, device=self._device)
            staged = self._staging[: packed.numel()]
            staged.copy_(packed, non_blocking=True)
            scatter(staged)

    def wait_for(self, event: torch.cuda.Event) -> None:
        """Let what is put from now on begin behind an event."""
        self._cuda_stream.wait_event(event)

    def mark(self) -> torch.cuda.Event:
        """Return an event that is reached when all that was put so far is in its place."""
        event = torch.cuda.Event()
        event.record(self._cuda_stream)
        return event


class BouncedExtents:
    """The extents of a stream's steps as views of one pinned buffer, from which steps are put.

    Extents that arrive one by one cannot be received into a device's memory. So those of a step are
    gathered here, and :meth:`put` brings them to the cache together.
    """

    def __init__(self, cache: KVCache, schedule: StreamSchedule, upload: DeviceUpload) -> None:
        self._cache = cache
        self._schedule = schedule
        self._upload = upload
        self._bounce = pinned_buffer(schedule.largest_nbytes)
        self._packings: list[Packing] = []

    def prepare(self, step: int) -> None:
        """Do nothing: a step's views are cut when they are asked for."""

    def of_step(self, step: int) -> list[memoryview]:
        """Return views of the buffer, in packed order; the step before must be in its place."""
        sizes = (
            extents.nbytes for extents in self._schedule.extents(step) for _ in extents.offsets
        )
        memory = self._bounce.numpy().data
        return [memory[begin:end] for begin, end in pairwise(accumulate(sizes, initial=0))]

    def put(self, step: int) -> None:
        """Issue the upload of a step whose extents have all arrived."""
        # The packed order does not depend on the level, so chunks of any buffered one will do.
        chunks = list(self._schedule.chunks(LEVELS[DEFAULT_LEVEL], step))
        # Kept until the next step: a scatter reads its arguments on the device.
        self._packings = [Packing(self._cache, chunk.region) for chunk in chunks]
        first_offset = self._schedule.step_offset(step)
        for chunk, packing in zip(chunks, self._packings, strict=True):
            begin = chunk.offset - first_offset
            self._upload.put(self._bounce[begin : begin + chunk.nbytes], packing.scatter)
