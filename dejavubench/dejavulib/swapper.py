"""``Swapper``: more microbatches in flight than caches that are in place (the paper's microbatch swapping).

Microbatches take turns. A few caches are in place, the others' keys and values are in a destination of this process,
host memory or disk. What a microbatch's turn adds is streamed out while the next one computes, so that it is evicted
once that is complete; all of it is fetched into the place that another has left, before its next turn, by a thread of
its own.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dejavubench.dejavulib.copies import Packing, scatter_steps
from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.helper import cpu_seconds, start_helper
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.dejavulib.levels import DEFAULT_LEVEL, LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.streamer import Streamer, Streaming
from dejavubench.dejavulib.waiting import DeadlineError, Wake, wait_asleep

AT_ONCE = 64 << 20
"""Bytes of tokens that are fetched at once, at most: what a fetch from disk is held in."""

_LEVEL = LEVELS[DEFAULT_LEVEL]


@dataclass
class Swapping:
    """What swapping cost.

    Attributes:
        nbytes: keys and values that were brought back.
        bring_s: seconds of fetching and scattering them, beside the model.
        wait_s: seconds that the model waited for a cache to be in place.
    """

    nbytes: int = 0
    bring_s: float = 0.0
    wait_s: float = 0.0


class Swapper:
    """The microbatches of one worker: each step of each, in order, is a turn.

    Turn ``n`` is step ``n // U`` of microbatch ``n % U`` and takes the resident cache ``n % R``.

    Args:
        resident: the R caches that are in place, on the CPU.
        streams: of the U microbatches, whole caches to ``streamer``'s destination, which must be one that is read in
            this process. U > R.
        timeout: seconds without progress after which a wait for a cache to be in place, or for its eviction, fails.

    Attributes:
        current: for each microbatch the cache that it takes, or took last: the model computes over these.
        microbatches: what a batch maker tells of each.
        cost: since the last :meth:`begin`.
    """

    def __init__(
        self,
        resident: Sequence[KVCache],
        streams: Sequence[Stream],
        streamer: Streamer,
        timeout: float,
    ) -> None:
        if len(resident) >= len(streams):
            raise ValueError(
                f"{len(streams)} microbatches find room in {len(resident)} caches: nothing is to be swapped"
            )
        self._resident = list(resident)
        self._streams = list(streams)
        self._streamer = streamer
        self._timeout = timeout
        self._managers = [
            [CacheManager(cache, [stream], _LEVEL, streamer, timeout) for cache in resident]
            for stream in streams
        ]
        first = streams[0].schedule
        self._prompts: list[list[tuple[Chunk, Packing]]] = [
            [(chunk, Packing(cache, chunk.region)) for chunk in first.chunks(_LEVEL, 0)]
            for cache in resident
        ]
        self.current = [resident[ubatch % len(resident)] for ubatch in range(len(streams))]
        self.microbatches = [SwappedMicrobatch(self, ubatch) for ubatch in range(len(streams))]
        self.cost = Swapping()
        self._moves = 0  # changes while the bringer gets on
        self._in_place = 0  # turns whose cache is, from the first one on; changed by the bringer
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._wake = Wake()
        self._error: StreamingError | None = None
        self._thread = start_helper(
            "swapper", self._work, self._fail, lambda: f"bringing back turn {self._in_place}"
        )

    # ---- the model's side ----

    def begin(self, ubatch: int, tokens: np.ndarray | None) -> None:
        """Prepare a microbatch, outside the clock; all of them before the first turn."""
        first, *others = self._managers[ubatch]
        first.begin(tokens)
        for manager in others:
            manager.reset()
        self.cost = Swapping()
        self._in_place = len(self._resident)

    def manager(self, ubatch: int, step: int) -> CacheManager:
        """What streams this turn."""
        return self._managers[ubatch][self._turn(ubatch, step) % len(self._resident)]

    def managers(self, ubatch: int) -> list[CacheManager]:
        """What has streamed a microbatch, one for each resident cache."""
        return self._managers[ubatch]

    def wait(self, ubatch: int, step: int) -> float:
        """Wait until this turn's cache is in place; seconds that took.

        Raises:
            StreamingError: bringing it back failed, or did not go on.
        """
        turn, began = self._turn(ubatch, step), time.perf_counter()
        while self._in_place <= turn:
            before = self._moves
            woken = self._wake.wait(self._timeout)
            self._raise_error()
            if not woken and self._in_place <= turn and self._moves == before:
                raise StreamingError(
                    f"the cache of microbatch {ubatch} was not back within {self._timeout:g} s"
                )
        self.current[ubatch] = self._resident[turn % len(self._resident)]
        waited = time.perf_counter() - began
        self.cost.wait_s += waited
        return waited

    def leave(self, ubatch: int, step: int) -> None:
        """This turn is over: its cache may be evicted, and another's brought in its place."""
        turn = self._turn(ubatch, step) + len(self._resident)
        if turn < len(self._streams) * (self._streams[0].schedule.steps + 1):
            self._turns.put(turn)

    def bring_back(self, ubatch: int) -> KVCache:
        """All that was streamed of a microbatch, in a resident cache; once every turn is over."""
        cache = self._resident[0]
        self._fetch(ubatch, self._streams[ubatch].schedule.steps + 1, 0)
        return cache

    def cpu_seconds(self) -> float:
        """CPU time so far of the thread that brings caches back."""
        return cpu_seconds(self._thread)

    def close(self) -> None:
        """End the thread; what it is about to bring is given up."""
        self._turns.put(None)
        self._thread.join(self._timeout)

    def _turn(self, ubatch: int, step: int) -> int:
        return step * len(self._streams) + ubatch

    def _raise_error(self) -> None:
        self._streamer.raise_error()
        if self._error is not None:
            raise self._error

    def step_begins(self, ubatch: int, step: int) -> None:
        """Wait until the cache of a microbatch's turn is in place; the model may compute over it from then on.

        Raises:
            StreamingError: bringing it back failed, or did not go on.
        """
        self.microbatches[ubatch].step_begins(step)

    # ---- the bringer's thread ----

    def _work(self) -> None:
        while (turn := self._turns.get()) is not None:
            self._bring(turn)
            self._wake.set()

    def _fail(self, error: StreamingError) -> None:
        """The last thing that the bringer does: no later turn may pass for this one's being in place."""
        self._error = error
        self._wake.set()

    def _bring(self, turn: int) -> None:
        slot, (step, ubatch) = turn % len(self._resident), divmod(turn, len(self._streams))
        self._complete(turn - len(self._resident))  # who was there has left
        if step:
            self._complete(turn - len(self._streams))  # all of its own is where it is fetched from
            began = time.perf_counter()
            self.cost.nbytes += self._fetch(ubatch, step, slot)
            self.cost.bring_s += time.perf_counter() - began
        self._in_place = turn + 1

    def _complete(self, turn: int) -> None:
        """Wait until all that a turn has streamed is complete."""
        step, ubatch = divmod(turn, len(self._streams))
        manager = self.manager(ubatch, step)

        def moved() -> bool:
            self._streamer.raise_error()
            return manager.lag_nbytes == 0 or manager.completed_nbytes != complete

        while manager.lag_nbytes:
            complete = manager.completed_nbytes
            try:
                wait_asleep(moved, f"eviction of microbatch {ubatch}", self._timeout)
            except DeadlineError as error:
                raise StreamingError(str(error)) from None
            self._moves += 1

    def _fetch(self, ubatch: int, steps: int, slot: int) -> int:
        """Put the first ``steps`` steps of a microbatch in a resident cache; their bytes."""
        stream, destination = self._streams[ubatch], self._streamer.destination
        prompt, _ = destination.fetch_steps(stream, range(1))
        for chunk, packing in self._prompts[slot]:
            packing.scatter(prompt[chunk.offset : chunk.offset + chunk.nbytes])
        together = max(1, AT_ONCE // stream.schedule.step_nbytes(1))
        for first in range(1, steps, together):
            self._moves += 1
            few = range(first, min(first + together, steps))
            packed, stride = destination.fetch_steps(stream, few)
            scatter_steps(packed, stride, self._resident[slot], stream.schedule, few)
        return stream.schedule.step_offset(steps)


class SwappedMicrobatch:
    """One of a swapper's microbatches, as a batch maker tells of it.

    Attributes:
        prompt, tokens, draining: what streaming it out did; waiting for the cache to be back is part of the stall.
    """

    def __init__(self, swapper: Swapper, ubatch: int) -> None:
        self._swapper = swapper
        self._ubatch = ubatch
        self.prompt, self.tokens, self.draining = Streaming(), Streaming(), Streaming()

    def begin(self, tokens: np.ndarray | None = None) -> None:
        self.prompt, self.tokens, self.draining = Streaming(), Streaming(), Streaming()
        self._swapper.begin(self._ubatch, tokens)

    def step_begins(self, step: int) -> None:
        waited = self._swapper.wait(self._ubatch, step)
        (self.tokens if step else self.prompt).stall_s += waited
        self._manager = self._swapper.manager(self._ubatch, step)

    def layer_ready(self, layer: int) -> None:
        self._manager.layer_ready(layer)

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        self._manager.step_ready(step, tokens)
        self._swapper.leave(self._ubatch, step)

    def drain(self) -> None:
        for manager in self._swapper.managers(self._ubatch):
            manager.drain()
            self.prompt.add(manager.prompt)
            self.tokens.add(manager.tokens)
            self.draining.add(manager.draining)
