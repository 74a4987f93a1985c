"""Times of chunks against a made-up clock, and as a job records them. CPU; integers and fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dejavubench.dejavulib import chunk_times
from dejavubench.dejavulib.chunk_times import (
    BEGUN,
    COMPLETE,
    GATHERED,
    POSTED,
    READY,
    SINK_NS,
    STAMPS,
    LatencyPart,
    Receipt,
    TimesBlock,
    cut,
)
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.dejavulib.extent_samples import ExtentSampler
from dejavubench.dejavulib.kv_cache import KVLayout
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import Packing
from dejavubench.dejavulib.receiver import CacheReceiver, ChunkArrival
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.records import (
    ChunkList,
    ChunkTimes,
    End,
    Iteration,
    Microbatch,
    RecordError,
    read_chunk_times,
    read_extent_times,
    read_run,
    read_sink_times,
)
from helpers.caches import packed_stream, play_model, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    FakeDestination,
    make_small_stream,
    schedule_of,
    small_geometry,
    stored_bytes,
    streaming,
)
from helpers.jobs import QUICK, args, run

PARTS = sorted(
    {parts for entry in DESTINATIONS.values() for parts in (entry.parts, entry.extent_parts)}
)
TIMED_APART = DESTINATIONS["mpi"].parts


# ---- cutting a latency into parts ----

times = st.integers(0, 1 << 40)
maybe = st.none() | times


@st.composite
def any_stamps(draw: st.DrawFn) -> dict[str, int | None]:
    """Draw stamps in any order, but for a chunk that is complete after it was ready."""
    drawn: dict[str, int | None] = {name: draw(maybe) for name in STAMPS}
    ready = draw(times)
    return drawn | {"ready": ready, "complete": ready + draw(times)}


@given(st.sampled_from(PARTS), any_stamps())
def test_parts_are_never_negative_and_sum_to_the_latency(
    parts: Sequence[LatencyPart], chunk: dict[str, int | None]
) -> None:
    lengths = cut(parts, chunk)
    assert min(lengths) >= 0
    assert chunk["ready"] is not None
    assert chunk["complete"] is not None
    assert sum(lengths) == chunk["complete"] - chunk["ready"]


def test_a_part_ends_at_its_stamp_and_the_acknowledgement_is_the_sinks_duration() -> None:
    chunk = {"ready": 100, "begun": 103, "gathered": 110, "copied": None}
    later_stamps = {"posted": 125, "moved": None, "complete": 200, "sink_ns": 30}
    assert cut(TIMED_APART, chunk | later_stamps) == [3, 7, 15, 45, 30]
    # The sink was ready before flush returned: nothing is left for the wire.
    assert cut(TIMED_APART, chunk | later_stamps | {"posted": 190}) == [3, 7, 80, 0, 10]


@pytest.mark.parametrize("parts", PARTS)
def test_every_declared_cut_is_whole(parts: tuple[LatencyPart, ...]) -> None:
    assert parts[-1].until == "complete"
    assert len({part.name for part in parts}) == len({part.until for part in parts}) == len(parts)


# ---- against an outside clock ----


class MadeUpClock:
    """A clock that stands still but for what the test lets time pass in."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MadeUpClock:
    made_up = MadeUpClock()
    monkeypatch.setattr(chunk_times, "now", made_up)
    return made_up


GATHERING, POSTING, MOVING, SINKING = 5, 11, 20, 9


class SlowDestination(FakeDestination):
    """Time passes in ``flush`` and until a chunk is complete; the sink's part of it is known."""

    def __init__(self, clock: MadeUpClock) -> None:
        super().__init__()
        self._clock = clock

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        self._clock.now += POSTING
        super().flush(stream, chunk, packed)

    def poll_completed(self, stream: Stream) -> int:
        self._clock.now += MOVING + SINKING
        return super().poll_completed(stream)

    def receipt(self, stream: Stream) -> Receipt:
        return self._clock.now - SINKING, SINKING


