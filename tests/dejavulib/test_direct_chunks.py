"""Chunks that a destination takes straight from the cache: no slot, no gather, the same order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import Packing
from dejavubench.dejavulib.schedule import Chunk
from helpers.caches import packed_stream, play_model, random_cache
from helpers.fake_destination import (
    PATIENCE,
    WHOLE_LAYERS,
    FakeDestination,
    filled_cache,
    schedule_of,
    small_geometry,
    streaming,
)


class DirectDestination(FakeDestination):
    """Takes the chunks of some steps from the cache itself.

    Attributes:
        direct: numbers of the chunks that came so.
    """

    def __init__(self, takes_prompt: bool, takes_tokens: bool) -> None:
        super().__init__()
        self.direct: defaultdict[int, list[int]] = defaultdict(list)
        self._takes = takes_prompt, takes_tokens

    def prepare_direct(self, stream: Stream, chunk: Chunk, cache: KVCache) -> Packing | None:
        return Packing(cache, chunk.region) if self._takes[chunk.step > 0] else None

    def flush_direct(self, stream: Stream, chunk: Chunk, prepared: Any) -> None:
        assert chunk.index == len(self.packed[stream.key])
        self.direct[chunk.step].append(chunk.index)
        packed = torch.zeros(chunk.nbytes, dtype=torch.uint8)
        prepared.gather(packed)
        self._take(stream, packed.numpy().tobytes(), None)


@pytest.mark.parametrize("takes_tokens", [True, False])
@pytest.mark.parametrize("takes_prompt", [True, False])
def test_direct_and_packed_chunks_make_one_stream(takes_prompt: bool, takes_tokens: bool) -> None:
    destination = DirectDestination(takes_prompt, takes_tokens)
    geometry = small_geometry()
    stream = Stream(0, schedule_of(geometry))
    source, cache = random_cache(geometry), filled_cache(geometry, 0x51)
    with streaming(destination) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        play_model(source, cache, stream.schedule, manager)
        manager.drain()
        assert manager.times is not None
        assert manager.times.finished_count == len(manager.chunks)
        for stamps in manager.times.stamps_by_row():
            assert all(stamps[name] is not None for name in ("begun", "gathered", "posted"))
    assert b"".join(destination.packed[stream.key]) == packed_stream(source, stream.schedule)
    assert bool(destination.direct[0]) == takes_prompt
    assert any(destination.direct[step] for step in range(1, 4)) == takes_tokens
    assert bool(destination.slots) != (takes_prompt and takes_tokens)


def test_unbuffered_levels_move_extents_as_before() -> None:
    destination = DirectDestination(takes_prompt=True, takes_tokens=True)
    stream = Stream(0, schedule_of(small_geometry()))
    cache = filled_cache(stream.schedule.geometry, 0x51)
    with streaming(destination) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["0"], streamer, PATIENCE)
        assert all(planned_chunk.direct is None for planned_chunk in manager.chunks)


def test_a_destination_that_packs_every_chunk_says_so() -> None:
    destination = FakeDestination()
    stream = Stream(0, schedule_of(small_geometry(), WHOLE_LAYERS))
    chunk = next(stream.schedule.all_chunks(LEVELS["3"]))
    cache = filled_cache(stream.schedule.geometry, 0x51)
    assert destination.prepare_direct(stream, chunk, cache) is None
    assert destination.ways == {}
    with pytest.raises(NotImplementedError, match="memory packs every chunk"):
        destination.flush_direct(stream, chunk, object())
