"""``CacheManager``: the streaming of one worker's cache while the model goes on.

The model tells the manager what is in place; one helper thread, the :class:`Streamer`, gathers it from the
very cache that the model reads and hands it to the destination. What is written in the cache stays as it
is until its slot is reused, so a full staging ring makes the helper lag, never the model.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from dejavubench.dejavulib.copies import aligned_buffer, gather, run_views
from dejavubench.dejavulib.destinations.base import Destination, Stream, StreamingError
from dejavubench.dejavulib.levels import Level
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.kvcache import KVCache
from dejavubench.waiting import NAP

NAP_BESIDE_COMPUTE = 500e-6
"""Seconds between two looks at what is on its way while the model computes: a hundredth of a core."""


@dataclass
class Streaming:
    """What streaming did in one phase.

    Attributes:
        nbytes: bytes that were put in place and handed to streaming.
        copies: copies or messages that moved them.
        stall_s: seconds the model waited for streaming, hand-over included.
        lag_nbytes: the most bytes that were in place and not yet complete.
    """

    nbytes: int = 0
    copies: int = 0
    stall_s: float = 0.0
    lag_nbytes: int = 0


@dataclass
class _Job:
    """One chunk on its way; ``slot`` is the staging that it holds until it is complete."""

    manager: CacheManager
    stream: Stream
    chunk: Chunk
    tokens: np.ndarray | None = None
    slot: torch.Tensor | None = None


class Streamer:
    """The helper thread of one source process, and its bounded staging memory.

    Args:
        destination: where chunks go; once a microbatch has begun, called from the helper thread alone.
        slot_nbytes: bytes of one staging slot.
        slots: how many slots there are, so how many chunks can be on their way at once.

    Raises:
        ValueError: the destination needs staging and there is none.
    """

    def __init__(self, destination: Destination, slot_nbytes: int, slots: int) -> None:
        if destination.staged and slots < 1:
            raise ValueError(f"{destination.name} needs at least one staging slot, not {slots}")
        self.destination = destination
        self.slot_nbytes = slot_nbytes
        self._slots = deque(aligned_buffer(slot_nbytes) for _ in range(slots))
        self.staging_nbytes = slots * slot_nbytes
        self._jobs: deque[_Job] = deque()
        self._under_way: deque[_Job] = deque()  # begun and not complete, oldest first
        self._finished = 0  # chunks that have become complete
        self._changed = threading.Condition()
        self._waiting = False  # the model is waiting, so there is nobody to be polite to
        self._closing = False
        self._error: StreamingError | None = None
        self._thread = threading.Thread(target=self._work, name="streamer", daemon=True)
        threads, self._started = torch.get_num_threads(), threading.Event()
        self._thread.start()
        self._started.wait()
        torch.set_num_threads(threads)  # the helper's own setting became the default of every new thread

    def fill_staging(self, pattern: int) -> None:
        """Overwrite the staging memory, outside the clock, so that what a chunk leaves there cannot pass for another.

        Raises:
            StreamingError: something is still under way.
        """
        with self._changed:
            if self._jobs or self._under_way:
                raise StreamingError("staging cannot be filled while chunks are under way")
            for slot in self._slots:
                slot.fill_(pattern)

    def submit(self, manager: CacheManager, jobs: list[_Job], phase: Streaming) -> None:
        """Queue chunks whose keys and values are in place; they count as lag until they are complete."""
        nbytes = sum(job.chunk.nbytes for job in jobs)
        phase.nbytes += nbytes
        with self._changed:
            self._raise_error()
            manager.lag_nbytes += nbytes
            phase.lag_nbytes = max(phase.lag_nbytes, manager.lag_nbytes)
            self._jobs.extend(jobs)
            self._changed.notify_all()

    def wait(self, manager: CacheManager, timeout: float) -> None:
        """Wait until every chunk that ``manager`` has submitted is complete.

        Raises:
            StreamingError: the helper failed, or ``timeout`` seconds passed without a chunk completing.
        """
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            try:
                self._raise_error()
                finished, since = self._finished, time.monotonic()
                while manager.lag_nbytes:
                    self._changed.wait(timeout=min(1.0, timeout))
                    self._raise_error()
                    if self._finished != finished:
                        finished, since = self._finished, time.monotonic()
                    elif time.monotonic() - since > timeout:
                        raise StreamingError(f"no chunk became complete within {timeout:g} s; {self._first_missing()}")
            finally:
                self._waiting = False

    def cpu_seconds(self) -> float:
        """CPU time of the helper thread so far."""
        if self._thread.ident is None or not self._thread.is_alive():
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def close(self) -> None:
        """End the helper thread and close the destination; chunks that are not complete are given up."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.destination.close()

    # ---- the helper thread ----

    def _work(self) -> None:
        torch.set_num_threads(1)  # copies must not wake a pool of workers
        torch.get_num_threads()  # takes the setting over for good; without it a thread's first operation does
        self._started.set()
        try:
            while True:
                job = self._next()
                if job is not None:
                    self._start(job)
                elif self._closing:
                    return
                if self._under_way:
                    self._collect()
        except StreamingError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - handed to the model's thread, which raises it
            failure = StreamingError(f"{type(error).__name__}: {error}; {self._first_missing()}")
            failure.__cause__ = error
            self._fail(failure)

    def _fail(self, error: StreamingError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The next job that can start; None when it is time to look at what is under way, or to end."""
        with self._changed:
            while True:
                if self._closing:
                    return None
                if self._jobs and (self._slots or not self._needs_slot(self._jobs[0])):
                    self._under_way.append(self._jobs[0])
                    return self._jobs.popleft()
                if self._under_way:
                    nap = NAP if self._waiting else NAP_BESIDE_COMPUTE
                    self._changed.wait(timeout=nap)
                    return None
                self._changed.wait()

    def _needs_slot(self, job: _Job) -> bool:
        return job.manager.level.buffered and self.destination.staged

    def _start(self, job: _Job) -> None:
        stream, chunk, manager = job.stream, job.chunk, job.manager
        if chunk.step and chunk.offset == stream.schedule.step_offset(chunk.step):
            self.destination.step(stream, chunk.step, job.tokens)
        if manager.level.buffered:
            packed = self.destination.place(stream, chunk)
            if packed is None:
                job.slot = self._slots.popleft()
                packed = job.slot[: chunk.nbytes]
            gather(manager.cache, chunk.region, packed)
            self.destination.flush(stream, chunk, packed)
            copies = 1
        else:
            runs = manager.take_runs(stream, chunk)
            self.destination.flush_runs(stream, chunk, runs, manager.level.each_complete)
            copies = len(runs)
        manager.phase_of(chunk.step).copies += copies
        self._collect()
        if not manager.level.buffered:
            manager.prepare_runs(stream, chunk.step + 1)  # while the model computes that step

    def _collect(self) -> None:
        """Note what has become complete and take its slots back."""
        streams = {job.stream.key: job.stream for job in self._under_way}
        done = {key: self.destination.completed(stream) for key, stream in streams.items()}
        left: deque[_Job] = deque()
        finished: list[_Job] = []
        for job in self._under_way:
            (finished if job.chunk.index < done[job.stream.key] else left).append(job)
        if not finished:
            return
        with self._changed:
            self._under_way = left
            self._finished += len(finished)
            for job in finished:
                if job.slot is not None:
                    self._slots.append(job.slot)
                job.manager.lag_nbytes -= job.chunk.nbytes
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _first_missing(self) -> str:
        job = next(iter(self._under_way), None) or next(iter(self._jobs), None)
        if job is None:
            return "none is under way"
        return f"the first missing is chunk {job.chunk.index} (step {job.chunk.step}) of stream {job.stream.id}"


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
        lag_nbytes: bytes that are in place and not yet complete.
    """

    def __init__(
        self, cache: KVCache, streams: list[Stream], level: Level, streamer: Streamer, timeout: float = 60.0
    ) -> None:
        largest = max((stream.schedule.slot_nbytes for stream in streams), default=0)
        if level.buffered and streamer.destination.staged and largest > streamer.slot_nbytes:
            raise ValueError(f"chunks of up to {largest} bytes do not fit staging slots of {streamer.slot_nbytes}")
        self.cache = cache
        self.level = level
        self.streams = streams
        self.lag_nbytes = 0
        self._streamer = streamer
        self._timeout = timeout
        self._runs: dict[tuple[tuple[int | None, int], int], list[memoryview]] = {}
        self._steps: dict[int, list[tuple[Stream, Chunk]]] = {}
        self._layers: dict[int, list[tuple[Stream, Chunk]]] = {}
        for stream in streams:
            for chunk in stream.schedule.all_chunks(level):
                if level.layerwise and chunk.step == 0:
                    self._layers.setdefault(chunk.region.layers.start, []).append((stream, chunk))
                else:
                    self._steps.setdefault(chunk.step, []).append((stream, chunk))
        self._reset()

    def _reset(self) -> None:
        self.prompt, self.tokens, self.draining = Streaming(), Streaming(), Streaming()

    def begin(self, tokens: np.ndarray | None = None, pattern: int = 0) -> None:
        """Prepare for a microbatch, outside the clock.

        Args:
            tokens: the prompt's token ids, int64 [B, P].
            pattern: the byte that the destination's own buffers and files are filled with.
        """
        began = time.perf_counter()
        self._streamer.wait(self, self._timeout)  # the slot is overwritten from now on
        self._reset()
        self.prompt.stall_s = time.perf_counter() - began
        for stream in self.streams:
            self._streamer.destination.begin(stream, tokens, pattern)
            if not self.level.buffered:
                self.prepare_runs(stream, 0)

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
        """
        began = time.perf_counter()
        phase = self.phase_of(step)
        self._submit(self._steps.get(step, []), phase, tokens)
        if not self.level.overlapped:
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

    def prepare_runs(self, stream: Stream, step: int) -> None:
        """Cut the views of a step's runs ahead of time, so that the naive loop does nothing but move them."""
        for other, chunk in self._steps.get(step, []):
            if other is stream:
                self._runs[stream.key, chunk.index] = run_views(self.cache, stream.schedule.atoms(step))

    def take_runs(self, stream: Stream, chunk: Chunk) -> list[memoryview]:
        return self._runs.pop((stream.key, chunk.index))

    def _submit(self, chunks: list[tuple[Stream, Chunk]], phase: Streaming, tokens: np.ndarray | None) -> None:
        if chunks:
            self._streamer.submit(self, [_Job(self, *chunk, tokens) for chunk in chunks], phase)