@pytest.fixture
def slow_gather(clock: MadeUpClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowed(original: Callable[[Packing, torch.Tensor], None]) -> Callable[..., None]:
        def gather(self: Packing, packed: torch.Tensor) -> None:
            clock.now += GATHERING
            original(self, packed)

        return gather

    monkeypatch.setattr(Packing, "gather", slowed(Packing.gather))


@pytest.mark.usefixtures("slow_gather")
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
def test_with_one_chunk_under_way_the_parts_sum_to_the_drains_time(
    clock: MadeUpClock, slot: int
) -> None:
    """Only one slot, so each chunk waits in the queue until the one before is complete."""
    stream = make_small_stream(slot=slot)
    cache = random_cache(stream.schedule.geometry)
    with streaming(SlowDestination(clock), slot, slots=1) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["1"], streamer, PATIENCE)
        manager.begin()
        began = clock.now
        manager.step_ready(0)
        elapsed = clock.now - began
        chunks_of_prompt = len(list(stream.schedule.chunks(LEVELS["1"], 0)))
        prompt_chunks = list(times_of(manager))[:chunks_of_prompt]
    parts = [cut(TIMED_APART, chunk) for chunk in prompt_chunks]
    assert [part[1:] for part in parts] == [[GATHERING, POSTING, MOVING, SINKING]] * len(parts)
    # All chunks of the prompt are ready at once, and each waits for the ones before it.
    per_chunk = GATHERING + POSTING + MOVING + SINKING
    assert [part[0] for part in parts] == [number * per_chunk for number in range(len(parts))]
    assert sum(sum(part[1:]) for part in parts) == elapsed
    assert len(parts) > 1 or slot == WHOLE_LAYERS


def times_of(manager: CacheManager) -> Iterator[dict[str, int | None]]:
    assert manager.times is not None
    return manager.times.stamps_by_row()


def test_the_union_of_ready_to_complete_is_the_time_with_lag(clock: MadeUpClock) -> None:
    """The clock moves on only while the helper has nothing to do, so lag is known at all times."""
    stream = make_small_stream()
    cache = random_cache(stream.schedule.geometry)
    destination = FakeDestination(allowed=0)
    with streaming(destination, slots=2) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
        manager.begin()
        lagged = 0

        def pass_time(nanoseconds: int) -> None:
            nonlocal lagged
            lagged += nanoseconds if manager.lag_nbytes else 0
            clock.now += nanoseconds

        def allow(chunks: int) -> None:
            destination.allowed = chunks
            nbytes = sum(chunk.chunk.nbytes for chunk in manager.chunks[:chunks])
            wait_asleep(lambda: manager.completed_nbytes == nbytes, "completion", PATIENCE)

        for layer in range(3):  # three chunks under way, of which two have a slot
            manager.layer_ready(layer)
            pass_time(10)
        allow(1)
        pass_time(7)
        allow(3)
        pass_time(1_000)  # nothing lags
        manager.step_ready(0)
        for step in range(1, STEPS + 1):
            manager.step_ready(step)
            pass_time(10)
            allow(3 + step)
            pass_time(500)
        manager.drain()
        intervals = [
            (chunk_stamps["ready"], chunk_stamps["complete"]) for chunk_stamps in times_of(manager)
        ]
    assert union_length(intervals) == lagged == 30 + 7 + STEPS * 10


def union_length(intervals: Sequence[tuple[int | None, int | None]]) -> int:
    covered, end = 0, 0
    for ready, complete in sorted(
        (ready_or_none or 0, complete_or_none or 0) for ready_or_none, complete_or_none in intervals
    ):
        covered += max(0, complete - max(ready, end))
        end = max(end, complete)
    return covered


# ---- the block of a manager ----


