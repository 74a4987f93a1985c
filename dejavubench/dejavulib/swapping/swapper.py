"""``Swapper``: more microbatches in flight than caches in place (the paper's microbatch swapping).

Microbatches take turns. A few caches are in place; the keys and values of the other microbatches
are in a destination of this process, host memory or disk. What a turn adds is streamed out while
the next microbatch computes, so a cache is evicted once that is complete. A thread of its own
fetches a microbatch's whole cache into the place that another one has left, before its next turn.
Copy engines move both ways on a CUDA device, beside the model.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence

import numpy as np

from ..destinations.base import LocalDestination, Stream, StreamingError
from ..helper_thread import read_cpu_seconds, start_helper
from ..kv_cache import KVCache
from ..levels import DEFAULT_LEVEL, LEVELS
from ..manager import CacheManager
from ..schedule import MOST_FETCHED_NBYTES
from ..streamer import Streamer
from ..transfers import StreamStats
from ..waiting import DeadlineError, Wake, wait_asleep
from .cache_fetcher import CacheFetcher
from .residents import Wait, make_residents
from .swap_cost import SwapCost

_LEVEL = LEVELS[DEFAULT_LEVEL]


class Swapper:
    """The microbatches of one worker: each step of each, in order, is a turn.

    Turn ``n`` is step ``n // U`` of microbatch ``n % U`` and takes the resident cache ``n % R``.

    Args:
        resident: the R caches that are in place, all on the CPU or all on one CUDA device.
        streams: one stream of a whole cache for each of the U microbatches, U > R.
        streamer: its destination must be a :class:`~.destinations.base.LocalDestination`.
        timeout: seconds without progress after which a wait for a cache fails.

    Raises:
        ValueError: U ≤ R, the destination cannot be read in this process, or the streams' flush
            interval is not 1.

    Attributes:
        current: the cache that each microbatch takes, or took last; the model computes over these.
        microbatches: objects to report each microbatch's progress to, as to a
            :class:`CacheManager`.
        cost: cost of swapping since the last :meth:`begin`.
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
                f"{len(streams)} microbatches find room in {len(resident)} caches: "
                "there is nothing to swap"
            )
        if not isinstance(streamer.destination, LocalDestination):
            raise ValueError(f"{streamer.destination.entry.name} cannot be read in this process")
        if any(stream.schedule.flush_interval > 1 for stream in streams):
            # A turn ends with its cache evicted: what has not left by then would be lost.
            raise ValueError("microbatches that are swapped need a flush interval of 1")
        self._resident_caches = list(resident)
        self._streams = list(streams)
        self._streamer = streamer
        self._timeout_s = timeout
        self._managers = [self._make_managers(stream) for stream in streams]
        schedule = streams[0].schedule
        self._places = make_residents(resident, MOST_FETCHED_NBYTES)
        self._fetcher = CacheFetcher(
            resident, schedule, streamer.destination, self._places, self._count_move
        )
        self.current = [resident[microbatch % len(resident)] for microbatch in range(len(streams))]
        self.microbatches = [
            SwappedMicrobatch(self, microbatch) for microbatch in range(len(streams))
        ]
        self.cost = SwapCost()
        self._move_count = 0  # changes while the fetcher makes progress
        # Turns, from the first one on, whose cache is in place. The fetcher's thread counts them
        # while turns run; `begin` resets the count while this thread is idle.
        self._ready_count = 0
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._wake = Wake()
        self._error: StreamingError | None = None
        self._thread = start_helper(
            "fetcher",
            self._fetch_turns,
            self._fail,
            lambda: f"bringing back turn {self._ready_count}",
        )

    def _make_managers(self, stream: Stream) -> list[CacheManager]:
        """Return the managers of a microbatch, one for each resident cache that its turns take."""
        managers: list[CacheManager] = []
        for cache in self._resident_caches:
            managers.append(
                CacheManager(
                    cache=cache,
                    streams=[stream],
                    level=_LEVEL,
                    streamer=self._streamer,
                    timeout=self._timeout_s,
                    # Each chunk leaves from the cache of its turn, so one block holds all times.
                    times=managers[0].times if managers else None,
                )
            )
        return managers

    # ---- the model's side ----

    def begin(self, microbatch: int, tokens: np.ndarray | None = None) -> None:
        """Prepare a microbatch, outside the clock; all of them before the first turn.

        Args:
            tokens: token ids of the prompt, int64 [B, P].
        """
        # The managers of one microbatch share its stream, which begins once.
        first_manager, *other_managers = self._managers[microbatch]
        first_manager.begin(tokens)
        for manager in other_managers:
            manager.reset()
        self._places.begin()
        self.cost = SwapCost()
        self._ready_count = len(self._resident_caches)  # the first R turns bring nothing back

    def manager(self, microbatch: int, step: int) -> CacheManager:
        """Return the manager that streams this turn."""
        return self._managers[microbatch][
            self._turn_number(microbatch, step) % len(self._resident_caches)
        ]

    def managers(self, microbatch: int) -> list[CacheManager]:
        """Return the managers that have streamed a microbatch, one per resident cache.

        All have the same chunks, and share the times of these.
        """
        return self._managers[microbatch]

    def step_begins(self, microbatch: int, step: int) -> None:
        """Wait until the cache of a turn is in place, right before the model computes it.

        The wait counts as stall of the microbatch's phase.

        Raises:
            StreamingError: bringing the cache back failed, or makes no progress.
        """
        self.microbatches[microbatch].step_begins(step)

    def wait(self, microbatch: int, step: int) -> Wait:
        """Wait until the model can be given this turn's cache.

        On a CUDA device its stream then waits until the cache is in place. The returned wait lasts
        until that moment.

        Raises:
            StreamingError: as :meth:`step_begins`.
        """
        turn = self._turn_number(microbatch, step)
        enter_place = self._places.arrive()
        while self._ready_count <= turn:
            # A slow fetch may take longer than the timeout, if it moves.
            count_before = self._move_count
            # A stale wake, of a turn that needed no wait, only makes this loop look again.
            was_woken = self._wake.wait(self._timeout_s)
            self._raise_error()
            if not was_woken and self._ready_count <= turn and self._move_count == count_before:
                raise StreamingError(
                    f"the cache of microbatch {microbatch} was not back "
                    f"within {self._timeout_s:g} s"
                )
        place = turn % len(self._resident_caches)
        self.current[microbatch] = self._resident_caches[place]
        return enter_place(place)

    def leave(self, microbatch: int, step: int) -> None:
        """End this turn: its cache may be evicted, and another one fetched in its place."""
        turn = self._turn_number(microbatch, step)
        self._places.leave(turn % len(self._resident_caches))
        # R turns later this cache serves again: its next user is the turn to fetch.
        turn += len(self._resident_caches)
        if turn < len(self._streams) * (self._streams[0].schedule.steps + 1):
            self._turns.put(turn)

    def bring_back(self, microbatch: int) -> KVCache:
        """Return a resident cache with all that was streamed of a microbatch.

        To be called once every turn is over.
        """
        stream = self._streams[microbatch]
        self._fetcher.fetch(stream, stream.schedule.steps + 1, 0)
        self._await_filled(microbatch, 0)
        return self._resident_caches[0]

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of the fetcher's thread."""
        return read_cpu_seconds(self._thread)

    def close(self) -> None:
        """End the fetcher's thread; a cache that it is about to fetch is given up."""
        self._turns.put(None)
        self._thread.join(self._timeout_s)

    def _turn_number(self, microbatch: int, step: int) -> int:
        return step * len(self._streams) + microbatch

    def _raise_error(self) -> None:
        self._streamer.raise_error()
        if self._error is not None:
            raise self._error

    # ---- the fetcher's thread ----

    def _fetch_turns(self) -> None:
        while (turn := self._turns.get()) is not None:
            self._fetch_turn(turn)

    def _fail(self, error: StreamingError) -> None:
        """Note the error that ended the thread: no later turn may count as in place."""
        self._error = error
        self._wake.set()

    def _fetch_turn(self, turn: int) -> None:
        place = turn % len(self._resident_caches)
        step, microbatch = divmod(turn, len(self._streams))
        # The turn that was in this place must be streamed out before its cache is overwritten.
        self._await_complete(turn - len(self._resident_caches))
        if step:
            # Chunks of a stream complete in order, so all earlier steps are complete with the last.
            self._await_complete(turn - len(self._streams))
            began_s = time.perf_counter()
            self.cost.nbytes += self._fetcher.fetch(self._streams[microbatch], step, place)
            self._admit(turn)
            self._await_filled(microbatch, place)
            self.cost.bring_s += time.perf_counter() - began_s
        else:
            self._admit(turn)

    def _admit(self, turn: int) -> None:
        """Let the model's thread compute a turn, as it does as soon as it sees the count."""
        self._ready_count = turn + 1
        self._wake.set()

    def _await_filled(self, microbatch: int, place: int) -> None:
        """Wait until all that was fetched is in a place; on the CPU it is."""
        try:
            wait_asleep(
                lambda: self._places.is_filled(place),
                f"bringing back microbatch {microbatch}",
                self._timeout_s,
            )
        except DeadlineError as error:
            raise StreamingError(str(error)) from None

    def _await_complete(self, turn: int) -> None:
        """Wait until everything that a turn has streamed is complete."""
        step, microbatch = divmod(turn, len(self._streams))
        manager = self.manager(microbatch, step)

        def has_moved() -> bool:
            self._streamer.raise_error()
            return manager.lag_nbytes == 0 or manager.completed_nbytes != completed_before

        while manager.lag_nbytes:
            completed_before = manager.completed_nbytes
            try:
                wait_asleep(has_moved, f"eviction of microbatch {microbatch}", self._timeout_s)
            except DeadlineError as error:
                raise StreamingError(str(error)) from None
            self._count_move()  # eviction makes progress, so the model's wait is not stuck

    def _count_move(self) -> None:
        self._move_count += 1


