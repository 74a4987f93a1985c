"""Microbatches that take turns in fewer caches: nothing of theirs is lost or mixed up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dejavubench.analysis.tables.chunks_part import make_chunk_rows
from dejavubench.analysis.tables.report_part import RunData
from dejavubench.dejavulib.destinations.base import Destination, Stream, StreamingError
from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.disk.block_file import Durability
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.device import DeviceStaging
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.packing import device_staging, scatter_steps, staging
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.swapping.swapper import Swapper
from dejavubench.records import Microbatch, Swapping, read_chunk_times
from helpers.caches import packed_bytes, random_cache, schedules
from helpers.cli_calls import usage_error_of
from helpers.disk_files import DURABILITIES, IDENTITY
from helpers.gpu_marks import needs_gpus
from helpers.jobs import TINY, TYPES, Job, args, process_folder, run
from helpers.paths import DRIVERS
from helpers.verifications import count_verified

# ---- several steps at once ----


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_steps_go_back_to_where_they_were(data: st.DataObject) -> None:
    """However far apart steps lie, and whether layers are cut; nothing beside them changes."""
    schedule: StreamSchedule = data.draw(schedules(longest_interval=1))
    assume(schedule.steps)
    first_step = data.draw(st.integers(1, schedule.steps))
    steps = range(first_step, data.draw(st.integers(first_step, schedule.steps)) + 1)
    geometry = schedule.geometry
    source = random_cache(geometry, 1)
    cache = random_cache(geometry, 2)
    expected = random_cache(geometry, 2)
    positions = Span(schedule.positions(steps[0]).start, schedule.positions(steps[-1]).stop)
    put = replace(schedule.region, positions=positions)
    for kv in BOTH:
        expected.piece(kv, put).copy_(source.piece(kv, put))
    gap = geometry.itemsize * data.draw(st.integers(0, 3))
    records = [packed_bytes(source, schedule.atoms(step)) + bytes(gap) for step in steps]
    packed = torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8)
    scatter_steps(packed, len(records[0]), cache, schedule, steps)
    assert all(torch.equal(cache.tensor(kv), expected.tensor(kv)) for kv in BOTH)


# ---- turns ----

INPUT_LEN, STEPS = 5, 6


def schedule_of(layout: KVLayout, slot: int = 1 << 16) -> StreamSchedule:
    geometry = KVGeometry(
        layers=3, requests=2, heads=2, positions=13, head_size=16, itemsize=2, layout=layout
    )
    region = geometry.whole
    return StreamSchedule(geometry, region, INPUT_LEN, STEPS, slot)


@contextmanager
def swapping(
    destination: Destination,
    schedule: StreamSchedule,
    microbatches: int,
    resident: int,
    timeout: float = 30.0,
    device: str = "cpu",
) -> Iterator[Swapper]:
    on_device = device != "cpu"
    nbytes = schedule.slot_nbytes
    streamer = Streamer(
        destination,
        staging(nbytes, 2, pinned=on_device) if destination.entry.staged else (),
        DeviceStaging(device_staging(nbytes, 2, torch.device(device))) if on_device else None,
    )
    caches = [KVCache.allocate(schedule.geometry, torch.int16, device) for _ in range(resident)]
    streams = [Stream(microbatch, schedule) for microbatch in range(microbatches)]
    with closing(streamer), closing(Swapper(caches, streams, streamer, timeout)) as swapper:
        yield swapper


def play_turns(swapper: Swapper, sources: list[KVCache], schedule: StreamSchedule) -> None:
    """Act as the model: earlier steps must be in place; positions behind are overwritten."""
    # On a device nothing is waited for meanwhile, as the model waits for nothing.
    checks: dict[tuple[int, int, str], torch.Tensor] = {}
    for step in range(STEPS + 1):
        for microbatch, (swapped, source) in enumerate(
            zip(swapper.microbatches, sources, strict=True)
        ):
            swapped.step_begins(step)
            cache, step_positions = swapper.current[microbatch], schedule.positions(step)
            earlier_region = schedule.geometry.region(positions=Span(0, step_positions.start))
            for kv in BOTH:
                same_elements = cache.piece(kv, earlier_region) == source.piece(kv, earlier_region)
                checks[step, microbatch, f"{kv} before"] = same_elements.all()
                later_region = schedule.geometry.region(
                    positions=Span(step_positions.stop, schedule.geometry.positions)
                )
                cache.piece(kv, later_region).fill_(-1 - microbatch)
            for layer in range(schedule.geometry.layers):
                new_positions = schedule.geometry.region(
                    layers=Span(layer, layer + 1), positions=step_positions
                )
                for kv in BOTH:
                    cache.piece(kv, new_positions).copy_(source.piece(kv, new_positions))
                if step == 0:
                    swapped.layer_ready(layer)
            # The last layer still reads the cache when all of it may have been streamed out.
            compute_slowly(cache)
            past = schedule.geometry.region(positions=Span(0, step_positions.stop))
            for kv in BOTH:
                same_elements = cache.piece(kv, past) == source.piece(kv, past)
                checks[step, microbatch, f"{kv} at the end"] = same_elements.all()
            swapped.step_ready(step)
    assert not [place for place, are_equal in checks.items() if not are_equal]


def compute_slowly(cache: KVCache) -> None:
    """Keep a device busy for some milliseconds; a CPU has computed when it goes on."""
    if cache.k.is_cuda:
        torch.cuda._sleep(3_000_000)


WHOLE, CUT = 1 << 16, 130
on_a_device = needs_gpus(1)
TURNS = [(2, 1), (3, 1), (3, 2), (5, 2), (5, 4)]


@pytest.mark.parametrize(
    ("store", "microbatches", "resident", "slot", "layout"),
    [
        *(
            (store, *turns, WHOLE, KVLayout.HND)
            for store in ("host", *DURABILITIES)
            for turns in TURNS
        ),
        *(
            (store, 3, 2, slot, layout)
            for store in ("host", "page-cache")
            for slot in (WHOLE, CUT)
            for layout in KVLayout
        ),
    ],
)
def test_every_microbatch_finds_what_it_left(
    store: str, microbatches: int, resident: int, slot: int, layout: KVLayout, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    sources = [random_cache(schedule.geometry, microbatch) for microbatch in range(microbatches)]
    destination = make_destination(store, tmp_path)
    with swapping(destination, schedule, microbatches, resident) as swapper:
        for iteration in range(2):
            play_iteration(swapper, sources, schedule, destination, old_byte=0x30 + iteration)
            require_brought_back(swapper, sources)


@pytest.mark.parametrize(("microbatches", "resident"), TURNS)
def test_every_byte_leaves_once_and_comes_back_for_each_later_turn(
    microbatches: int, resident: int
) -> None:
    schedule = schedule_of(KVLayout.HND)
    sources = [random_cache(schedule.geometry, microbatch) for microbatch in range(microbatches)]
    destination = HostDestination()
    with swapping(destination, schedule, microbatches, resident) as swapper:
        play_iteration(swapper, sources, schedule, destination)
        for swapped in swapper.microbatches:
            assert swapped.prompt.nbytes == schedule.step_nbytes(0)
            assert swapped.tokens.nbytes == STEPS * schedule.step_nbytes(1)
        # Before each step all that the steps before it have written comes back.
        assert swapper.cost.nbytes == microbatches * sum(
            schedule.step_offset(step) for step in range(1, STEPS + 1)
        )


@pytest.mark.parametrize(("microbatches", "resident"), TURNS)
def test_each_chunk_leaves_from_the_cache_of_its_own_turn(microbatches: int, resident: int) -> None:
    schedule = schedule_of(KVLayout.HND)
    sources = [random_cache(schedule.geometry, microbatch) for microbatch in range(microbatches)]
    destination = HostDestination()
    with swapping(destination, schedule, microbatches, resident) as swapper:
        play_iteration(swapper, sources, schedule, destination)
        for microbatch in range(microbatches):
            first_manager, *other_managers = swapper.managers(microbatch)
            assert first_manager.times is not None
            assert first_manager.times.finished_count == len(first_manager.chunks)
            assert all(manager.times is first_manager.times for manager in other_managers)


def play_iteration(
    swapper: Swapper,
    sources: list[KVCache],
    schedule: StreamSchedule,
    destination: Destination,
    old_byte: int = 0x30,
) -> None:
    """Act as the model in one iteration; caches and destination hold other bytes before it."""
    for cache in swapper.current:
        cache.fill(old_byte)
    for swapped in swapper.microbatches:
        swapped.begin()
    for microbatch in range(len(sources)):
        for buffer in destination.buffers(Stream(microbatch, schedule)):
            buffer.fill_(old_byte + 0x10)
    if swapper.current[0].k.is_cuda:
        torch.cuda.synchronize()
    play_turns(swapper, sources, schedule)
    for swapped in swapper.microbatches:
        swapped.drain()


def require_brought_back(swapper: Swapper, sources: list[KVCache]) -> None:
    """Hold that what comes back of each microbatch is what it has written."""
    for microbatch, source in enumerate(sources):
        written = source.geometry.region(positions=Span(0, INPUT_LEN + STEPS))
        back = swapper.bring_back(microbatch)
        for kv in BOTH:
            is_same = torch.equal(back.piece(kv, written), source.piece(kv, written))
            assert is_same, f"{kv} of microbatch {microbatch}"


@pytest.mark.gpu
@on_a_device
@pytest.mark.parametrize("slot", [WHOLE, CUT])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize(("microbatches", "resident"), [(2, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("store", ["host", "page-cache"])
def test_every_microbatch_finds_what_it_left_on_a_device(
    store: str, microbatches: int, resident: int, layout: KVLayout, slot: int, tmp_path: Path
) -> None:
    schedule = schedule_of(layout, slot)
    sources = [copy_to_device(random_cache(schedule.geometry, n)) for n in range(microbatches)]
    destination = make_destination(store, tmp_path, pinned=True)
    with swapping(destination, schedule, microbatches, resident, device="cuda") as swapper:
        for iteration in range(2):
            play_iteration(swapper, sources, schedule, destination, old_byte=0x30 + iteration)
            require_brought_back(swapper, sources)


@pytest.mark.gpu
@on_a_device
@pytest.mark.parametrize("store", ["host", "page-cache"])
def test_the_waits_for_caches_are_timed_on_a_device(store: str, tmp_path: Path) -> None:
    schedule = schedule_of(KVLayout.HND)
    sources = [copy_to_device(random_cache(schedule.geometry, n)) for n in range(3)]
    destination = make_destination(store, tmp_path, pinned=True)
    with swapping(destination, schedule, 3, resident=2, device="cuda") as swapper:
        play_iteration(swapper, sources, schedule, destination)
        for swapped in swapper.microbatches:
            assert all(began <= ended for began, ended in swapped.tokens.stalls)
        # The model came to a cache before it was back: each turn's copy waits for the one before,
        # which computes for milliseconds.
        assert swapper.cost.bring_s > 0
        assert swapper.cost.wait_s > 0


def copy_to_device(cache: KVCache) -> KVCache:
    return KVCache(cache.geometry, cache.k.cuda(), cache.v.cuda())


def make_destination(store: str, tmp_path: Path, pinned: bool = False) -> Destination:
    if store == "host":
        return HostDestination(pinned)
    durability: Durability = store  # type: ignore[assignment]
    return DiskDestination(tmp_path, "test", durability, False, IDENTITY)


def test_a_swapper_with_room_for_all_microbatches_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="2 microbatches find room in 2 caches"),
        swapping(HostDestination(), schedule_of(KVLayout.HND), microbatches=2, resident=2),
    ):
        pass


def test_a_fetch_that_fails_ends_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_steps(self: HostDestination, stream: Stream, steps: range) -> None:
        raise OSError("the store is gone")

    monkeypatch.setattr(HostDestination, "fetch_steps", fetch_steps)
    schedule = schedule_of(KVLayout.HND)
    with swapping(HostDestination(), schedule, microbatches=2, resident=1) as swapper:
        for swapped in swapper.microbatches:
            swapped.begin()
        with pytest.raises(
            StreamingError, match="OSError: the store is gone; bringing back turn 2"
        ):
            play_turns(
                swapper,
                [random_cache(schedule.geometry, microbatch) for microbatch in range(2)],
                schedule,
            )


def test_a_failed_fetch_is_reported_even_if_the_next_one_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is late: its cache is missing, while the next turn's would be in place."""
    fetch_steps = HostDestination.fetch_steps
    failures = [OSError("the store is gone")]
    last_came = threading.Event()

    def once(self: HostDestination, stream: Stream, steps: range) -> tuple[torch.Tensor, int]:
        if failures:
            last_came.wait(10.0)  # else this error is raised there already
            raise failures.pop()
        return fetch_steps(self, stream, steps)

    monkeypatch.setattr(HostDestination, "fetch_steps", once)
    schedule = schedule_of(KVLayout.HND)
    with swapping(HostDestination(), schedule, microbatches=3, resident=2) as swapper:
        for swapped in swapper.microbatches:
            swapped.begin()
        # Turns 0 to 2 run. Turns 2, 3 and 4 take their places; bringing 3 back fails.
        for swapped in swapper.microbatches:
            swapped.step_begins(0)
            if swapped is swapper.microbatches[-1]:
                last_came.set()
            for layer in range(schedule.geometry.layers):
                swapped.layer_ready(layer)
            swapped.step_ready(0)
        (fetcher,) = (thread for thread in threading.enumerate() if thread.name == "fetcher")
        fetcher.join(10.0)
        assert not fetcher.is_alive(), "it fetches no later turn after one that failed"
        with pytest.raises(
            StreamingError, match="OSError: the store is gone; bringing back turn 3"
        ):
            swapper.microbatches[0].step_begins(1)


