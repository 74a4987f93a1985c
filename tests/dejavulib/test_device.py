"""Streaming a cache on a CUDA device: right bytes at every level, never before they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch

from dejavubench.dejavulib import chunk_times
from dejavubench.dejavulib.chunk_times import cut
from dejavubench.dejavulib.destinations.base import Destination, Stream
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.device import DeviceStaging
from dejavubench.dejavulib.device_times import DeviceClock
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.strided import PackMethod, WayChoice
from dejavubench.dejavulib.waiting import wait_asleep
from helpers.caches import packed_stream, play_model, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    FakeDestination,
    begin_over,
    make_destination,
    make_small_stream,
    schedule_of,
    small_geometry,
    stored_bytes,
)
from helpers.gpu_marks import needs_gpus

pytestmark = [
    pytest.mark.gpu,
    needs_gpus(1),
]

A_WHILE = 20_000_000
"""Cycles that the model's stream is kept busy with: some ten milliseconds."""


def copy_to_device(cache: KVCache) -> KVCache:
    return KVCache(cache.geometry, cache.k.cuda(), cache.v.cuda())


@contextmanager
def streaming(
    destination: Destination, slot: int, slots: int = 2, way: PackMethod = "kernel"
) -> Iterator[Streamer]:
    staged = [torch.empty(slot, dtype=torch.uint8, device="cuda") for _ in range(slots)]
    device = DeviceStaging(staged, {"prompt": WayChoice(way), "token": WayChoice(way)})
    streamer = Streamer(
        destination, staging(slot, slots, pinned=True) if destination.entry.staged else [], device
    )
    try:
        yield streamer
    finally:
        streamer.close()


