"""``CacheManager``: the streaming of one worker's cache while the model goes on.

The model tells the manager what is in place. One helper thread, the :class:`~.streamer.Streamer`,
gathers it from the very cache that the model reads and hands it to the destination. What is written
in the cache stays as it is until its slot is reused, so a full staging ring makes the helper lag,
never the model.
"""

from __future__ import annotations

import numpy as np
import torch

from . import chunk_times
from .chunk_times import LatencyPart, TimesBlock
from .destinations.base import Stream, StreamingError
from .device import DeviceExtents
from .device_times import DeviceClock, DeviceMarks
from .extent_samples import ExtentSampler
from .extents import ExtentAddresses, ExtentViews, StepExtents
from .kv_cache import KVCache
from .levels import Level
from .packing import NoPacking, Packing
from .streamer import Streamer
from .transfers import ByteProgress, HeldSteps, PlannedChunk, StreamStats, Transfer


class CacheManager:
    """The streaming of one microbatch's cache to one or several targets.

    Args:
        cache: the model writes and reads it.
        streams: who gets which part of it.
        level: the optimisations that are on.
        streamer: the process's helper thread.
        timeout: seconds without any progress after which a wait fails.
        sampler: times some of the extents at the levels that move them one by one.
        times: block that managers of the same streams over other caches share: each of them moves
            some of a microbatch's chunks. Without it, the manager has its own.

    Raises:
        ValueError: the streams' chunks do not fit the streamer's staging slots, or their decode
            steps do not leave together.

    Attributes:
        chunks: all chunks of a microbatch; a chunk's ``row`` is its place here.
        times: when each of them was ready, begun, …, complete; None if the streamer is not timed.
        prompt, tokens, draining: counters of each phase of the microbatch. Bytes and copies count
            for the phase whose keys and values they carry, whenever they move.
    """

    def __init__(
        self,
        cache: KVCache,
        streams: list[Stream],
        level: Level,
        streamer: Streamer,
        timeout: float = 60.0,
        sampler: ExtentSampler | None = None,
        times: TimesBlock | None = None,
    ) -> None:
        if level.buffered:
            _check_slots(cache, streams, streamer)
        _check_groups(streams)
        self.cache = cache
        self.level = level
        self.streams = streams
        self._byte_progress = ByteProgress()
        self._streamer = streamer
        self._timeout_s = timeout
        self._sampler = sampler
        # CUDA only: when what was submitted last is in place.
        self._ready_event: torch.cuda.Event | None = None
        self._held = HeldSteps(sum(stream.schedule.position_nbytes for stream in streams))
        self._last_step = max((stream.schedule.steps for stream in streams), default=0)
        self._chunks_by_step: dict[int, list[PlannedChunk]] = {}
        self._chunks_by_layer: dict[int, list[PlannedChunk]] = {}
        self.chunks: list[PlannedChunk] = []
        for stream in streams:
            self._plan(stream)
        self.times = (times or TimesBlock(len(self.chunks))) if streamer.timed else None
        timed_on_device = streamer.timed and cache.k.is_cuda
        self._device_clock = DeviceClock(cache.k.device) if timed_on_device else None
        self.reset()

    def _plan(self, stream: Stream) -> None:
        """Cut the views and find the extents of every chunk of a stream, outside the clock."""
        level = self.level
        extents = None if level.buffered else self._find_extents(stream)
        if extents is not None and self._sampler is not None:
            extents = self._sampler.sample(extents)
        destination = self._streamer.destination
        pack = Packing if destination.entry.moves_cache else NoPacking
        for chunk in stream.schedule.all_chunks(level):
            source = pack(self.cache, chunk.region) if extents is None else extents
            direct = None
            if level.buffered:
                direct = destination.prepare_direct(stream, chunk, self.cache)
            planned_chunk = PlannedChunk(
                stream, chunk, source, level.each_complete, len(self.chunks), direct
            )
            self.chunks.append(planned_chunk)
            # A layerwise prompt leaves with its layers, everything else at the end of its group.
            if level.layerwise and chunk.step == 0:
                self._chunks_by_layer.setdefault(chunk.region.layers.start, []).append(
                    planned_chunk
                )
            else:
                self._chunks_by_step.setdefault(chunk.step, []).append(planned_chunk)

    def _find_extents(self, stream: Stream) -> StepExtents:
        if self._streamer.destination.by_address:
            return ExtentAddresses(self.cache, stream.schedule)
        if self.cache.k.is_cuda:
            return DeviceExtents(
                self.cache, stream.schedule, self.level.each_complete, self._streamer.bounce_buffer
            )
        return ExtentViews(self.cache, stream.schedule)

    def parts(self, step: int) -> tuple[LatencyPart, ...]:
        """Return the parts of the latency of a step's chunks that can be told apart."""
        entry = self._streamer.destination.entry
        if not self.level.buffered:
            if not self.cache.k.is_cuda or self._streamer.destination.by_address:
                return entry.extent_parts
            return entry.bounced_parts(self.level.each_complete)
        device = self._streamer.device_staging
        if self._is_ready_on_host or device is None:
            return entry.parts
        return device.parts(entry, step)

    @property
    def _is_ready_on_host(self) -> bool:
        """Whether chunks go to the destination from where the cache is."""
        return not self.cache.k.is_cuda or self._streamer.destination.device_memory

    def reset(self) -> None:
        """Set the counters of all phases to zero, and forget the chunks' times.

        On a CUDA device this waits for it, so it is called outside any clock.
        """
        self.prompt = StreamStats()
        self.tokens = StreamStats()
        self.draining = StreamStats()
        if self.times is not None:
            self.times.reset()
        if self._device_clock is not None:
            self._device_clock.set()

    @property
    def lag_nbytes(self) -> int:
        """Bytes that are in place and not yet complete."""
        return self._byte_progress.lag_nbytes + self._held.nbytes

    @property
    def completed_nbytes(self) -> int:
        """Bytes that have become complete since the manager was made."""
        return self._byte_progress.completed_nbytes

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, outside the clock. The cache may be overwritten afterwards.

        Args:
            tokens: token ids of the prompt, int64 [B, P].

        Raises:
            StreamingError: the last microbatch's chunks do not complete, or the destination fails.
        """
        began_ns = chunk_times.now()
        self._streamer.wait(self._byte_progress, self._timeout_s)
        stall_s = _measure_seconds_since(began_ns)
        self.reset()
        self._held.leave()
        self.prompt.stall_s = stall_s
        for stream in self.streams:
            self._streamer.destination.begin(stream, tokens)

    def layer_ready(self, layer: int) -> None:
        """Stream a layer of the prompt, whose keys and values are in place in the cache."""
        if self.level.layerwise:
            began_ns = chunk_times.now()
            self._submit(self._chunks_by_layer.get(layer, []), self.prompt, None, began_ns)
            self.prompt.add_stall(began_ns)

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Stream a step (0: the prompt), whose keys and values are in place in all layers.

        A decode step leaves with its group, when the last step of the group is ready. At the levels
        that do not overlap, this returns when all that has left is complete.

        Args:
            tokens: token ids [B] that went into a decode step.

        Raises:
            ValueError: the streams end before this step.
            StreamingError: streaming failed, or did not complete.
        """
        if step > self._last_step:
            raise ValueError(
                f"step {step} is beyond the {self._last_step} decode steps that are streamed"
            )
        began_ns = chunk_times.now()
        phase = self.tokens if step else self.prompt
        chunks = self._chunks_by_step.get(step, [])
        group_tokens = tokens
        if step:
            self._held.add(tokens)
            if chunks:
                group_tokens = self._held.leave()
            else:  # counted here, because nothing is submitted
                phase.lag_nbytes = max(phase.lag_nbytes, self.lag_nbytes)
        self._submit(chunks, phase, group_tokens, began_ns)
        if not self.level.overlapped:
            if self._ready_event is not None:  # until then the device computes, which is no stall
                self._ready_event.synchronize()
                began_ns = chunk_times.now()
            self._streamer.wait(self._byte_progress, self._timeout_s)
        phase.add_stall(began_ns)

    def drain(self) -> None:
        """Wait until the last byte has arrived.

        Raises:
            StreamingError: no chunk became complete within the timeout, or the request ended within
                a group of decode steps.
        """
        if self._held.nbytes:
            raise StreamingError(
                f"{self._held.nbytes} bytes of decode steps cannot be drained: their group leaves "
                "with a later step"
            )
        began_ns = chunk_times.now()
        self.draining.lag_nbytes = self.lag_nbytes
        self._streamer.wait(self._byte_progress, self._timeout_s)
        self.draining.add_stall(began_ns)

    def _submit(
        self,
        chunks: list[PlannedChunk],
        phase: StreamStats,
        tokens: np.ndarray | None,
        began_ns: int,
    ) -> None:
        """Count chunks as in place and hand them to the helper.

        Args:
            began_ns: when they were ready.
        """
        if not chunks:
            return
        byte_progress = self._byte_progress
        nbytes = sum(planned_chunk.chunk.nbytes for planned_chunk in chunks)
        phase.nbytes += nbytes
        # Counted before the helper can see the chunks: the lag is never negative.
        byte_progress.submitted_nbytes += nbytes
        phase.lag_nbytes = max(phase.lag_nbytes, byte_progress.lag_nbytes)
        if self.cache.k.is_cuda:
            self._ready_event = torch.cuda.Event(enable_timing=self._device_clock is not None)
            self._ready_event.record()  # on the model's CUDA stream, behind what has written them
        ready_event = self._ready_event
        times = self.times
        transfers = [
            Transfer(planned_chunk, byte_progress, phase, tokens, ready_event)
            for planned_chunk in chunks
        ]
        if times is not None:
            # The clock was read for the stall: the model's thread reads it no second time.
            for transfer in transfers:
                transfer.take_times(times, began_ns)
                if ready_event is not None and self._device_clock is not None:
                    transfer.marks = DeviceMarks(self._device_clock, ready_event)
        self._streamer.submit(transfers)


