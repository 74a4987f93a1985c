"""CacheManager and its helper when something fails, hangs or ends early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.waiting import wait_asleep
from helpers.caches import play_model, random_cache
from helpers.fake_destination import (
    PATIENCE,
    WHOLE_LAYERS,
    FakeDestination,
    make_small_stream,
    play_and_drain,
    schedule_of,
    small_geometry,
    streaming,
)


class Failing(FakeDestination):
    """Fails at its third chunk."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def _take(self, stream: Stream, packed: bytes, watched: torch.Tensor | None) -> None:
        if len(self.packed[stream.key]) == 2:
            raise self._error
        super()._take(stream, packed, watched)


@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
def test_an_error_in_the_helper_reaches_the_model(level: Level) -> None:
    stream = Stream(id=9, schedule=schedule_of(small_geometry()))
    cache = random_cache(stream.schedule.geometry)
    error = OSError(5, "Input/output error")
    with streaming(Failing(error)) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        # At level 3 the model may have handed over everything before it happens. Then drain()
        # raises it.
        with pytest.raises(
            StreamingError, match=r"Input/output error; the first missing is chunk 2 .* of stream 9"
        ):
            play_and_drain(cache, stream, manager)
        calls: list[Callable[[], None]] = [
            manager.drain,
            manager.begin,
            lambda: manager.step_ready(1),
        ]
        if level.layerwise:
            calls.append(lambda: manager.layer_ready(0))
        for call in calls:  # and so does every later call
            with pytest.raises(StreamingError) as caught:
                call()
            assert caught.value.__cause__ is error


def test_a_destinations_own_error_comes_as_it_is() -> None:
    stream = make_small_stream()
    error = StreamingError("the sink has closed the connection")
    with streaming(Failing(error)) as streamer:
        manager = CacheManager(
            random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE
        )
        manager.begin()
        with pytest.raises(StreamingError) as caught:
            play_and_drain(manager.cache, stream, manager)
        assert caught.value is error


@pytest.mark.parametrize(("complete", "step"), [(0, 0), (2, 0), (3, 1), (5, 3)])
def test_the_drains_deadline_names_the_first_missing_chunk(complete: int, step: int) -> None:
    stream = Stream(id=4, schedule=schedule_of(small_geometry()))
    with streaming(FakeDestination(allowed=complete)) as streamer:
        manager = CacheManager(
            random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, 0.1
        )
        manager.begin()
        missing_chunk = rf"chunk {complete} \(step {step}\) of stream 4"
        expected = rf"no chunk became complete within 0.1 s; .* {missing_chunk}"
        with pytest.raises(StreamingError, match=expected):
            play_and_drain(manager.cache, stream, manager)


@pytest.mark.parametrize("level", ["0", "3"])
def test_a_destination_that_hangs_in_flush_is_named(level: str) -> None:
    release = threading.Event()

    class Hanging(FakeDestination):
        def _take(self, stream: Stream, packed: bytes, watched: torch.Tensor | None) -> None:
            if self.packed[stream.key]:
                release.wait(PATIENCE)
            super()._take(stream, packed, watched)

    stream = Stream(id=4, schedule=schedule_of(small_geometry()))
    with streaming(Hanging()) as streamer:
        manager = CacheManager(
            random_cache(stream.schedule.geometry), [stream], LEVELS[level], streamer, 0.1
        )
        manager.begin()
        with pytest.raises(StreamingError, match="the first missing is chunk 1 "):
            play_and_drain(manager.cache, stream, manager)
        release.set()


def test_a_long_naive_chunk_that_moves_is_not_given_up() -> None:
    """Blocks of extents are progress: the whole chunk takes longer than the timeout."""

    class Slow(FakeDestination):
        def flush_extents(
            self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
        ) -> None:
            for _ in self.cut_and_count(list(extents) * 100):
                release.wait(0.1)  # never set: a tenth of a second a block
            super().flush_extents(stream, chunk, extents, each_complete)

    release = threading.Event()
    schedule = schedule_of(small_geometry())
    stream = Stream(id=0, schedule=schedule)
    with streaming(Slow()) as streamer:
        manager = CacheManager(
            random_cache(schedule.geometry), [stream], LEVELS["0"], streamer, 0.4
        )
        manager.begin()
        manager.step_ready(0)
        assert streamer.destination.blocks_moved >= 5
        assert manager.lag_nbytes == 0


def test_closing_drops_chunks_under_way() -> None:
    stream = make_small_stream()
    destination = FakeDestination(allowed=0)
    streamer = Streamer(destination, staging(WHOLE_LAYERS, 2))
    manager = CacheManager(
        random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE
    )
    manager.begin()
    play_model(manager.cache, manager.cache, stream.schedule, manager)
    wait_asleep(lambda: len(destination.packed[stream.key]) == 2, "both slots in use", PATIENCE)
    assert streamer.cpu_seconds() > 0
    streamer.close()
    assert destination.closed == 1
    assert len(destination.packed[stream.key]) == 2
    assert not any(thread.name == "streamer" for thread in threading.enumerate())
    assert streamer.cpu_seconds() == 0


def test_closing_after_an_error_ends_the_helper() -> None:
    stream = make_small_stream()
    streamer = Streamer(Failing(ValueError("no")), staging(WHOLE_LAYERS, 2))
    manager = CacheManager(
        random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE
    )
    manager.begin()
    with pytest.raises(StreamingError, match="ValueError: no"):
        play_and_drain(manager.cache, stream, manager)
    streamer.close()
    assert not any(thread.name == "streamer" for thread in threading.enumerate())


def test_staging_that_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="memory needs at least one staging slot"):
        Streamer(FakeDestination(), [])
    stream = make_small_stream(slot=2048)
    cache = random_cache(stream.schedule.geometry)
    with streaming(FakeDestination(), slot=1024) as streamer:
        with pytest.raises(ValueError, match="up to 2048 bytes do not fit staging slots of 1024"):
            CacheManager(cache, [stream], LEVELS["3"], streamer)
        CacheManager(cache, [stream], LEVELS["0"], streamer)  # goes through no slot


# ---- threads ----


def test_the_helper_computes_on_one_thread_and_leaves_the_models_alone() -> None:
    counts: dict[str, int] = {}

    class ThreadCountingDestination(FakeDestination):
        def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
            counts["helper"] = torch.get_num_threads()
            super().flush(stream, chunk, packed)

    def another() -> None:
        with streaming(ThreadCountingDestination()) as streamer:
            manager = CacheManager(
                random_cache(small_geometry()), [stream], LEVELS["3"], streamer, PATIENCE
            )
            manager.begin()
            play_and_drain(manager.cache, stream, manager)
            counts["model"] = torch.get_num_threads()
            look = threading.Thread(target=lambda: counts.update(new=torch.get_num_threads()))
            look.start()
            look.join()

    stream = make_small_stream()
    own_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = threading.Thread(target=another)  # a thread that has not computed yet
        model.start()
        model.join()
    finally:
        torch.set_num_threads(own_threads)
    assert counts == {"helper": 1, "model": 3, "new": 3}