def test_a_report_outside_a_turn_is_refused() -> None:
    schedule = schedule_of(KVLayout.HND)
    with swapping(HostDestination(), schedule, microbatches=2, resident=1) as swapper:
        for swapped in swapper.microbatches:
            swapped.begin()
        swapped, _ = swapper.microbatches
        with pytest.raises(StreamingError, match="microbatch 0 has no cache: step_begins comes"):
            swapped.layer_ready(0)
        swapped.step_begins(0)
        for layer in range(schedule.geometry.layers):
            swapped.layer_ready(layer)
        swapped.step_ready(0)
        with pytest.raises(StreamingError, match="microbatch 0 has no cache: step_begins comes"):
            swapped.step_ready(1)


def test_an_eviction_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDestination, "poll_completed", lambda self, stream: 0)
    schedule = schedule_of(KVLayout.HND)
    with swapping(HostDestination(), schedule, microbatches=2, resident=1, timeout=0.5) as swapper:
        for swapped in swapper.microbatches:
            swapped.begin()
        with pytest.raises(
            StreamingError,
            match=r"eviction of microbatch 0: nothing came within 0\.5 s|was not back",
        ):
            play_turns(
                swapper,
                [random_cache(schedule.geometry, microbatch) for microbatch in range(2)],
                schedule,
            )


