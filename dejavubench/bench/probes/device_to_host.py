"""The way from a CUDA device to the host: chunks, and the single extents of the naive loop.

All of it is timed by the host's clock: the copies end there, and so does the library's own way that
they are held against.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from dejavubench.bench.probes.cpu_probes import EXTENT_COUNT, EXTENT_NBYTES, STRIDE_NBYTES
from dejavubench.bench.probes.probe_subjects import ProbedModel
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.device import DeviceStaging
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.packing import Packing, pinned_buffer
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.transfers import ByteProgress, PlannedChunk, StreamStats, Transfer
from dejavubench.transports.probe import Sample

CHUNK_COUNT = 32
"""Chunks of one measurement."""

SLOT_COUNT = 4
"""Staging slots on each side."""

LARGE_COPY_NBYTES = 64 << 20
"""Bytes of the chunks that are larger than a staging slot's."""


class DeviceToHostCopies:
    """Chunks of a staging slot's size into pinned memory: raw copies, and the library's own way."""

    def __init__(self, device: torch.device, model: ProbedModel) -> None:
        slot_nbytes = model.slot_nbytes
        request_geometry = replace(model.geometry, layers=1, requests=1)
        positions = slot_nbytes // request_geometry.token_nbytes
        # One position more than is moved keeps the heads apart, as in a cache that is not full.
        request_geometry = replace(request_geometry, positions=positions + 1)
        schedule = StreamSchedule(
            geometry=request_geometry,
            region=request_geometry.whole,
            input_len=positions,
            steps=0,
            slot_nbytes=slot_nbytes,
        )
        (self._chunk,) = schedule.all_chunks(LEVELS[DEFAULT_LEVEL])
        self._moved_stream = Stream(0, schedule)
        self._cache = KVCache.allocate(request_geometry, model.dtype, device)
        self._device = device
        self._packing = Packing(self._cache, self._chunk.region)
        self._nbytes = self._chunk.nbytes
        self._staged_slots = [
            torch.empty(self._nbytes, dtype=torch.uint8, device=device) for _ in range(SLOT_COUNT)
        ]
        self._large_buffer = torch.empty(LARGE_COPY_NBYTES, dtype=torch.uint8, device=device)
        self._pinned_slots = [
            pinned_buffer(max(self._nbytes, LARGE_COPY_NBYTES)) for _ in range(SLOT_COUNT)
        ]
        self._cuda_stream = torch.cuda.Stream(device)
        self._staging = DeviceStaging(self._staged_slots)
        self._staging.calibrate(self._cache, [self._chunk])

    def time_raw(self) -> list[Sample]:
        """Copy out of all slots, one behind the other, then wait once."""
        return self._time_copies(self._staged_slots, CHUNK_COUNT)

    def time_large(self) -> list[Sample]:
        """Copy large pieces back to back, in GB/s: the rate that small chunks fall short of."""
        return self._time_copies([self._large_buffer] * SLOT_COUNT, CHUNK_COUNT // 4)

    def _time_copies(self, slots: list[torch.Tensor], chunk_count: int) -> list[Sample]:
        nbytes = slots[0].numel()
        torch.cuda.synchronize(self._device)
        began_s = time.perf_counter()
        with torch.cuda.stream(self._cuda_stream):
            for chunk_index in range(chunk_count):
                self._pinned_slots[chunk_index % SLOT_COUNT][:nbytes].copy_(
                    slots[chunk_index % SLOT_COUNT], non_blocking=True
                )
        self._cuda_stream.synchronize()
        return self._make_samples(chunk_count * nbytes, time.perf_counter() - began_s, chunk_count)

    def time_destination(self) -> list[Sample]:
        """Bring as many chunks through the library's staging, by the way that it chose."""
        ready_event = torch.cuda.Event()
        ready_event.record(torch.cuda.current_stream(self._device))
        planned_chunk = PlannedChunk(
            self._moved_stream, self._chunk, self._packing, each_complete=False
        )
        # One transfer stands for all chunks: the bytes are the same, and making it is not timed.
        transfer = Transfer(planned_chunk, ByteProgress(), StreamStats(), ready_event=ready_event)
        torch.cuda.synchronize(self._device)
        began_s = time.perf_counter()
        begun_count = 0
        arrived_count = 0
        while arrived_count < CHUNK_COUNT:
            # As many under way as there are slots: a slot is used again once its chunk has arrived.
            while (
                begun_count < min(CHUNK_COUNT, arrived_count + SLOT_COUNT)
                and self._staging.has_room
            ):
                packed = self._pinned_slots[begun_count % SLOT_COUNT][: self._nbytes]
                self._staging.begin(transfer, self._packing, packed)
                begun_count += 1
            arrived_count += sum(1 for _ in self._staging.take_arrived())
        duration_s = time.perf_counter() - began_s
        ((rate_gb_s, shape),) = self._make_samples(
            CHUNK_COUNT * self._nbytes, duration_s, CHUNK_COUNT
        )
        return [
            (
                rate_gb_s,
                f"{shape}, {self._cache.geometry.layout.value}, {self._staging.ways['prompt']}",
            )
        ]

    def _make_samples(self, nbytes: int, duration_s: float, chunk_count: int) -> list[Sample]:
        return [
            (
                nbytes / duration_s / 1e9,
                f"{chunk_count} × {nbytes / chunk_count / 2**20:.1f} MiB, pinned",
            )
        ]


class ExtentCopies:
    """The naive loop: a copy of 16 bytes into pinned memory, then a wait for it, and so on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._source = torch.zeros(EXTENT_COUNT * STRIDE_NBYTES, dtype=torch.uint8, device=device)
        self._target = pinned_buffer(EXTENT_COUNT * EXTENT_NBYTES)
        self._cuda_stream = torch.cuda.Stream(device)
        sources = range(
            self._source.data_ptr(),
            self._source.data_ptr() + EXTENT_COUNT * STRIDE_NBYTES,
            STRIDE_NBYTES,
        )
        targets = range(
            self._target.data_ptr(),
            self._target.data_ptr() + EXTENT_COUNT * EXTENT_NBYTES,
            EXTENT_NBYTES,
        )
        self._copies = [
            (target, source, EXTENT_NBYTES) for target, source in zip(targets, sources, strict=True)
        ]
        self._empty_copies = [(target, source, 0) for target, source, _ in self._copies]
        memory = self._target.numpy().data
        self._views = [
            memory[start : start + EXTENT_NBYTES]
            for start in range(0, EXTENT_COUNT * EXTENT_NBYTES, EXTENT_NBYTES)
        ]

    def time_copy(self) -> list[Sample]:
        """Time one copy called from Python, as the library's naive loop does, in microseconds."""
        from cupy.cuda import runtime

        return [
            (
                self._time_loop(self._copies, runtime.streamSynchronize),
                f"16 B, {STRIDE_NBYTES} B apart, each waited for",
            )
        ]

    def time_overhead(self) -> list[Sample]:
        """Time the same loop where nothing moves, in microseconds."""
        # A copy of no bytes returns at once, and a cast to int stands for the wait.
        return [(self._time_loop(self._empty_copies, int), "0 B, not waited for")]

    def time_compiled(self) -> list[Sample]:
        """Time the same copies, each waited for, in one call of torch, which loops in C++."""
        # Not asked to be asynchronous, so torch waits for each copy.
        targets = list(self._target.view(EXTENT_COUNT, EXTENT_NBYTES))
        sources = list(self._source.view(EXTENT_COUNT, STRIDE_NBYTES)[:, :EXTENT_NBYTES])
        with torch.cuda.stream(self._cuda_stream):
            torch.cuda.synchronize(self._device)
            began_s = time.perf_counter()
            torch._foreach_copy_(targets, sources)
            duration_s = time.perf_counter() - began_s
        return [
            (
                duration_s / EXTENT_COUNT * 1e6,
                f"16 B, {STRIDE_NBYTES} B apart, each waited for, in torch",
            )
        ]

    def _time_loop(
        self, copies: list[tuple[int, int, int]], wait: Callable[[int], object]
    ) -> float:
        """Return the microseconds per extent of a loop that copies each and calls ``wait``."""
        from cupy.cuda import runtime

        copy = runtime.memcpyAsync
        direction = runtime.memcpyDeviceToHost
        cuda_stream_handle = self._cuda_stream.cuda_stream

        # A generator that yields views, as the library's: its overhead is part of the naive loop.
        def copy_one_by_one() -> Iterator[memoryview]:
            for (target, source, nbytes), view in zip(copies, self._views, strict=True):
                copy(target, source, nbytes, direction, cuda_stream_handle)
                wait(cuda_stream_handle)
                yield view

        torch.cuda.synchronize(self._device)
        began_s = time.perf_counter()
        for _ in copy_one_by_one():
            pass
        return (time.perf_counter() - began_s) / len(copies) * 1e6