def test_chunks_without_a_row_are_counted_and_summed() -> None:
    block = TimesBlock(4, most_row_count=2)
    for microbatch in range(2):
        block.reset()
        for row in range(4):
            stamps, offset = block.row(row)
            stamps[offset + READY] = 10 * row
            for place, delay in (
                (BEGUN, 1),
                (GATHERED, 2),
                (POSTED, 3),
                (COMPLETE, 9 + microbatch),
            ):
                stamps[offset + place] = 10 * row + delay
            stamps[offset + SINK_NS] = 4
            block.count(row, stamps)
    assert block.finished_count == 4
    assert block.beyond == 2
    assert block.columns()["complete"] == [10, 20]
    assert "moved" not in block.columns()
    assert block.beyond_ns == {
        "begun": 2,
        "gathered": 4,
        "copied": 0,
        "seen": 0,
        "posted": 6,
        "moved": 0,
        "complete": 20,
        "sink_ns": 8,
    }


def test_an_untimed_streamer_notes_nothing(clock: MadeUpClock) -> None:
    stream = make_small_stream()
    cache = random_cache(stream.schedule.geometry)
    with streaming(SlowDestination(clock)) as timed:
        assert timed.destination.timed
        assert CacheManager(cache, [stream], LEVELS["3"], timed, PATIENCE).times is not None
    untimed = Streamer(SlowDestination(clock), list(timed._slots), timed=False)
    try:
        manager = CacheManager(cache, [stream], LEVELS["3"], untimed, PATIENCE)
        manager.begin()
        play_model(cache, cache, stream.schedule, manager)
        manager.drain()
        assert not untimed.destination.timed
        assert manager.times is None
    finally:
        untimed.close()


class CompletedReceive:
    """A chunk that has come."""

    received_ns = 1_000

    def poll(self) -> bool:
        return True


class CompletedSinkEndpoint:
    """The sink's side of a destination whose chunks have all come."""

    by_address = False

    def receive(self, *_: object) -> CompletedReceive:
        return CompletedReceive()

    def receive_extents(self, *_: object) -> CompletedReceive:
        return CompletedReceive()

    def acknowledge(self, stream: Stream) -> None:
        return

    def finish(self) -> None:
        return

    def close(self) -> None:
        return


@pytest.mark.parametrize("timed", [True, False])
def test_an_untimed_sink_keeps_no_arrivals(timed: bool, clock: MadeUpClock) -> None:
    stream = make_small_stream()
    cache, level = random_cache(stream.schedule.geometry), LEVELS["3"]
    receiver = CacheReceiver(cache, stream, level, CompletedSinkEndpoint(), timed=timed)
    receiver.begin()
    while not receiver.done:
        assert receiver.poll()
    chunks = stream.schedule.count(level)
    assert receiver.arrivals == [ChunkArrival(1_000, clock.now)] * (chunks if timed else 0)


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
def test_extents_are_counted_as_the_cache_has_them(level: Level, layout: KVLayout) -> None:
    geometry = small_geometry(layout)
    stream = Stream(id=0, schedule=schedule_of(geometry))
    with streaming(FakeDestination()) as streamer:
        manager = CacheManager(random_cache(geometry), [stream], level, streamer, PATIENCE)
        counted = sum(planned.extent_count for planned in manager.chunks)
    by_steps = range(stream.schedule.steps + 1)
    # No slot cuts a layer here, so every level gathers, or moves, the same extents.
    extents_of_the_cache = sum(
        len(extent.offsets) for step in by_steps for extent in stream.schedule.extents(step)
    )
    assert counted == extents_of_the_cache


# ---- as a job records them ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with every level to host, disk and mpi. CPU, fp32, 1 thread."""
    flags = args("--warmup 1 --rounds 1 --level 0,0-batched,1,2,3 --streaming none,host,disk,mpi")
    flags = (*flags, "--sample-extents")
    return run(tmp_path_factory.mktemp("job"), 2, "run", *QUICK, *flags).folder


