"""``CacheManager``: the streaming of one worker's cache while the model goes on.

The model tells the manager what is in place; one helper thread, the :class:`~.streamer.Streamer`, gathers it from
the very cache that the model reads and hands it to the destination. What is written in the cache stays as it
is until its slot is reused, so a full staging ring makes the helper lag, never the model.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from dejavubench.dejavulib.addresses import RunAddresses
from dejavubench.dejavulib.copies import Packing, RunViews
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.device import DeviceRuns
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.levels import Level
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.streamer import Job, Streamer, Streaming

_Planned = tuple[Stream, Chunk, Packing | None, RunViews | DeviceRuns | RunAddresses | None]
"""A chunk that will be streamed; how it is packed, or else the views of its runs: cut beforehand."""


class CacheManager:
    """The streaming of one microbatch slot's cache to one or several targets.

    Args:
        cache: what the model writes and reads.
        streams: who gets which part of it.
        level: which optimisations are on.
        streamer: the process's helper thread.
        timeout: seconds without any progress after which a wait is given up.

    Raises:
        ValueError: the streams' chunks do not fit the streamer's staging slots.

    Attributes:
        prompt, tokens, draining: what streaming did in each phase of the microbatch. Bytes and copies count
            for the phase whose keys and values they carry, whenever they move.
        completed_nbytes: bytes that have become complete since the manager was made; the streamer counts them.
    """

    def __init__(
        self,
        cache: KVCache,
        streams: list[Stream],
        level: Level,
        streamer: Streamer,
        timeout: float = 60.0,
    ) -> None:
        largest = max((stream.schedule.slot_nbytes for stream in streams), default=0)
        if level.buffered and streamer.destination.staged and largest > streamer.slot_nbytes:
            raise ValueError(
                f"chunks of up to {largest} bytes do not fit staging slots of {streamer.slot_nbytes}"
            )
        by_host = cache.k.is_cuda and not streamer.destination.capabilities.device_memory
        if (
            level.buffered
            and by_host
            and (streamer.device is None or largest > streamer.device.slot_nbytes)
        ):
            raise ValueError(
                f"a cache on a CUDA device needs staging slots of {largest} bytes there"
            )
        self.cache = cache
        self.level = level
        self.streams = streams
        self.completed_nbytes = 0
        self._submitted_nbytes = 0
        self._streamer = streamer
        self._timeout = timeout
        self._ready: torch.cuda.Event | None = (
            None  # CUDA only: when what was submitted last is in place
        )
        self._last_step = max((stream.schedule.steps for stream in streams), default=0)
        self._steps: dict[int, list[_Planned]] = {}
        self._layers: dict[int, list[_Planned]] = {}
        for stream in streams:
            runs = None if level.buffered else self._runs_of(stream)
            for chunk in stream.schedule.all_chunks(level):
                planned = (
                    stream,
                    chunk,
                    Packing(cache, chunk.region) if level.buffered else None,
                    runs,
                )
                if level.layerwise and chunk.step == 0:
                    self._layers.setdefault(chunk.region.layers.start, []).append(planned)
                else:
                    self._steps.setdefault(chunk.step, []).append(planned)
        self.reset()

    def _runs_of(self, stream: Stream) -> RunViews | DeviceRuns | RunAddresses:
        if self._streamer.destination.capabilities.by_address:
            return RunAddresses(self.cache, stream.schedule)
        if self.cache.k.is_cuda:
            return DeviceRuns(
                self.cache, stream.schedule, self.level.each_complete, self._streamer.landing
            )
        return RunViews(self.cache, stream.schedule)

    def reset(self) -> None:
        """Count anew."""
        self.prompt, self.tokens, self.draining = Streaming(), Streaming(), Streaming()

    @property
    def lag_nbytes(self) -> int:
        """Bytes that are in place and not yet complete."""
        return self._submitted_nbytes - self.completed_nbytes

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, outside the clock.

        Args:
            tokens: the prompt's token ids, int64 [B, P].
        """
        began = time.perf_counter()
        self._streamer.wait(self, self._timeout)  # the slot is overwritten from now on
        self.reset()
        self.prompt.stall_s = time.perf_counter() - began
        for stream in self.streams:
            self._streamer.destination.begin(stream, tokens)

    def layer_ready(self, layer: int) -> None:
        """Keys and values of the prompt are in place in this layer of the cache."""
        if self.level.layerwise:
            began = time.perf_counter()
            self._submit(self._layers.get(layer, []), self.prompt, None)
            self.prompt.stall_s += time.perf_counter() - began

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Keys and values of a step (0: the prompt) are in place in all layers.

        At the levels that do not overlap this returns when the step's streaming is complete.

        Args:
            tokens: the token ids [B] that went into a decode step.

        Raises:
            ValueError: the streams end before this step.
        """
        if step > self._last_step:
            raise ValueError(
                f"step {step} is beyond the {self._last_step} decode steps that are streamed"
            )
        began = time.perf_counter()
        phase = self.phase_of(step)
        self._submit(self._steps.get(step, []), phase, tokens)
        if not self.level.overlapped:
            if self._ready is not None:  # until then the device computes, which is no stall
                self._ready.synchronize()
                began = time.perf_counter()
            self._streamer.wait(self, self._timeout)
        phase.stall_s += time.perf_counter() - began

    def drain(self) -> None:
        """Wait until the last byte has arrived.

        Raises:
            StreamingError: no chunk became complete within the deadline.
        """
        began = time.perf_counter()
        self.draining.lag_nbytes = self.lag_nbytes
        self._streamer.wait(self, self._timeout)
        self.draining.stall_s += time.perf_counter() - began

    def phase_of(self, step: int) -> Streaming:
        return self.tokens if step else self.prompt

    def _submit(self, chunks: list[_Planned], phase: Streaming, tokens: np.ndarray | None) -> None:
        if not chunks:
            return
        nbytes = sum(chunk.nbytes for _, chunk, *_ in chunks)
        phase.nbytes += nbytes
        self._submitted_nbytes += nbytes
        phase.lag_nbytes = max(phase.lag_nbytes, self.lag_nbytes)
        if self.cache.k.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()  # on the model's stream, behind what has written them
        self._streamer.submit([Job(self, *planned, tokens, self._ready) for planned in chunks])
