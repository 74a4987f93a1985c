"""For tests of the library: a destination in memory, and small caches to stream to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from dejavubench.dejavulib.destinations.base import (
    Destination,
    ReadableDestination,
    Stream,
    StreamKey,
)
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout, Region
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from helpers.caches import play_model

PATIENCE = 30.0
"""Seconds until a test that waits for a thread gives up; nothing is measured by it."""

INPUT_LEN, STEPS = 4, 3
WHOLE_LAYERS, CUT_LAYERS = 1 << 16, 300
"""Slot sizes: one holds several layers, one holds not even one request of the prompt."""


def small_geometry(layout: KVLayout = KVLayout.HND) -> KVGeometry:
    return KVGeometry(
        layers=3, requests=2, heads=2, positions=9, head_size=16, itemsize=2, layout=layout
    )


def schedule_of(
    geometry: KVGeometry,
    slot: int = WHOLE_LAYERS,
    region: Region | None = None,
    interval: int = 1,
) -> StreamSchedule:
    region = region or geometry.whole
    return StreamSchedule(geometry, region, INPUT_LEN, STEPS, slot, flush_interval=interval)


def make_small_stream(layout: KVLayout = KVLayout.HND, slot: int = WHOLE_LAYERS) -> Stream:
    return Stream(id=0, schedule=schedule_of(small_geometry(layout), slot))


class FakeDestination(Destination):
    """A destination that keeps its chunks, which become complete when the test allows it.

    Packed buffers are watched until then: nobody may change them.

    Attributes:
        allowed: chunks of each stream that may become complete.
        polls: how often it is asked before another chunk is complete.
    """

    entry = DestinationEntry("memory")

    def __init__(self, allowed: int = 1 << 30, polls: int = 1) -> None:
        self.allowed = allowed
        self.polls = polls
        self.most_under_way = 0
        self.slots: set[int] = set()
        self.each_complete: set[bool] = set()
        self.steps: dict[Stream, list[tuple[int, object]]] = defaultdict(list)
        self.packed: dict[StreamKey, list[bytes]] = defaultdict(list)
        self.closed = 0
        self._watched: dict[StreamKey, list[torch.Tensor | None]] = defaultdict(list)
        self._complete: dict[StreamKey, int] = defaultdict(int)
        self._asked = 0

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        assert self._complete[stream.key] == len(self.packed[stream.key]), (
            "the slot is reused with chunks under way"
        )
        for book in (self.packed, self._watched, self._complete):
            book.pop(stream.key, None)

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:
        self.steps[stream].append((step, None if tokens is None else tokens.tolist()))

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        assert chunk.index == len(self.packed[stream.key])
        self._take(stream, packed.numpy().tobytes(), packed)
        self.slots.add(packed.data_ptr())

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        assert chunk.index == len(self.packed[stream.key])
        self.each_complete.add(each_complete)
        self._take(stream, b"".join(extents), None)

    def _take(self, stream: Stream, packed: bytes, watched: torch.Tensor | None) -> None:
        self.packed[stream.key].append(packed)
        self._watched[stream.key].append(watched)
        under_way = sum(len(packed) - self._complete[key] for key, packed in self.packed.items())
        self.most_under_way = max(self.most_under_way, under_way)

    def poll_completed(self, stream: Stream) -> int:
        key, self._asked = stream.key, self._asked + 1
        if self._asked % self.polls == 0 and self._complete[key] < min(
            len(self.packed[key]), self.allowed
        ):
            number = self._complete[key]
            watched = self._watched[key][number]
            if watched is not None:
                assert watched.numpy().tobytes() == self.packed[key][number], (
                    "a slot was reused too soon"
                )
            self._complete[key] += 1
        return self._complete[key]

    def close(self) -> None:
        self.closed += 1


def make_destination(kind: str, folder: Path, pinned: bool = False) -> Destination:
    """Return a destination of this process, by its name or, on a disk, by its durability.

    Args:
        pinned: whether the host's memory is page-locked.
    """
    if kind == "memory":
        return FakeDestination(polls=3)
    if kind == "host":
        return HostDestination(pinned=pinned)
    durability: Durability = kind  # type: ignore[assignment]
    return DiskDestination(folder, "stream", durability, False, {"run": "test"})


@contextmanager
def streaming(
    destination: Destination, slot: int = WHOLE_LAYERS, slots: int = 2
) -> Iterator[Streamer]:
    streamer = Streamer(destination, staging(slot, slots if destination.entry.staged else 0))
    try:
        yield streamer
    finally:
        streamer.close()


def filled_cache(geometry: KVGeometry, pattern: int) -> KVCache:
    cache = KVCache.allocate(geometry, torch.int16)
    cache.fill(pattern)
    return cache


def begin_over(
    manager: CacheManager, streamer: Streamer, byte: int, tokens: np.ndarray | None = None
) -> None:
    """Begin a microbatch, with everything that the destination holds of it overwritten."""
    manager.begin(tokens)
    for stream in manager.streams:
        for buffer in streamer.destination.buffers(stream):
            buffer.fill_(byte)


def stored_bytes(destination: Destination, stream: Stream) -> bytes:
    """Return the whole packed stream as a destination has it."""
    if isinstance(destination, FakeDestination):
        return b"".join(destination.packed[stream.key])
    assert isinstance(destination, ReadableDestination)
    packed = torch.zeros(stream.schedule.nbytes, dtype=torch.uint8)
    for chunk in stream.schedule.all_chunks(LEVELS["3"]):
        destination.fetch(stream, chunk, packed[chunk.offset : chunk.offset + chunk.nbytes])
    return packed.numpy().tobytes()


def play_and_drain(cache: KVCache, stream: Stream, manager: CacheManager) -> None:
    play_model(cache, cache, stream.schedule, manager)
    manager.drain()