@pytest.mark.mpi
def test_every_chunk_of_every_iteration_is_recorded(folder: Path) -> None:
    recorded = list(read_chunk_times(folder))
    arms = {f"{mode}@{level}" for mode in ("host", "disk", "mpi") for level in LEVELS}
    assert {(timed.rank, timed.times.arm) for timed in recorded} == {(0, arm) for arm in arms}
    assert {timed.times.iteration for timed in recorded} == {0, 1}
    lines = (folder / "rank-0000.jsonl").read_text().splitlines()
    microbatches = {
        (microbatch.arm, microbatch.iteration): microbatch
        for line in lines
        if json.loads(line)["kind"] == "microbatch"
        for microbatch in [Microbatch.model_validate_json(line)]
    }
    for _, listed, record in recorded:
        microbatch = microbatches[record.arm, record.iteration]
        assert record.round == microbatch.round
        for phase, counted in (("prompt", microbatch.prompt), ("tokens", microbatch.tokens)):
            chunks = [chunk for chunk in listed.chunks if chunk.phase == phase]
            assert sum(chunk.nbytes for chunk in chunks) == counted.nbytes
            if record.arm.partition("@")[2].startswith("0"):
                assert sum(chunk.extents for chunk in chunks) == counted.copies
            else:
                assert len(chunks) == counted.copies
        check_times(listed, record)


def check_times(listed: ChunkList, record: ChunkTimes) -> None:
    for chunk, stamps in zip(listed.chunks, record.stamps(), strict=True):
        ordered = [stamps[name] for name in ("ready", "begun", "gathered", "posted", "complete")]
        assert [0, *ordered] == sorted([0, *ordered], key=lambda stamp: stamp or 0)
        assert stamps["ready"] != stamps["complete"]
        parts = listed.parts(chunk.phase)
        assert sum(cut(parts, stamps)) == (stamps["complete"] or 0) - (stamps["ready"] or 0)
    assert record.ready == sorted(record.ready)
    mode = record.arm.partition("@")[0]
    assert (record.sink_ns is not None) == (mode == "mpi")
    assert (record.moved is not None) == (mode != "host")
    assert record.copied is None
    assert record.beyond == 0


@pytest.mark.mpi
def test_the_files_beside_the_ranks_own_are_sealed(folder: Path, tmp_path: Path) -> None:
    recorded_run = read_run(folder)
    sealed = {name for _, end in recorded_run.records_of(End) for name in end.file_digests or {}}
    assert sealed == {"chunks-0000.jsonl", "chunks-0001.jsonl", "conditions-0000.jsonl"}
    assert recorded_run.notes == []
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "chunks-0001.jsonl"
    path.write_text(path.read_text().replace('"scattered":[', '"scattered":[1', 1))
    (note,) = read_run(copy).notes
    assert note.text.startswith("CHANGED: chunks-0001.jsonl was changed after the run")


@pytest.mark.mpi
def test_sampled_extents_are_a_diagnosis_and_no_arm(folder: Path) -> None:
    sampled = {times.arm: times for _, times in read_extent_times(folder)}
    naive = {f"{mode}@{level}" for mode in ("host", "disk", "mpi") for level in ("0", "0-batched")}
    assert set(sampled) == {f"{arm}-sampled" for arm in naive}
    chunks = {timed.times.arm: timed.chunk_list.chunks for timed in read_chunk_times(folder)}
    for times in sampled.values():
        listed = chunks[times.of]
        assert times.extents == sum(chunk.extents for chunk in listed) <= 1_000
        assert times.every == 1  # as few as these are all timed
        assert len(times.ns) == len(times.step) == times.extents
        assert sum(times.nbytes) == sum(chunk.nbytes for chunk in listed)
        for chunk in listed:
            assert times.step.count(chunk.step) == chunk.extents
        assert min(times.ns) >= 0
        assert max(times.ns) > 0
    recorded_run = read_run(folder)
    assert not {arm.name for arm in recorded_run.header.arms} & set(sampled)
    assert not any(
        "-sampled" in iteration.arm for _, iteration in recorded_run.records_of(Iteration)
    )


