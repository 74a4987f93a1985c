"""CacheManager and its helper: right bytes at every level, bounded staging, the model's waits."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.kv_cache import BOTH, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.waiting import wait_asleep
from helpers.caches import packed_stream, play_model, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    FakeDestination,
    begin_over,
    filled_cache,
    make_destination,
    make_small_stream,
    schedule_of,
    small_geometry,
    stored_bytes,
    streaming,
)

# ---- the bytes, at every level ----

DESTINATIONS = ["memory", "host", "fdatasync", "direct", "page-cache"]


def begin_or_skip(manager: CacheManager, streamer: Streamer, byte: int) -> None:
    """Begin a microbatch; skips where the file system has no O_DIRECT."""
    try:
        begin_over(manager, streamer, byte)
    except StreamingError as error:
        if "direct streaming: Invalid argument" in str(error):
            pytest.skip(f"the temporary folder's file system refuses O_DIRECT: {error}")
        raise


@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
@pytest.mark.parametrize("kind", DESTINATIONS)
def test_every_byte_of_a_host_cache_arrives_at_each_destination(
    kind: str, level: Level, layout: KVLayout, slot: int, tmp_path: Path
) -> None:
    geometry = small_geometry(layout)
    stream = Stream(id=0, schedule=schedule_of(geometry, slot))
    cache = filled_cache(geometry, 0)
    with streaming(make_destination(kind, tmp_path), slot) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        for microbatch in range(2):  # the second in the same slots, buffers and files
            source = random_cache(geometry, seed=microbatch)
            cache.fill(0x11 + microbatch)
            begin_or_skip(manager, streamer, 0x21 + microbatch)
            play_model(source, cache, stream.schedule, manager)
            manager.drain()
            assert stored_bytes(streamer.destination, stream) == packed_stream(
                source, stream.schedule
            )
            assert manager.lag_nbytes == 0
            check_counts(manager, stream, level)
        if isinstance(streamer.destination, DiskDestination):
            streamer.destination.check(stream)
        if isinstance(streamer.destination, FakeDestination):
            assert streamer.destination.each_complete == (
                set() if level.buffered else {level.each_complete}
            )


def check_counts(manager: CacheManager, stream: Stream, level: Level) -> None:
    schedule = stream.schedule
    assert manager.prompt.nbytes == schedule.step_nbytes(0)
    assert manager.tokens.nbytes == STEPS * schedule.step_nbytes(1)
    assert (manager.draining.nbytes, manager.draining.copies) == (0, 0)
    for phase, steps in ((manager.prompt, range(1)), (manager.tokens, range(1, STEPS + 1))):
        if level.buffered:
            copies = sum(len(list(schedule.chunks(level, step))) for step in steps)
        else:
            atoms = [atom for step in steps for atom in schedule.atoms(step)]
            copies = sum(
                len(schedule.geometry.extents(kv, atom).offsets) for atom in atoms for kv in BOTH
            )
        assert phase.copies == copies
        assert 0 < phase.lag_nbytes <= schedule.nbytes
        assert phase.stall_s > 0
    if not level.overlapped:
        assert manager.tokens.lag_nbytes == schedule.step_nbytes(1)
        assert manager.draining.lag_nbytes == 0


# ---- when the model waits ----


@pytest.mark.parametrize(
    "level", [LEVELS[name] for name in ("0", "0-batched", "1", "2")], ids=lambda level: level.name
)
def test_without_overlap_each_step_ends_with_its_own_streaming(level: Level) -> None:
    stream = make_small_stream()
    cache = random_cache(stream.schedule.geometry)
    with streaming(FakeDestination(polls=20)) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        for layer in range(3):
            manager.layer_ready(layer)
            assert level.layerwise or manager.lag_nbytes == 0
        for step in range(STEPS + 1):
            manager.step_ready(step)
            assert manager.lag_nbytes == 0
            assert sum(map(len, kept_chunks(streamer, stream))) == stream.schedule.step_offset(
                step + 1
            )


def kept_chunks(streamer: Streamer, stream: Stream) -> list[bytes]:
    assert isinstance(streamer.destination, FakeDestination)
    return streamer.destination.packed[stream.key]


def test_with_overlap_the_helper_lags_and_the_model_does_not_wait() -> None:
    geometry = small_geometry()
    stream = Stream(id=0, schedule=schedule_of(geometry))
    source, cache = random_cache(geometry), filled_cache(geometry, 0x33)
    destination = FakeDestination(allowed=0)
    with streaming(destination, slots=2) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        # The model's thread does not wait, though nothing becomes complete.
        play_model(source, cache, stream.schedule, manager)
        assert manager.lag_nbytes == stream.schedule.nbytes
        assert manager.prompt.lag_nbytes == stream.schedule.step_nbytes(0)
        assert manager.tokens.lag_nbytes == stream.schedule.nbytes
        wait_asleep(lambda: len(destination.packed[stream.key]) == 2, "both slots in use", PATIENCE)
        destination.allowed = 1
        wait_asleep(
            lambda: len(destination.packed[stream.key]) == 3,
            "the third chunk in the first slot",
            PATIENCE,
        )
        assert manager.lag_nbytes == stream.schedule.nbytes - stream.schedule.layer_nbytes(0)
        destination.allowed = 1 << 30
        manager.drain()
        assert manager.draining.lag_nbytes == stream.schedule.nbytes - stream.schedule.layer_nbytes(
            0
        )
        assert stored_bytes(destination, stream) == packed_stream(source, stream.schedule)
    assert destination.most_under_way == 2
    assert len(destination.slots) == 2


def test_a_slot_is_overwritten_only_when_it_has_been_streamed() -> None:
    stream = make_small_stream()
    cache = random_cache(stream.schedule.geometry)
    destination = FakeDestination(allowed=0)
    with streaming(destination) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, timeout=0.05)
        manager.begin()
        play_model(cache, cache, stream.schedule, manager)
        with pytest.raises(StreamingError, match="the first missing is chunk 0"):
            manager.begin()
        assert manager.prompt.nbytes, (
            "the counts of a microbatch that is not streamed yet were lost"
        )
        destination.polls, destination.allowed = 30, 1 << 30
        manager.begin()  # FakeDestination.begin refuses a stream with chunks under way
        assert manager.lag_nbytes == manager.tokens.nbytes == 0
        assert manager.prompt.stall_s > 0


def test_a_stall_is_counted_in_the_phase_it_happens_in() -> None:
    stream = make_small_stream()
    cache = random_cache(stream.schedule.geometry)
    # Each chunk takes 50 looks, with a nap after each.
    with streaming(FakeDestination(polls=50)) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["1"], streamer, PATIENCE)
        manager.begin()
        play_model(cache, cache, stream.schedule, manager)
        manager.drain()
        napping = 50 * 50e-6  # the shortest nap while the model waits
        assert manager.prompt.stall_s >= napping / 2
        assert manager.tokens.stall_s >= STEPS * napping / 2


# ---- several streams, several caches ----


def test_two_targets_each_get_their_part() -> None:
    """Ids are unique between two ranks only: the streams to two sinks may have the same one."""
    geometry = small_geometry()
    halves = [geometry.region(heads=Span(head, head + 1)) for head in range(2)]
    streams = [
        Stream(id=0, schedule=schedule_of(geometry, region=half), peer=peer)
        for peer, half in enumerate(halves, start=5)
    ]
    source, cache = random_cache(geometry), filled_cache(geometry, 0x33)
    for level in LEVELS.values():
        with streaming(FakeDestination(polls=2)) as streamer:
            manager = CacheManager(cache, streams, level, streamer, PATIENCE)
            manager.begin()
            play_model(source, cache, streams[0].schedule, manager)
            manager.drain()
            for stream in streams:
                assert stored_bytes(streamer.destination, stream) == packed_stream(
                    source, stream.schedule
                )


def test_two_caches_share_one_helper() -> None:
    geometry = small_geometry()
    streams = [Stream(number, schedule_of(geometry)) for number in range(2)]
    sources = [random_cache(geometry, seed) for seed in range(2)]
    destination = FakeDestination(polls=2)
    with streaming(destination) as streamer:
        managers = [
            CacheManager(filled_cache(geometry, 0x33), [stream], LEVELS["3"], streamer, PATIENCE)
            for stream in streams
        ]
        managers[0].begin()
        play_model(sources[0], managers[0].cache, streams[0].schedule, managers[0])
        managers[1].begin()  # while the first one's chunks are on their way
        play_model(sources[1], managers[1].cache, streams[1].schedule, managers[1])
        for manager, stream, source in zip(managers, streams, sources, strict=True):
            manager.drain()
            assert manager.lag_nbytes == 0
            assert stored_bytes(destination, stream) == packed_stream(source, stream.schedule)


def test_another_caches_progress_is_progress() -> None:
    """A wait is given up when nothing moves at all, not when others are served first."""
    geometry = small_geometry()
    streams = [Stream(number, schedule_of(geometry, CUT_LAYERS)) for number in range(2)]
    cache = random_cache(geometry)

    class OneByOne(FakeDestination):
        """Lets a chunk through every 50 ms."""

        def __init__(self) -> None:
            super().__init__()
            self._pace = threading.Event()

        def poll_completed(self, stream: Stream) -> int:
            self._pace.wait(0.05)
            return super().poll_completed(stream)

    with streaming(OneByOne(), CUT_LAYERS) as streamer:
        first_manager, second_manager = (
            CacheManager(cache, [stream], LEVELS["3"], streamer, 1.0) for stream in streams
        )
        for manager in (first_manager, second_manager):
            manager.begin()
        play_model(cache, cache, streams[0].schedule, first_manager)
        assert first_manager.streams[0].schedule.count(LEVELS["3"]) * 0.05 > 1.0
        play_model(cache, cache, streams[1].schedule, second_manager)
        second_manager.drain()


def test_token_ids_come_with_the_step_that_they_went_into() -> None:
    stream = make_small_stream(slot=CUT_LAYERS)
    cache = random_cache(stream.schedule.geometry)
    new_tokens = np.arange(2 * STEPS).reshape(2, STEPS)
    for level in LEVELS.values():
        with streaming(FakeDestination()) as streamer:
            manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
            manager.begin()
            play_model(cache, cache, stream.schedule, manager, new_tokens)
            manager.drain()
            assert isinstance(streamer.destination, FakeDestination)
            expected = [(step, new_tokens[:, step - 1].tolist()) for step in range(1, STEPS + 1)]
            assert streamer.destination.steps[stream] == expected