class BusyModel:
    """A manager whose model announces steps while the device is still computing them."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager

    def layer_ready(self, layer: int) -> None:
        self._manager.layer_ready(layer)
        torch.cuda._sleep(A_WHILE)

    def step_ready(self, step: int, tokens: object = None) -> None:
        self._manager.step_ready(step)
        torch.cuda._sleep(A_WHILE)


@pytest.mark.parametrize(
    ("slot", "interval"), [(WHOLE_LAYERS, 1), (CUT_LAYERS, 1), (WHOLE_LAYERS, 2), (CUT_LAYERS, 2)]
)
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize(
    ("level", "way"),
    [
        pytest.param(level, way, id=f"{name}-{way}")
        for name, level in LEVELS.items()
        for way in (get_args(PackMethod) if level.buffered else ["kernel"])
    ],
)
@pytest.mark.parametrize("kind", ["memory", "host", "fdatasync", "page-cache"])
def test_every_byte_of_a_gpu_cache_arrives_at_each_destination(
    kind: str,
    level: Level,
    way: PackMethod,
    layout: KVLayout,
    slot: int,
    interval: int,
    tmp_path: Path,
) -> None:
    geometry = small_geometry(layout)
    stream = Stream(id=0, schedule=schedule_of(geometry, slot, interval=interval))
    cache = copy_to_device(random_cache(geometry))
    with streaming(make_destination(kind, tmp_path, pinned=True), slot, way=way) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        for microbatch in range(2):
            source = random_cache(geometry, seed=microbatch)
            cache.fill(0x11 + microbatch)
            begin_over(manager, streamer, 0x21 + microbatch)
            torch.cuda._sleep(A_WHILE)
            play_model(copy_to_device(source), cache, stream.schedule, BusyModel(manager))
            manager.drain()
            assert stored_bytes(streamer.destination, stream) == packed_stream(
                source, stream.schedule
            )
            assert manager.lag_nbytes == 0
            assert manager.tokens.nbytes == STEPS * stream.schedule.position_nbytes
            if not level.buffered:
                atoms = [
                    atom for step in range(1, STEPS + 1) for atom in stream.schedule.atoms(step)
                ]
                assert manager.tokens.copies == sum(
                    len(geometry.extents(kv, a).offsets) for a in atoms for kv in BOTH
                )
        if isinstance(streamer.destination, DiskDestination):
            streamer.destination.check(stream)


@pytest.mark.parametrize("way", get_args(PackMethod))
def test_the_model_does_not_wait_at_level_3(way: PackMethod) -> None:
    stream = make_small_stream()
    cache = copy_to_device(random_cache(stream.schedule.geometry))
    destination = FakeDestination(allowed=0)
    with streaming(destination, WHOLE_LAYERS, way=way) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        # The model's thread does not wait, though nothing becomes complete.
        play_model(cache, cache, stream.schedule, manager)
        assert manager.lag_nbytes == stream.schedule.nbytes
        wait_asleep(lambda: len(destination.packed[stream.key]) == 2, "both slots in use", PATIENCE)
        destination.allowed = 1 << 30
        manager.drain()
    assert destination.most_under_way == 2


def test_a_cache_on_a_device_without_staging_there_is_refused() -> None:
    geometry = KVGeometry(layers=3, requests=2, heads=2, positions=9, head_size=16, itemsize=2)
    cache = copy_to_device(random_cache(geometry))
    streamer = Streamer(FakeDestination(), staging(WHOLE_LAYERS, 2, pinned=True))
    try:
        with pytest.raises(ValueError, match="needs staging slots of 65536 bytes there"):
            CacheManager(
                cache, [Stream(id=0, schedule=schedule_of(geometry))], LEVELS["3"], streamer
            )
    finally:
        streamer.close()


@pytest.mark.parametrize("layout", list(KVLayout))
def test_each_kind_of_chunk_goes_the_way_that_was_measured(layout: KVLayout) -> None:
    geometry = KVGeometry(
        layers=3, requests=2, heads=4, positions=80, head_size=64, itemsize=2, layout=layout
    )
    stream = Stream(
        id=0,
        schedule=StreamSchedule(
            geometry, geometry.whole, input_len=70, steps=STEPS, slot_nbytes=WHOLE_LAYERS * 8
        ),
    )
    source, cache = random_cache(geometry), copy_to_device(random_cache(geometry, seed=1))
    with streaming(FakeDestination(), stream.schedule.slot_nbytes) as streamer:
        assert streamer.device_staging is not None
        assert streamer.device_staging.ways == {
            "prompt": "kernel (not measured)",
            "token": "kernel (not measured)",
        }
        streamer.device_staging.calibrate(cache, stream.schedule.all_chunks(LEVELS["3"]))
        assert all("not measured" not in way for way in streamer.device_staging.ways.values())
        assert ("too short" in streamer.device_staging.ways["token"]) == (layout is KVLayout.FT)
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        play_model(copy_to_device(source), cache, stream.schedule, BusyModel(manager))
        manager.drain()
        assert stored_bytes(streamer.destination, stream) == packed_stream(source, stream.schedule)


# ---- times of chunks ----


@dataclass(frozen=True)
class TimedChunks:
    """The chunks of one iteration on a GPU, with their times.

    Attributes:
        began_ns, ended_ns: the host's clock before and after the iteration.
        error_ns: how far the device's events may lie from the host's clock.
        stamps: of each chunk, its times by name.
        bills: of each chunk, the names of its parts with their nanoseconds, in order.
    """

    began_ns: int
    ended_ns: int
    error_ns: float
    stamps: Sequence[Mapping[str, int | None]]
    bills: list[list[tuple[str, int]]]


def time_chunks(level: Level, way: PackMethod) -> TimedChunks:
    """Stream a small cache to host memory: one GPU, integers of 2 bytes."""
    geometry = small_geometry()
    stream = Stream(id=0, schedule=schedule_of(geometry))
    cache = copy_to_device(random_cache(geometry))
    with streaming(HostDestination(pinned=True), WHOLE_LAYERS, way=way) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        began_ns = chunk_times.now()
        play_model(cache, cache, stream.schedule, BusyModel(manager))
        manager.drain()
        ended_ns = chunk_times.now()
        assert manager.times is not None
        assert manager._device_clock is not None
        stamps = list(manager.times.stamps_by_row())
        assert len(stamps) == manager.times.finished_count == len(manager.chunks)
        bills = []
        for planned, times in zip(manager.chunks, stamps, strict=True):
            parts = manager.parts(planned.chunk.step)
            names = [part.name for part in parts]
            bills.append(list(zip(names, cut(parts, times), strict=True)))
        return TimedChunks(began_ns, ended_ns, manager._device_clock.error_ns, stamps, bills)


@pytest.mark.parametrize("way", get_args(PackMethod))
@pytest.mark.parametrize("name", [name for name, level in LEVELS.items() if level.buffered])
def test_a_packed_chunk_is_timed_by_events_in_the_order_of_the_work(
    name: str, way: PackMethod
) -> None:
    timed = time_chunks(LEVELS[name], way)
    gathering = (
        ["gather", "copy to host"] if way == "kernel" else ["gather + copy to host", "notice"]
    )
    for stamps, bill in zip(timed.stamps, timed.bills, strict=True):
        part_names = [part_name for part_name, _ in bill]
        assert part_names[1:3] == gathering
        assert part_names[-1] == "notice", "the copy has brought the chunk into its place"
        assert dict(bill[1:2])[gathering[0]] > 0
        check_order(stamps, timed.error_ns)


@pytest.mark.parametrize("name", [name for name, level in LEVELS.items() if not level.buffered])
def test_extents_of_a_device_have_no_time_of_a_gather(name: str) -> None:
    timed = time_chunks(LEVELS[name], "kernel")
    moving = ["move"] if LEVELS[name].each_complete else ["copy to host", "copy into place"]
    for stamps, bill in zip(timed.stamps, timed.bills, strict=True):
        assert [part_name for part_name, _ in bill[1:]] == moving
        assert bill[-1][1] > 0
        assert stamps["copied"] is stamps["seen"] is None


@pytest.mark.parametrize(
    ("level", "way"),
    [
        pytest.param(level, way, id=f"{name}-{way}")
        for name, level in LEVELS.items()
        for way in (get_args(PackMethod) if level.buffered else ["kernel"])
    ],
)
def test_the_parts_of_a_chunks_time_on_a_device_add_up(level: Level, way: PackMethod) -> None:
    timed = time_chunks(level, way)
    for stamps, bill in zip(timed.stamps, timed.bills, strict=True):
        ready_ns, complete_ns = stamps["ready"], stamps["complete"]
        assert ready_ns is not None
        assert complete_ns is not None
        assert timed.began_ns - timed.error_ns <= ready_ns <= complete_ns <= timed.ended_ns
        assert sum(length_ns for _, length_ns in bill) == complete_ns - ready_ns


def check_order(times: Mapping[str, int | None], error_ns: float) -> None:
    """Hold that a chunk is ready, gathered, copied, seen and posted, in this order."""
    device_times = [times[name] for name in ("ready", "begun", "gathered", "copied")]
    assert None not in device_times
    assert device_times == sorted(device_times, key=lambda time: time or 0)
    # The event comes before the look. elapsed_time() rounds to half a microsecond.
    assert (times["copied"] or 0) - error_ns - 2_000 <= (times["seen"] or 0)
    assert (times["seen"] or 0) <= (times["posted"] or 0)


def test_the_anchor_ties_events_to_the_hosts_clock() -> None:
    """One GPU: an event that the host has waited for lies between the times before and after."""
    clock = DeviceClock(torch.device("cuda"))
    clock.set()
    event = torch.cuda.Event(enable_timing=True)
    began = chunk_times.now()
    event.record()
    event.synchronize()
    ended = chunk_times.now()
    slack = clock.error_ns + 1_000  # elapsed_time() rounds to half a microsecond
    assert began - slack <= clock.time_of(event) <= ended + slack