# ---- whole jobs ----

REQUEST = (*TINY, *args("--ubatch-size 2 --input-len 8 --output-len 6 --rounds 2 --warmup 1"))


@dataclass(frozen=True)
class SwappedRun:
    """A job that swapped to host and disk, and its sizes."""

    job: Job
    depth: int
    resident: int
    itemsize: int


@pytest.fixture(
    scope="module",
    params=[(2, 1, "hnd", "fp32"), (2, 1, "ft", "bf16"), (3, 2, "nhd", "fp32")],
    ids=["fp32 hnd", "bf16 ft", "two of three resident"],
)
def swapped_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SwappedRun:
    depth, resident, layout, data_type = request.param
    sizes = ("--layer-num", depth, "--pipeline-para-size", depth, "--kv-layout", layout)
    swap = ("--no-ceilings", "--swap", "host,disk", "--resident", resident)
    cwd = tmp_path_factory.mktemp("swapped")
    job = run(cwd, depth, "run", *REQUEST, *sizes, *TYPES[data_type], *swap)
    return SwappedRun(job, depth, resident, itemsize=2 if data_type == "bf16" else 4)


@pytest.mark.mpi
def test_each_swap_brings_back_the_bytes_of_all_earlier_positions(swapped_run: SwappedRun) -> None:
    records = swapped_run.job.run.records_of(Swapping)
    costs = [record for _, record in records if record.round is not None]
    assert {record.arm for record in costs} == {"swap-host", "swap-disk"}
    assert len(costs) == swapped_run.depth * 2 * 2  # sources, arms, rounds
    # K and V of one layer, 2 requests, 4 heads of 16: steps 1 … 5 bring back 8, 9 … 12 positions.
    position_nbytes = 2 * 2 * 4 * 16 * swapped_run.itemsize
    brought_back = swapped_run.depth * position_nbytes * sum(range(8, 13))
    assert {record.nbytes for record in costs} == {brought_back}