class SwappedMicrobatch:
    """One of a swapper's microbatches; it takes progress reports as a :class:`CacheManager` does.

    Attributes:
        prompt, tokens, draining: counters of streaming it out. Waiting for the cache to be back is
            part of the stall, from the drain on.
    """

    def __init__(self, swapper: Swapper, microbatch: int) -> None:
        self._swapper = swapper
        self._microbatch = microbatch
        self.prompt = StreamStats()
        self.tokens = StreamStats()
        self.draining = StreamStats()
        self._waits: list[Wait] = []  # one for each step
        self._manager: CacheManager | None = None  # of the cache that this turn has

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, as :meth:`Swapper.begin`."""
        self.prompt = StreamStats()
        self.tokens = StreamStats()
        self.draining = StreamStats()
        self._waits = []
        self._manager = None
        self._swapper.begin(self._microbatch, tokens)

    def step_begins(self, step: int) -> None:
        """Wait until the cache is in place, as :meth:`Swapper.step_begins`."""
        self._waits.append(self._swapper.wait(self._microbatch, step))
        self._manager = self._swapper.manager(self._microbatch, step)

    def layer_ready(self, layer: int) -> None:
        """Stream a layer of the prompt, as :meth:`CacheManager.layer_ready`."""
        self._turn_manager().layer_ready(layer)

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Stream a step and end the turn."""
        self._turn_manager().step_ready(step, tokens)
        self._manager = None
        self._swapper.leave(self._microbatch, step)

    def drain(self) -> None:
        """Wait until the last byte has arrived, and add up the counters."""
        for manager in self._swapper.managers(self._microbatch):
            manager.drain()
            self.prompt.add(manager.prompt)
            self.tokens.add(manager.tokens)
            self.draining.add(manager.draining)
        # All is streamed out now, so every turn is over, on a device as well.
        for step, wait in enumerate(self._waits):
            began_ns, ended_ns = wait.span()
            (self.tokens if step else self.prompt).add_past_stall(began_ns, ended_ns)
            self._swapper.cost.wait_s += (ended_ns - began_ns) * 1e-9

    def _turn_manager(self) -> CacheManager:
        """Return the manager of this turn's cache; a call outside a turn is an error."""
        if self._manager is None:
            raise StreamingError(
                f"microbatch {self._microbatch} has no cache: step_begins comes before "
                "layer_ready and step_ready"
            )
        return self._manager
