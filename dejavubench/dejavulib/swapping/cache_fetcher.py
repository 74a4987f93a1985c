"""Fetching the whole cache of a microbatch from a store into a place that it can be used in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..destinations.base import LocalDestination, Stream
from ..kv_cache import KVCache
from ..levels import DEFAULT_LEVEL, LEVELS
from ..packing import Packing, scatter_steps
from ..schedule import MOST_FETCHED_NBYTES, Chunk, StreamSchedule
from .residents import Residents


class CacheFetcher:
    """Puts microbatches from their store in the caches of some places.

    Args:
        caches: the caches of the places, of one geometry.
        schedule: schedule of all streams that are fetched.
        store: holds them.
        places: how bytes get to the caches.
        on_move: called as a fetch makes progress.
    """

    def __init__(
        self,
        caches: Sequence[KVCache],
        schedule: StreamSchedule,
        store: LocalDestination,
        places: Residents,
        on_move: Callable[[], None],
    ) -> None:
        self._caches = caches
        self._store = store
        self._places = places
        self._on_move = on_move
        level = LEVELS[DEFAULT_LEVEL]
        self._prompts: list[list[tuple[Chunk, Packing]]] = [
            [(chunk, Packing(cache, chunk.region)) for chunk in schedule.chunks(level, 0)]
            for cache in caches
        ]

    def fetch(self, stream: Stream, step_count: int, place: int) -> int:
        """Put the first ``step_count`` steps of a microbatch in a place; return their bytes.

        Returns once the place says so; see :meth:`.residents.Residents.is_filled`.
        """
        schedule = stream.schedule
        self._places.begin_fill(place)
        # All of the prompt and the steps: the place holds another microbatch's bytes everywhere.
        prompt, _ = self._store.fetch_steps(stream, range(1))
        for chunk, packing in self._prompts[place]:
            self._places.put(prompt[chunk.offset : chunk.offset + chunk.nbytes], packing.scatter)
        # Decode steps come in groups: one copy per group for K and one for V, bounded memory.
        most_step_count = max(1, MOST_FETCHED_NBYTES // schedule.step_nbytes(1))
        for first_step in range(1, step_count, most_step_count):
            self._on_move()
            decode_steps = range(first_step, min(first_step + most_step_count, step_count))
            packed, stride = self._store.fetch_steps(stream, decode_steps)
            scatter = partial(
                scatter_steps,
                stride=stride,
                cache=self._caches[place],
                schedule=schedule,
                steps=decode_steps,
            )
            self._places.put(packed, scatter)
        self._places.end_fill(place)
        return schedule.step_offset(step_count)