@pytest.mark.mpi
def test_a_swapped_run_is_verified_and_leaves_no_stream_file(swapped_run: SwappedRun) -> None:
    table = process_folder(swapped_run.job.folder)
    assert f"{swapped_run.resident} of {swapped_run.depth}" in table
    of_swaps = [line.split() for line in table.splitlines() if line.strip().startswith("swap-")]
    verified = [words[0] for words in of_swaps if words[-2:] == ["yes", "(3)"]]
    assert verified == ["swap-host", "swap-disk"]
    assert not list(swapped_run.job.folder.glob("*.kv"))


@pytest.mark.gpu
@pytest.mark.mpi
@on_a_device
@pytest.mark.parametrize(
    ("depth", "resident", "layout"), [(2, 1, "hnd"), (3, 2, "ft"), (3, 1, "nhd")]
)
def test_a_swapped_run_on_a_gpu_generates_the_same(
    depth: int, resident: int, layout: str, tmp_path: Path
) -> None:
    flags = args("--device cuda --inference-data-type fp16 --size-per-head 32 --nccl-loopback")
    job = run(
        tmp_path,
        depth,
        "run",
        *(*REQUEST, *flags, "--no-ceilings", "--swap", "host,disk", "--kv-layout", layout),
        *("--layer-num", depth, "--pipeline-para-size", depth, "--resident", resident),
    )
    # Warm-up and two rounds of each arm: bytes of every microbatch, and tokens.
    arms = ("none", "none#2", "swap-host", "swap-disk")
    assert count_verified(job) == {("p000", arm): 3 for arm in arms}
    costs = [record for _, record in job.run.records_of(Swapping) if record.round is not None]
    assert len(costs) == depth * 2 * 2  # sources, arms, rounds
    # K and V of one layer, 2 requests, 4 heads of 32: steps 1 … 5 bring back 8, 9 … 12 positions.
    assert {record.nbytes for record in costs} == {depth * 2 * 2 * 4 * 32 * 2 * sum(range(8, 13))}
    assert all(record.bring_ms > 0 and record.wait_ms > 0 for record in costs)


