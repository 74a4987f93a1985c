"""Parts of chunks that leave a device, with the device played by the CPU. Integers of 2 bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dejavubench.dejavulib import chunk_times
from dejavubench.dejavulib.chunk_times import COPIED, SEEN, TimesBlock, cut
from dejavubench.dejavulib.destinations.base import Destination, Stream
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.registry import (
    DESTINATIONS,
    GATHER,
    NOTICE,
    POST,
    QUEUE,
    WIRE_WITH_ACKNOWLEDGEMENT,
    DestinationEntry,
)
from dejavubench.dejavulib.device import DeviceStaging
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import Packing, staging
from dejavubench.dejavulib.ranged_streamer import RangedStreamer
from dejavubench.dejavulib.strided import PackMethod, WayChoice
from dejavubench.dejavulib.transfers import ByteProgress, StreamStats, Transfer
from helpers.caches import random_cache
from helpers.fake_destination import (
    PATIENCE,
    WHOLE_LAYERS,
    FakeDestination,
    make_small_stream,
)

NAP, POSTING = 500, 11
LOOKS = 3


class Clock:
    """A clock that stands still but for what the test lets time pass in."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


class PlayedDevice(DeviceStaging):
    """Copies at once, but lets the helper look several times until it finds the copies' ends."""

    def __init__(self, clock: Clock) -> None:
        super().__init__([torch.empty(WHOLE_LAYERS, dtype=torch.uint8)])
        self._clock = clock
        self._looks = 0
        self._copied: list[tuple[Transfer, torch.Tensor]] = []

    def begin(self, transfer: Transfer, packing: Packing, packed: torch.Tensor) -> None:
        packing.gather(packed)
        transfer.stamp(COPIED)
        self._copied.append((transfer, packed))

    def take_arrived(self) -> Any:
        self._looks += 1
        if self._copied and self._looks % LOOKS == 0:
            self._clock.now += NAP
            yield self._copied.pop(0)


class SlowPost(FakeDestination):
    """Time passes in ``flush``."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def flush(self, stream: Stream, chunk: Any, packed: torch.Tensor) -> None:
        self._clock.now += POSTING
        super().flush(stream, chunk, packed)


class RangeNames:
    """Notes the names of ranges."""

    def __init__(self) -> None:
        self.pushed: list[str] = []

    def push(self, name: str) -> None:
        self.pushed.append(name.partition(":")[0])

    def pop(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made_up = Clock()
    monkeypatch.setattr(chunk_times, "now", made_up)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    return made_up


def stream_first_chunk(
    destination: Destination, clock: Clock
) -> tuple[list[int], dict[str, Any], RangeNames]:
    """Stream the prompt's first chunk; return its parts, its stamps and the names of ranges."""
    stream = make_small_stream()
    titles, device = RangeNames(), PlayedDevice(clock)
    slots = staging(WHOLE_LAYERS, 2) if destination.entry.staged else []
    streamer = RangedStreamer(titles, destination, slots, device)
    try:
        manager = CacheManager(
            random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE
        )
        manager.begin()
        planned, times = manager.chunks[0], TimesBlock(1)
        progress = ByteProgress(submitted_nbytes=planned.chunk.nbytes)
        ready: Any = SimpleNamespace()
        transfer = Transfer(planned, progress, StreamStats(), ready_event=ready)
        transfer.take_times(times, clock())
        streamer.submit([transfer])
        streamer.wait(progress, PATIENCE)
        stamps = next(times.stamps_by_row())
        return cut(device.parts(destination.entry, 0), stamps), stamps, titles
    finally:
        streamer.close()


def test_naps_of_the_helper_are_notice_and_not_post(clock: Clock) -> None:
    lengths, stamps, titles = stream_first_chunk(SlowPost(clock), clock)
    assert lengths == [0, 0, 0, NAP, POSTING, 0]
    assert stamps["seen"] == stamps["posted"] - POSTING
    assert titles.pushed == ["gather + copy to host", "post"]


