"""CacheManager and its helper thread: right bytes at every level, bounded staging, and errors that come out."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import packed_stream, play_model, random_cache

from dejavubench.dejavulib.destinations.base import Capabilities, Destination, Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager, Streamer
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.kvcache import BOTH, KVCache, KVGeometry, KVLayout, Region, Span
from dejavubench.waiting import wait_asleep

PATIENCE = 30.0
"""Seconds until a test that waits for a thread gives up; nothing is measured by it."""

INPUT_LEN, STEPS = 4, 3
WHOLE_LAYERS, CUT_LAYERS = 1 << 16, 300
"""Slots that hold several layers of the small cache, and those that not even one request of the prompt fits."""


def small_geometry(layout: KVLayout = KVLayout.HND) -> KVGeometry:
    return KVGeometry(3, 2, 2, 9, 16, 2, layout)


def schedule_of(geometry: KVGeometry, slot: int = WHOLE_LAYERS, region: Region | None = None) -> StreamSchedule:
    return StreamSchedule(geometry, region or geometry.whole, INPUT_LEN, STEPS, slot)


class Memory(Destination):
    """Keeps what it is given; chunks become complete as the test allows, and packed buffers are watched till then.

    Attributes:
        allowed: chunks of each stream that may become complete.
        polls: how often it is asked before another chunk is complete.
    """

    name = "memory"
    capabilities = Capabilities(remote=False)

    def __init__(self, allowed: int = 1 << 30, polls: int = 1) -> None:
        self.allowed = allowed
        self.polls = polls
        self.most_under_way = 0
        self.slots: set[int] = set()
        self.each_complete: set[bool] = set()
        self.steps: dict[Stream, list[tuple[int, object]]] = defaultdict(list)
        self.packed: dict[tuple[int | None, int], list[bytes]] = defaultdict(list)
        self.closed = 0
        self._watched: dict[tuple[int | None, int], list[torch.Tensor | None]] = defaultdict(list)
        self._complete: dict[tuple[int | None, int], int] = defaultdict(int)
        self._asked = 0

    def begin(self, stream: Stream, tokens: np.ndarray | None = None, pattern: int = 0) -> None:
        assert self._complete[stream.key] == len(self.packed[stream.key]), "the slot is reused with chunks under way"
        for book in (self.packed, self._watched, self._complete):
            book.pop(stream.key, None)

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:
        self.steps[stream].append((step, None if tokens is None else tokens.tolist()))

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        assert chunk.index == len(self.packed[stream.key])
        self._take(stream, packed.numpy().tobytes(), packed)
        self.slots.add(packed.data_ptr())

    def flush_runs(self, stream: Stream, chunk: Chunk, runs: Sequence[memoryview], each_complete: bool) -> None:
        assert chunk.index == len(self.packed[stream.key])
        self.each_complete.add(each_complete)
        self._take(stream, b"".join(runs), None)

    def _take(self, stream: Stream, packed: bytes, watched: torch.Tensor | None) -> None:
        self.packed[stream.key].append(packed)
        self._watched[stream.key].append(watched)
        under_way = sum(len(packed) - self._complete[key] for key, packed in self.packed.items())
        self.most_under_way = max(self.most_under_way, under_way)

    def completed(self, stream: Stream) -> int:
        key, self._asked = stream.key, self._asked + 1
        if self._asked % self.polls == 0 and self._complete[key] < min(len(self.packed[key]), self.allowed):
            number = self._complete[key]
            watched = self._watched[key][number]
            if watched is not None:
                assert watched.numpy().tobytes() == self.packed[key][number], "a slot was reused too soon"
            self._complete[key] += 1
        return self._complete[key]

    def close(self) -> None:
        self.closed += 1


@contextmanager
def streaming(destination: Destination, slot: int = WHOLE_LAYERS, slots: int = 2) -> Iterator[Streamer]:
    streamer = Streamer(destination, slot, slots if destination.staged else 0)
    try:
        yield streamer
    finally:
        streamer.close()


def poisoned(geometry: KVGeometry, pattern: int) -> KVCache:
    cache = KVCache.allocate(geometry, torch.int16)
    cache.fill(pattern)
    return cache


# ---- the bytes, at every level ----

DESTINATIONS = ["memory", "host", "fdatasync", "direct", "page-cache"]


def make(kind: str, directory: Path) -> Destination:
    if kind == "memory":
        return Memory(polls=3)
    if kind == "host":
        return HostDestination()
    return DiskDestination(directory, "stream", kind, False, {"run": "test"})  # type: ignore[arg-type]


def begin(manager: CacheManager, pattern: int) -> None:
    """Begin a microbatch; skips where the file system has no O_DIRECT."""
    try:
        manager.begin(pattern=pattern)
    except StreamingError as error:
        if "direct streaming: Invalid argument" in str(error):
            pytest.skip(f"the temporary folder's file system refuses O_DIRECT: {error}")
        raise


def held(destination: Destination, stream: Stream) -> bytes:
    """The whole packed stream as a destination has it."""
    if isinstance(destination, Memory):
        return b"".join(destination.packed[stream.key])
    packed = torch.zeros(stream.schedule.nbytes, dtype=torch.uint8)
    for chunk in stream.schedule.all_chunks(LEVELS["3"]):
        destination.fetch(stream, chunk, packed[chunk.offset : chunk.offset + chunk.nbytes])
    return packed.numpy().tobytes()


@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
@pytest.mark.parametrize("kind", DESTINATIONS)
def test_every_byte_arrives(kind: str, level: Level, layout: KVLayout, slot: int, tmp_path: Path) -> None:
    geometry = small_geometry(layout)
    stream = Stream(0, schedule_of(geometry, slot))
    cache = poisoned(geometry, 0)
    with streaming(make(kind, tmp_path), slot) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        for microbatch in range(2):  # the second in the same slots, buffers and files
            source = random_cache(geometry, seed=microbatch)
            cache.fill(0x11 + microbatch)
            begin(manager, 0x21 + microbatch)
            play_model(source, cache, stream.schedule, manager)
            manager.drain()
            assert held(streamer.destination, stream) == packed_stream(source, stream.schedule)
            assert manager.lag_nbytes == 0
            check_counts(manager, stream, level)
        if isinstance(streamer.destination, DiskDestination):
            streamer.destination.check(stream)
        if isinstance(streamer.destination, Memory):
            assert streamer.destination.each_complete == (set() if level.buffered else {level.each_complete})


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
            copies = sum(len(schedule.geometry.runs(kv, atom).offsets) for atom in atoms for kv in BOTH)
        assert phase.copies == copies
        assert 0 < phase.lag_nbytes <= schedule.nbytes
        assert phase.stall_s > 0
    if not level.overlapped:
        assert manager.tokens.lag_nbytes == schedule.step_nbytes(1)
        assert manager.draining.lag_nbytes == 0


# ---- when the model waits ----


@pytest.mark.parametrize("level", [LEVELS[name] for name in ("0", "0-batched", "1", "2")], ids=lambda level: level.name)
def test_without_overlap_each_step_ends_with_its_own_streaming(level: Level) -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    cache = random_cache(stream.schedule.geometry)
    with streaming(Memory(polls=20)) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        for layer in range(3):
            manager.layer_ready(layer)
            assert level.layerwise or manager.lag_nbytes == 0
        for step in range(STEPS + 1):
            manager.step_ready(step)
            assert manager.lag_nbytes == 0
            assert sum(map(len, held_chunks(streamer, stream))) == stream.schedule.step_offset(step + 1)


def held_chunks(streamer: Streamer, stream: Stream) -> list[bytes]:
    assert isinstance(streamer.destination, Memory)
    return streamer.destination.packed[stream.key]


def test_with_overlap_the_helper_lags_and_the_model_does_not_wait() -> None:
    geometry = small_geometry()
    stream = Stream(0, schedule_of(geometry))
    source, cache = random_cache(geometry), poisoned(geometry, 0x33)
    destination = Memory(allowed=0)
    with streaming(destination, slots=2) as streamer:
        assert streamer.staging_nbytes == 2 * WHOLE_LAYERS
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        play_model(source, cache, stream.schedule, manager)  # returns though nothing becomes complete
        assert manager.lag_nbytes == stream.schedule.nbytes
        assert manager.prompt.lag_nbytes == stream.schedule.step_nbytes(0)
        assert manager.tokens.lag_nbytes == stream.schedule.nbytes
        wait_asleep(lambda: len(destination.packed[stream.key]) == 2, "both slots in use", PATIENCE)
        destination.allowed = 1
        wait_asleep(lambda: len(destination.packed[stream.key]) == 3, "the third chunk in the first slot", PATIENCE)
        assert manager.lag_nbytes == stream.schedule.nbytes - stream.schedule.layer_nbytes(0)
        destination.allowed = 1 << 30
        manager.drain()
        assert manager.draining.lag_nbytes == stream.schedule.nbytes - stream.schedule.layer_nbytes(0)
        assert held(destination, stream) == packed_stream(source, stream.schedule)
    assert destination.most_under_way == 2
    assert len(destination.slots) == 2


def test_a_slot_is_overwritten_only_when_it_has_been_streamed() -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    cache = random_cache(stream.schedule.geometry)
    destination = Memory(allowed=0)
    with streaming(destination) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        play_model(cache, cache, stream.schedule, manager)
        with pytest.raises(StreamingError, match="the first missing is chunk 0"):
            CacheManager.begin(impatient(manager))
        assert manager.prompt.nbytes, "the counts of a microbatch that is not streamed yet were lost"
        destination.polls, destination.allowed = 30, 1 << 30
        manager.begin()  # Memory.begin refuses a stream with chunks under way
        assert manager.lag_nbytes == manager.tokens.nbytes == 0
        assert manager.prompt.stall_s > 0


def impatient(manager: CacheManager) -> CacheManager:
    manager._timeout = 0.05
    return manager


def test_what_was_a_stall_is_noted_in_its_phase() -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    cache = random_cache(stream.schedule.geometry)
    with streaming(Memory(polls=50)) as streamer:  # each chunk takes 50 looks with a nap between them
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
    streams = [Stream(0, schedule_of(geometry, region=half), peer) for peer, half in enumerate(halves, start=5)]
    source, cache = random_cache(geometry), poisoned(geometry, 0x33)
    for level in LEVELS.values():
        with streaming(Memory(polls=2)) as streamer:
            manager = CacheManager(cache, streams, level, streamer, PATIENCE)
            manager.begin()
            play_model(source, cache, streams[0].schedule, manager)
            manager.drain()
            for stream in streams:
                assert held(streamer.destination, stream) == packed_stream(source, stream.schedule)


def test_two_caches_share_one_helper() -> None:
    geometry = small_geometry()
    streams = [Stream(number, schedule_of(geometry)) for number in range(2)]
    sources = [random_cache(geometry, seed) for seed in range(2)]
    destination = Memory(polls=2)
    with streaming(destination) as streamer:
        managers = [
            CacheManager(poisoned(geometry, 0x33), [stream], LEVELS["3"], streamer, PATIENCE) for stream in streams
        ]
        managers[0].begin()
        play_model(sources[0], managers[0].cache, streams[0].schedule, managers[0])
        managers[1].begin()  # while the first one's chunks are on their way
        play_model(sources[1], managers[1].cache, streams[1].schedule, managers[1])
        for manager, stream, source in zip(managers, streams, sources, strict=True):
            manager.drain()
            assert manager.lag_nbytes == 0
            assert held(destination, stream) == packed_stream(source, stream.schedule)


def test_another_caches_progress_is_progress() -> None:
    """A wait is given up when nothing moves at all, not when others are served first."""
    geometry = small_geometry()
    streams = [Stream(number, schedule_of(geometry, CUT_LAYERS)) for number in range(2)]
    cache = random_cache(geometry)

    class OneByOne(Memory):
        """Lets a chunk through every 50 ms."""

        def __init__(self) -> None:
            super().__init__()
            self._pace = threading.Event()

        def completed(self, stream: Stream) -> int:
            self._pace.wait(0.05)
            return super().completed(stream)

    with streaming(OneByOne(), CUT_LAYERS) as streamer:
        first, second = (CacheManager(cache, [stream], LEVELS["3"], streamer, 1.0) for stream in streams)
        for manager in (first, second):
            manager.begin()
        play_model(cache, cache, streams[0].schedule, first)
        assert first.streams[0].schedule.count(LEVELS["3"]) * 0.05 > 1.0
        play_model(cache, cache, streams[1].schedule, second)
        second.drain()


def test_token_ids_come_with_the_step_that_they_went_into() -> None:
    stream = Stream(0, schedule_of(small_geometry(), CUT_LAYERS))
    cache = random_cache(stream.schedule.geometry)
    new_tokens = np.arange(2 * STEPS).reshape(2, STEPS)
    for level in LEVELS.values():
        with streaming(Memory()) as streamer:
            manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
            manager.begin()
            play_model(cache, cache, stream.schedule, manager, new_tokens)
            manager.drain()
            assert isinstance(streamer.destination, Memory)
            expected = [(step, new_tokens[:, step - 1].tolist()) for step in range(1, STEPS + 1)]
            assert streamer.destination.steps[stream] == expected


# ---- when it goes wrong ----


class Failing(Memory):
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
    stream = Stream(9, schedule_of(small_geometry()))
    cache = random_cache(stream.schedule.geometry)
    error = OSError(5, "Input/output error")
    with streaming(Failing(error)) as streamer:
        manager = CacheManager(cache, [stream], level, streamer, PATIENCE)
        manager.begin()
        # At level 3 the model may have handed everything over before it happens; then the drain says it.
        with pytest.raises(StreamingError, match=r"Input/output error; the first missing is chunk 2 .* of stream 9"):
            play_and_drain(cache, stream, manager)
        calls: list[Callable[[], None]] = [manager.drain, manager.begin, lambda: manager.step_ready(1)]
        if level.layerwise:
            calls.append(lambda: manager.layer_ready(0))
        for call in calls:  # and so does every later call
            with pytest.raises(StreamingError) as caught:
                call()
            assert caught.value.__cause__ is error


def play_and_drain(cache: KVCache, stream: Stream, manager: CacheManager) -> None:
    play_model(cache, cache, stream.schedule, manager)
    manager.drain()


def test_a_destinations_own_error_comes_as_it_is() -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    error = StreamingError("the sink has said goodbye")
    with streaming(Failing(error)) as streamer:
        manager = CacheManager(random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        with pytest.raises(StreamingError) as caught:
            play_and_drain(manager.cache, stream, manager)
        assert caught.value is error


@pytest.mark.parametrize(("complete", "step"), [(0, 0), (2, 0), (3, 1), (5, 3)])
def test_the_drains_deadline_names_the_first_missing_chunk(complete: int, step: int) -> None:
    stream = Stream(4, schedule_of(small_geometry()))
    with streaming(Memory(allowed=complete)) as streamer:
        manager = CacheManager(random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, 0.1)
        manager.begin()
        expected = rf"no chunk became complete within 0.1 s; .* chunk {complete} \(step {step}\) of stream 4"
        with pytest.raises(StreamingError, match=expected):
            play_and_drain(manager.cache, stream, manager)


@pytest.mark.parametrize("level", ["0", "3"])
def test_a_destination_that_hangs_in_flush_is_named(level: str) -> None:
    release = threading.Event()

    class Hanging(Memory):
        def _take(self, stream: Stream, packed: bytes, watched: torch.Tensor | None) -> None:
            if self.packed[stream.key]:
                release.wait(PATIENCE)
            super()._take(stream, packed, watched)

    stream = Stream(4, schedule_of(small_geometry()))
    with streaming(Hanging()) as streamer:
        manager = CacheManager(random_cache(stream.schedule.geometry), [stream], LEVELS[level], streamer, 0.1)
        manager.begin()
        with pytest.raises(StreamingError, match="the first missing is chunk 1 "):
            play_and_drain(manager.cache, stream, manager)
        release.set()


def test_close_gives_up_what_is_under_way() -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    destination = Memory(allowed=0)
    streamer = Streamer(destination, WHOLE_LAYERS, 2)
    manager = CacheManager(random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE)
    manager.begin()
    play_model(manager.cache, manager.cache, stream.schedule, manager)
    wait_asleep(lambda: len(destination.packed[stream.key]) == 2, "both slots in use", PATIENCE)
    assert streamer.cpu_seconds() > 0
    streamer.close()
    assert destination.closed == 1
    assert len(destination.packed[stream.key]) == 2
    assert not any(thread.name == "streamer" for thread in threading.enumerate())
    assert streamer.cpu_seconds() == 0


def test_close_after_an_error() -> None:
    stream = Stream(0, schedule_of(small_geometry()))
    streamer = Streamer(Failing(ValueError("no")), WHOLE_LAYERS, 2)
    manager = CacheManager(random_cache(stream.schedule.geometry), [stream], LEVELS["3"], streamer, PATIENCE)
    manager.begin()
    with pytest.raises(StreamingError, match="ValueError: no"):
        play_and_drain(manager.cache, stream, manager)
    streamer.close()
    assert not any(thread.name == "streamer" for thread in threading.enumerate())


def test_staging_that_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="memory needs at least one staging slot, not 0"):
        Streamer(Memory(), 1024, 0)
    stream = Stream(0, schedule_of(small_geometry(), slot=2048))
    cache = random_cache(stream.schedule.geometry)
    with streaming(Memory(), slot=1024) as streamer:
        with pytest.raises(ValueError, match="up to 2048 bytes do not fit staging slots of 1024"):
            CacheManager(cache, [stream], LEVELS["3"], streamer)
        CacheManager(cache, [stream], LEVELS["0"], streamer)  # goes through no slot


# ---- threads ----


def test_the_helper_computes_on_one_thread_and_leaves_the_models_alone() -> None:
    counts: dict[str, int] = {}

    class Curious(Memory):
        def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
            counts["helper"] = torch.get_num_threads()
            super().flush(stream, chunk, packed)

    def another() -> None:
        with streaming(Curious()) as streamer:
            manager = CacheManager(random_cache(small_geometry()), [stream], LEVELS["3"], streamer, PATIENCE)
            manager.begin()
            play_and_drain(manager.cache, stream, manager)
            counts["model"] = torch.get_num_threads()
            look = threading.Thread(target=lambda: counts.update(new=torch.get_num_threads()))
            look.start()
            look.join()

    stream = Stream(0, schedule_of(small_geometry()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = threading.Thread(target=another)  # a thread that has not computed yet
        model.start()
        model.join()
    finally:
        torch.set_num_threads(before)
    assert counts == {"helper": 1, "model": 3, "new": 3}