@pytest.mark.mpi
def test_every_swapped_chunk_is_timed_once_and_is_in_the_table(swapped_run: SwappedRun) -> None:
    job = swapped_run.job
    phases = {
        (rank, microbatch.arm, microbatch.iteration, microbatch.ubatch): (
            microbatch.prompt,
            microbatch.tokens,
        )
        for rank, microbatch in job.run.records_of(Microbatch)
        if microbatch.arm.startswith("swap-")
    }
    timed = {
        (rank, times.arm, times.iteration, times.ubatch): (listed, times)
        for rank, listed, times in read_chunk_times(job.folder)
    }
    assert set(timed) == set(phases)
    for key, (listed, times) in timed.items():
        for name, counted in zip(("prompt", "tokens"), phases[key], strict=True):
            nbytes = [chunk.nbytes for chunk in listed.chunks if chunk.phase == name]
            assert (sum(nbytes), len(nbytes)) == (counted.nbytes, counted.copies)
        for stamps in times.stamps():
            ordered = [
                stamps[name] for name in ("ready", "begun", "gathered", "posted", "complete")
            ]
            assert ordered == sorted(ordered, key=lambda stamp: stamp or 0)
            assert stamps["ready"] != stamps["complete"]
    rows = make_chunk_rows(RunData(job.run))
    assert {row.arm_phase.arm for row in rows} == {"swap-host", "swap-disk"}
    assert {row.part for row in rows if row.arm_phase.arm == "swap-disk"} == {
        *("latency", "queue", "gather", "write", "sync")
    }


@pytest.mark.mpi
def test_a_wrong_byte_that_is_brought_back_is_located(tmp_path: Path) -> None:
    flags = (*REQUEST, *args("--pipeline-para-size 2 --no-ceilings --swap host --resident 1"))
    with Job(
        tmp_path, 2, "corrupt-brought-back", "run", *flags, driver=(DRIVERS / "faulty.py",)
    ) as job:
        assert job.wait() == 1
    assert (
        "verification failed: p000 swap-host, iteration 2: rank 1: microbatch 1, layer 1, V is not"
        in job.stderr
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--swap", "host"),
            "--resident 2 holds all microbatches in flight, so nothing is swapped",
        ),
        (("--swap", "mpi"), "--swap: must be 'host' or 'disk'"),
        (("--resident", "3"), "--resident 3 needs --swap"),
        (
            args("--swap host --pipeline-para-size 3 --handoff --streaming mpi"),
            "--swap cannot be combined with --handoff: it measures whole requests",
        ),
        (("--streaming", "swap-host"), "there is no destination 'swap-host'"),
    ],
)
def test_options_that_swapping_does_not_support_are_refused(
    flags: tuple[str, ...], message: str
) -> None:
    assert message in usage_error_of("run", *REQUEST, *flags)