def test_the_number_of_sampled_extents_is_limited(clock: MadeUpClock) -> None:
    geometry = small_geometry()
    stream = Stream(id=0, schedule=schedule_of(geometry))
    cache, sampler = random_cache(geometry), ExtentSampler()
    with streaming(HostDestination()) as streamer:
        manager = CacheManager(cache, [stream], LEVELS["0"], streamer, PATIENCE, sampler)
        extents = sum(planned.extent_count for planned in manager.chunks)
        sampler.begin(extents, most_sample_count=5)
        manager.begin()
        play_model(cache, cache, stream.schedule, manager)
        manager.drain()
        assert stored_bytes(streamer.destination, stream) == packed_stream(cache, stream.schedule)
    assert sampler.moved_count == extents
    assert sampler.interval == -(-extents // 5)
    assert len(sampler.samples) == len(range(0, extents, sampler.interval)) == 5


@pytest.mark.mpi
def test_the_sink_notes_its_own_times(folder: Path) -> None:
    recorded = list(read_sink_times(folder))
    sources = {
        (timed.times.arm, timed.times.iteration): timed
        for timed in read_chunk_times(folder)
        if timed.times.arm.startswith("mpi@")
    }
    assert {rank for rank, _ in recorded} == {1}
    assert {(times.arm, times.iteration) for _, times in recorded} == set(sources)
    for _, times in recorded:
        source = sources[times.arm, times.iteration]
        assert (times.peer, times.stream) == (0, source.chunk_list.chunks[0].stream)
        assert times.received is not None
        assert len(times.received) == len(times.scattered) == len(source.chunk_list.chunks)
        scatter_ns = [
            scattered - received
            for received, scattered in zip(times.received, times.scattered, strict=True)
        ]
        # The duration is taken before the acknowledgement leaves, and the time just after it.
        assert source.times.sink_ns is not None
        assert all(
            0 <= reported_ns <= chunk_scatter_ns
            for reported_ns, chunk_scatter_ns in zip(source.times.sink_ns, scatter_ns, strict=True)
        )


@pytest.mark.mpi
def test_parts_are_those_that_the_destination_tells_apart(folder: Path) -> None:
    arm_names = {
        timed.times.arm: [part.name for part in timed.chunk_list.parts("prompt")]
        for timed in read_chunk_times(folder)
    }
    assert arm_names["host@3"] == ["queue", "gather", "post"]
    assert arm_names["disk@3"] == ["queue", "gather", "write", "sync"]
    assert arm_names["mpi@3"] == ["queue", "gather", "post", "wire", "acknowledgement"]
    assert arm_names["mpi@0"] == ["queue", "move", "wire + acknowledgement"]
    assert arm_names["disk@0-batched"] == ["queue", "move"]


@pytest.mark.mpi
def test_a_torn_last_line_is_left_out_and_any_other_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    lines = (folder / "chunks-0000.jsonl").read_bytes().splitlines(keepends=True)
    other_lines = b"".join(line for line in lines if b"extent-times" not in line)
    file = tmp_path / "chunks-0000.jsonl"
    file.write_bytes(other_lines[:-40])
    whole_lines = len(list(read_chunk_times(folder)))
    assert len(list(read_chunk_times(tmp_path))) == whole_lines - 1
    for damaged, message in (
        (
            other_lines.replace(b'"kind":"chunk-list"', b'"kind":"chunk-lost"', 1),
            "chunks-0000.jsonl:1: ",
        ),
        (b"\n".join(other_lines.split(b"\n")[1:]), "no line before has listed"),
        (other_lines.replace(b'"ready":[', b'"ready":[1,', 1), "chunks are listed|times of"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(RecordError, match=message):
            list(read_chunk_times(tmp_path))
    assert list(read_chunk_times(tmp_path / "nowhere")) == []