def _measure_seconds_since(began_ns: int) -> float:
    return (chunk_times.now() - began_ns) * 1e-9


def _check_groups(streams: list[Stream]) -> None:
    """Raise ValueError unless groups of decode steps leave all streams at the same steps."""
    group_sizes = {(stream.schedule.flush_interval, stream.schedule.steps) for stream in streams}
    if len(group_sizes) > 1 and max(group_sizes)[0] > 1:
        raise ValueError(
            "streams of one cache must have the same flush interval and decode steps: these have "
            f"(interval, steps) {sorted(group_sizes)}"
        )


def _check_slots(cache: KVCache, streams: list[Stream], streamer: Streamer) -> None:
    """Raise ValueError if the largest chunk does not fit the staging on its way."""
    largest_chunk_nbytes = max((stream.schedule.slot_nbytes for stream in streams), default=0)
    destination = streamer.destination
    if destination.entry.staged and largest_chunk_nbytes > streamer.slot_nbytes:
        raise ValueError(
            f"chunks of up to {largest_chunk_nbytes} bytes do not fit staging slots of "
            f"{streamer.slot_nbytes}"
        )
    through_host = cache.k.is_cuda and not destination.device_memory
    if through_host and (
        streamer.device_staging is None
        or largest_chunk_nbytes > streamer.device_staging.slot_nbytes
    ):
        raise ValueError(
            f"a cache on a CUDA device needs staging slots of {largest_chunk_nbytes} bytes there"
        )