def test_to_host_memory_nothing_is_posted(clock: Clock) -> None:
    lengths, _, titles = stream_first_chunk(HostDestination(), clock)
    assert lengths == [0, 0, 0, NAP]
    assert titles.pushed == ["gather + copy to host", "notice"]


def test_a_chunk_of_the_cpu_is_not_seen(clock: Clock) -> None:
    stream = make_small_stream()
    streamer = RangedStreamer(RangeNames(), FakeDestination(), staging(WHOLE_LAYERS, 2))
    try:
        cache = random_cache(stream.schedule.geometry)
        manager = CacheManager(cache, [stream], LEVELS["1"], streamer, PATIENCE)
        manager.begin()
        manager.step_ready(0)
        assert manager.times is not None
        first_stamps = next(manager.times.stamps_by_row())
        assert first_stamps["posted"] is not None
        assert first_stamps["seen"] is first_stamps["copied"] is None
        assert "notice" not in {part.name for part in manager.parts(0)}
    finally:
        streamer.close()


@pytest.mark.parametrize("entry", DESTINATIONS.values(), ids=lambda entry: entry.name)
@pytest.mark.parametrize("way", ["kernel", "strided DMA"])
def test_every_cut_of_a_chunk_from_a_device_is_whole(
    entry: DestinationEntry, way: PackMethod, clock: Clock
) -> None:
    slots = [torch.empty(8, dtype=torch.uint8)]
    device = DeviceStaging(slots, {"prompt": WayChoice(way), "token": WayChoice(way)})
    for parts in (device.parts(entry, 0), device.parts(entry, 1), entry.bounced_parts(False)):
        assert parts[-1].until == "complete"
        assert len({part.name for part in parts}) == len({part.until for part in parts})
        ends = [part.until for part in parts if part.until in chunk_times.STAMPS]
        assert ends == sorted(ends, key=lambda end: chunk_times.STAMPS.index(end))


def test_extents_through_the_bounce_buffer_are_separate_parts_where_one_wait_ends_the_copies() -> (
    None
):
    def names(entry: DestinationEntry, each_complete: bool) -> list[str]:
        return [part.name for part in entry.bounced_parts(each_complete)]

    host, mpi = DESTINATIONS["host"], DESTINATIONS["mpi"]
    assert names(host, True) == ["queue", "move"]
    assert names(host, False) == ["queue", "copy to host", "copy into place"]
    assert names(mpi, False) == ["queue", "copy to host", "move", "wire + acknowledgement"]
    # Of 42 ns the CPU copies for 30: the extents lay in the buffer at ``gathered``.
    stamps = {"ready": 100, "begun": 90, "gathered": 112, "complete": 142}
    assert cut(host.bounced_parts(False), stamps) == [0, 12, 30]


@pytest.mark.parametrize("level", ["0", "0-batched"])
def test_a_manager_cuts_extents_after_where_its_cache_is(level: str, clock: Clock) -> None:
    stream = make_small_stream()
    streamer = RangedStreamer(RangeNames(), HostDestination(), [])
    try:
        cache = random_cache(stream.schedule.geometry)
        manager = CacheManager(cache, [stream], LEVELS[level], streamer, PATIENCE)
        entry = streamer.destination.entry
        assert manager.parts(0) == entry.extent_parts
        on_device: Any = SimpleNamespace(k=SimpleNamespace(is_cuda=True))
        manager.cache = on_device
        assert manager.parts(0) == entry.bounced_parts(level == "0")
    finally:
        streamer.close()


def test_the_parts_after_a_copy_are_those_of_the_destination() -> None:
    assert DestinationEntry("a plugin's").copied_parts == (NOTICE, POST, WIRE_WITH_ACKNOWLEDGEMENT)
    assert DESTINATIONS["mpi"].parts[:2] == (QUEUE, GATHER)
    assert DESTINATIONS["mpi"].copied_parts == (NOTICE, *DESTINATIONS["mpi"].parts[2:])
    assert SEEN > COPIED
