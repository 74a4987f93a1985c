"""cuda-ipc: puts, grants and flags over a device made of memory, and real GPUs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination, CudaIPCSinkEndpoint
from dejavubench.dejavulib.destinations.peers import pairs
from dejavubench.dejavulib.destinations.peers.chunk_words import (
    MOST_CHUNKS_AHEAD,
    RING_WORD_COUNT,
    ChunkTarget,
    SideState,
    StreamWords,
)
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVGeometry, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import Chunk, StreamSchedule
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.machine import gpu as machine_gpu
from dejavubench.records import Ceiling, CopyWays, Verification
from dejavubench.transports.cuda_ipc import TRANSPORT
from helpers.caches import INTEGERS, packed_stream, play_model, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    INPUT_LEN,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    schedule_of,
    small_geometry,
)
from helpers.fake_gpu import H200, pretend_cupy
from helpers.fake_puts import FakePuts, connect_ends
from helpers.gpu_marks import needs_gpus
from helpers.half_links import connect_half, receiving_halves
from helpers.jobs import TINY, Job, args, run
from helpers.paths import DRIVERS
from helpers.waits import stays, until

LONG_HEAD = 64
"""Makes rows of 128 bytes, which go from cache to cache; small_geometry's have 32."""


STREAMERS: list[Streamer] = []
"""Streamers of the test that runs."""


@pytest.fixture(autouse=True)
def end_helpers() -> Iterator[None]:
    """End the helper threads that a test leaves, so that none is there for the next one."""
    yield
    while STREAMERS:
        streamer = STREAMERS.pop()
        streamer.destination.give_up()
        streamer.close()


def start_streamer(destination: CudaIPCDestination, slot: int, slots: int) -> Streamer:
    STREAMERS.append(Streamer(destination, staging(slot, slots)))
    return STREAMERS[-1]


class Play:
    """One source and one sink in this process: a model in a thread, and a receiver."""

    def __init__(
        self,
        level: str,
        layout: KVLayout = KVLayout.HND,
        slot: int = WHOLE_LAYERS,
        long_rows: bool = True,
        puts: FakePuts | None = None,
        pid: int | None = None,
        grant_s: float = PATIENCE,
    ) -> None:
        geometry = small_geometry(layout)
        if long_rows:
            geometry = replace(geometry, head_size=LONG_HEAD)
        self.puts = puts or FakePuts()
        self.stream = Stream(5, schedule_of(geometry, slot), peer=0)
        self.cache, self.target = (KVCache.allocate(geometry, INTEGERS[2]) for _ in range(2))
        slots = staging(slot, 2)
        self.pair = connect_ends([(self.target, self.stream)], slots, pid=pid)
        self.destination = CudaIPCDestination(self.puts, {0: self.pair.sink}, grant_s)
        self.endpoint = CudaIPCSinkEndpoint({0: self.pair.source}, torch.device("cpu"))
        self.streamer = start_streamer(self.destination, slot, 3)
        self.manager = CacheManager(
            self.cache, [self.stream], LEVELS[level], self.streamer, PATIENCE
        )
        self.receiver = CacheReceiver(self.target, self.stream, LEVELS[level], self.endpoint, slots)
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, source: KVCache, byte: int = 0x31) -> None:
        """Let the model write ``source`` and stream it; the sink grants nothing yet."""
        self.cache.fill(0x51)
        self.target.fill(byte)
        for slot in self.receiver.slots:
            slot.fill_(0x41)
        self.manager.begin()

        def work() -> None:
            try:
                play_model(source, self.cache, self.stream.schedule, self.manager)
                self.manager.drain()
            except BaseException as error:  # noqa: BLE001 - raised by the test
                self.error = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def receive(self) -> None:
        self.receiver.begin()
        receive_all([self.receiver])
        self.endpoint.finish()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Close both sides, each of which waits for the other."""
        sink = threading.Thread(target=self.endpoint.close, daemon=True)
        sink.start()
        self.streamer.close()
        sink.join(PATIENCE)
        assert not sink.is_alive()


def require_arrival(source: KVCache, target: KVCache, stream: Stream, unused_byte: int) -> None:
    """Hold that all streamed bytes are in place, and the positions behind them as they were."""
    assert packed_stream(target, stream.schedule) == packed_stream(source, stream.schedule)
    positions = Span(INPUT_LEN + STEPS, target.geometry.positions)
    unused = target.geometry.region(positions=positions)
    for kv in BOTH:
        unused_bytes = target.piece(kv, unused).contiguous().view(torch.uint8)
        assert (unused_bytes == unused_byte).all()


@pytest.mark.parametrize("long_rows", [True, False], ids=["long rows", "short rows"])
@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", list(LEVELS))
def test_every_byte_gets_to_its_place(
    level: str, layout: KVLayout, slot: int, long_rows: bool
) -> None:
    """Twice, with other data: chunks are numbered on over microbatches."""
    play = Play(level, layout, slot * (4 if long_rows else 1), long_rows)
    for microbatch in range(2):
        source = random_cache(play.cache.geometry, seed=microbatch)
        play.start(source, 0x31 + microbatch)
        play.receive()
        play.join()
        require_arrival(source, play.target, play.stream, 0x31 + microbatch)
    play.close()
    assert (play.puts.closed, len(play.pair.unmapped)) == (1, 1)


@pytest.mark.parametrize(
    ("layout", "long_rows", "direct"),
    [
        (KVLayout.HND, True, {"prompt", "token"}),
        (KVLayout.NHD, True, {"prompt", "token"}),
        (KVLayout.NHD, False, {"prompt", "token"}),
        (KVLayout.HND, False, {"prompt"}),
        (KVLayout.FT, True, {"prompt"}),
    ],
)
def test_the_way_follows_from_the_rows(layout: KVLayout, long_rows: bool, direct: set[str]) -> None:
    play = Play("3", layout, 4 * WHOLE_LAYERS, long_rows)
    ways = play.destination.ways
    assert {kind for kind, way in ways.items() if way.startswith("strided DMA")} == direct
    assert {kind for kind, way in ways.items() if way.startswith("kernel")} == (
        {"prompt", "token"} - direct
    )
    source = random_cache(play.cache.geometry)
    play.start(source)
    play.receive()
    play.join()
    require_arrival(source, play.target, play.stream, 0x31)
    slots_untouched = all((slot == 0x41).all() for slot in play.receiver.slots)
    assert slots_untouched == (direct == {"prompt", "token"})
    play.close()


@pytest.mark.parametrize("level", ["3", "0", "0-batched"])
def test_nothing_is_put_before_the_sink_has_filled_its_cache(level: str) -> None:
    play = Play(level)
    for microbatch in range(2):
        play.puts.copied.clear()
        source = random_cache(play.cache.geometry, seed=microbatch)
        play.start(source)
        stays(lambda: not play.puts.copied, "the source's silence", 0.1)
        assert play.manager.lag_nbytes > 0
        play.receive()
        play.join()
        require_arrival(source, play.target, play.stream, 0x31)
    play.close()


def wait_for_flags(words: StreamWords, numbers: range) -> None:
    """Wait until all of these chunks are announced in their place."""
    until(
        lambda: all(words.find_target(number) is ChunkTarget.PLACE for number in numbers),
        "flags of chunks that were not granted",
    )


def test_one_grant_opens_the_cache_for_the_whole_microbatch() -> None:
    play = Play("3")
    source = random_cache(play.cache.geometry)
    packed = play.receiver.slots[0]
    for microbatch in range(2):
        play.start(source)
        first = play.endpoint.receive(play.stream, packed, lambda packed: None)
        total = play.stream.schedule.count(LEVELS["3"])
        words = play.pair.words.streams[0]

        wait_for_flags(words, range(microbatch * total, (microbatch + 1) * total))
        for index in range(total):
            receive = (
                first
                if not index
                else play.endpoint.receive(play.stream, packed, lambda packed: None)
            )
            assert receive.poll()
            play.endpoint.acknowledge(play.stream)
        play.join()
        require_arrival(source, play.target, play.stream, 0x31)
    play.close()


def test_a_long_microbatch_goes_round_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants of packed chunks are not taken for those of chunks that needed none, long before."""
    geometry = KVGeometry(
        layers=1, requests=1, heads=1, positions=3 * RING_WORD_COUNT, head_size=64, itemsize=2
    )
    stream = Stream(
        0, StreamSchedule(geometry, geometry.whole, 8, 2 * RING_WORD_COUNT, WHOLE_LAYERS), peer=0
    )
    cache, target = (KVCache.allocate(geometry, INTEGERS[2]) for _ in range(2))
    slots = staging(WHOLE_LAYERS, 3)
    pair = connect_ends([(target, stream)], slots)
    destination = CudaIPCDestination(FakePuts(), {0: pair.sink})
    endpoint = CudaIPCSinkEndpoint({0: pair.source}, torch.device("cpu"))
    find_direct = destination.prepare_direct

    def prepare_some(stream: Stream, chunk: Chunk, cache: KVCache) -> object | None:
        return find_direct(stream, chunk, cache) if chunk.index % 5 else None

    monkeypatch.setattr(destination, "prepare_direct", prepare_some)
    streamer = start_streamer(destination, WHOLE_LAYERS, 2)
    manager = CacheManager(cache, [stream], LEVELS["3"], streamer, PATIENCE)
    receiver = CacheReceiver(target, stream, LEVELS["3"], endpoint, slots)
    for microbatch in range(2):
        source = random_cache(geometry, seed=microbatch)
        target.fill(0x31)
        manager.begin()
        receiver.begin()
        sink = threading.Thread(target=receive_all, args=([receiver],), daemon=True)
        sink.start()
        play_model(source, cache, stream.schedule, manager)
        manager.drain()
        sink.join(PATIENCE)
        assert not sink.is_alive()
        assert packed_stream(target, stream.schedule) == packed_stream(source, stream.schedule)


@pytest.mark.parametrize("long_rows", [True, False], ids=["long rows", "short rows"])
def test_a_flag_that_overtakes_its_copies_is_found_by_comparing(long_rows: bool) -> None:
    """What is read is what flags have announced, so copies that come late are missed."""
    play = Play("3", long_rows=long_rows, puts=FakePuts(delays_copies=True))
    source = random_cache(play.cache.geometry)
    play.start(source)
    play.receive()
    play.join()
    assert packed_stream(play.target, play.stream.schedule) != packed_stream(
        source, play.stream.schedule
    )
    play.puts.let_go()
    if long_rows:  # the bytes were right, and only late
        require_arrival(source, play.target, play.stream, 0x31)
    play.close()


def test_a_sink_that_is_never_ready_ends_a_naive_chunk() -> None:
    play = Play("0", grant_s=0.1)
    play.start(random_cache(play.cache.geometry))
    with pytest.raises(StreamingError, match=r"rank 0 was not ready for chunk 0 \(step 0\)"):
        play.join()
    play.streamer.close()  # it has given up, so it does not wait for the sink
    assert not play.puts.copied
    assert play.pair.words.source_state is SideState.ABORTED


def test_a_source_that_closes_early_ends_the_sinks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CHECK_INTERVAL_S", 0.0)
    play = Play("0")
    play.pair.words.source_state = SideState.DONE  # its model failed between two steps
    with pytest.raises(StreamingError, match="rank 0 has closed before the end of its stream"):
        play.receive()


def test_a_source_that_gives_up_ends_the_sinks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CHECK_INTERVAL_S", 0.0)
    play = Play("3")
    play.start(random_cache(play.cache.geometry))
    play.destination.give_up()
    with pytest.raises(StreamingError, match="rank 0 has given up streaming"):
        play.receive()
    assert play.pair.words.sink_state is SideState.ABORTED
    play.endpoint.close()  # at once: the source unmaps nothing any more
    assert not play.puts.closed


def test_the_end_of_the_other_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(pairs, "WAIT_FOR_PEER_REPORT_S", 0.0)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    play = Play("3", pid=other.pid)
    play.receiver.begin()
    assert not play.receiver.poll()
    other.kill()

    def poll() -> bool:
        return play.receiver.poll()

    # A process that nobody has waited for yet is a zombie, and has ended all the same.
    with pytest.raises(StreamingError, match="the process of rank 0 has ended within a stream"):
        wait_asleep(poll, "the end of the other process", PATIENCE)
    other.communicate()


def test_a_slot_that_is_too_small_is_refused() -> None:
    play = Play("3", long_rows=False)
    for _ in range(4):  # the prompt's layers go straight to their place, the first step's do not
        packed = torch.zeros(8, dtype=torch.uint8)
        play.endpoint.receive(play.stream, packed, lambda packed: None)
    play.start(random_cache(play.cache.geometry))
    with pytest.raises(StreamingError, match="rank 0 has granted a slot of 0 bytes for a chunk"):
        play.join()


def test_a_stream_of_other_chunks_is_refused() -> None:
    play = Play("3")
    schedule = play.stream.schedule
    other = StreamSchedule(
        schedule.geometry, schedule.region, INPUT_LEN, STEPS - 1, schedule.slot_nbytes
    )
    for stream in (Stream(5, other, peer=0), Stream(6, schedule, peer=0)):
        with pytest.raises(StreamingError, match=f"no stream {stream.id} of the same chunks"):
            play.destination.begin(stream)


def test_no_more_chunks_are_granted_than_words_can_tell_apart() -> None:
    play = Play("3")
    packed = play.receiver.slots[0]
    for _ in range(MOST_CHUNKS_AHEAD):
        play.endpoint.receive(play.stream, packed, lambda packed: None)
    with pytest.raises(
        StreamingError, match=f"stream 5 has more than {MOST_CHUNKS_AHEAD} chunks under way"
    ):
        play.endpoint.receive(play.stream, packed, lambda packed: None)


def test_memory_is_unmapped_once_both_sides_are_done() -> None:
    play = Play("3")
    source = threading.Thread(target=play.streamer.close, daemon=True)
    source.start()
    wait_asleep(
        lambda: play.pair.words.source_state is SideState.DONE, "the source's end", PATIENCE
    )
    stays(lambda: not play.pair.unmapped, "the source's mapping", 0.1)
    play.endpoint.close()
    assert len(play.pair.unmapped) == 1
    source.join(PATIENCE)
    assert not source.is_alive()


@pytest.mark.parametrize("long_rows", [True, False], ids=["long rows", "short rows"])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", list(LEVELS))
def test_two_sources_fill_the_cache_of_one_sink(
    level: str, layout: KVLayout, long_rows: bool
) -> None:
    """Each of them has half of the heads, so that caches of other sizes exchange regions."""
    half = small_geometry(layout)
    if long_rows:
        half = replace(half, head_size=LONG_HEAD)
    target = KVCache.allocate(replace(half, heads=2 * half.heads), INTEGERS[2])
    target.fill(0x31)
    links = [connect_half(rank, half, target, LEVELS[level], start_streamer) for rank in range(2)]
    sources = [random_cache(half, seed=rank) for rank in range(2)]
    with receiving_halves(links, target, LEVELS[level]):
        for source, link in zip(sources, links, strict=True):
            play_model(source, link.cache, link.stream.schedule, link.manager)
            link.manager.drain()
    written = Span(0, INPUT_LEN + STEPS)
    for source, link in zip(sources, links, strict=True):
        arrived_region = target.geometry.region(heads=link.heads, positions=written)
        for kv in BOTH:
            arrived = target.piece(kv, arrived_region)
            assert torch.equal(arrived, source.piece(kv, half.region(positions=written)))


# ---- where it can run ----


class Options:
    """The options that the transport reads."""

    streaming = ("cuda-ipc",)
    sources = 1

    def __init__(self, device: str = "cuda", nccl_loopback: bool = False) -> None:
        self.device = device
        self._values = {"nccl_loopback": nccl_loopback}

    def value(self, option: str) -> bool:
        return self._values[option]


@pytest.mark.parametrize(
    ("options", "peers", "has_cupy", "reason"),
    [
        (Options("cpu"), {(0, 1)}, True, "no CUDA device"),
        (Options(), {(0, 1)}, False, "cupy is not installed: pip install 'dejavubench[cuda]'"),
        (Options(), set(), True, "no GPU of this host can access the memory of another"),
        (Options(), {(0, 1)}, True, None),
        (Options(nccl_loopback=True), set(), True, None),
    ],
    ids=["no device", "no cupy", "no peers", "peers", "one GPU"],
)
def test_a_host_that_lacks_something_is_told_what(
    options: Options,
    peers: set[tuple[int, int]],
    has_cupy: bool,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_gpu, "list_cuda_devices", lambda: (H200, H200))
    monkeypatch.setattr(machine_gpu, "find_peer_pairs", lambda: frozenset(peers))
    if has_cupy:
        pretend_cupy(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "cupy", None)
    missing = TRANSPORT.missing(options)
    if reason is None:
        assert missing is None
    else:
        assert missing is not None
        assert missing.reason.startswith(reason)
        assert missing.alone.startswith("--streaming cuda-ipc")


# ---- on GPUs ----


EVERY_STREAM = f"{len(KVLayout) * 2 * len(LEVELS)} streams, all well\n"
"""Output of mpi/ipc_stream.py and ipc_halves.py: one per layout, size of the slots (2), level."""

two_gpus = needs_gpus(2)
one_gpu = needs_gpus(1)


def output_on_gpus(folder: Path, *words: object, ranks: int = 2, script: str = "stream") -> str:
    """Return the output of the ranks of a script."""
    driver = ("-m", "mpi4py", str(DRIVERS / f"ipc_{script}.py"))
    return run(folder, ranks, *words, driver=driver).stdout


@two_gpus
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("source", [0, 1])
def test_every_byte_arrives_in_the_other_gpus_memory(source: int, tmp_path: Path) -> None:
    assert output_on_gpus(tmp_path, source) == EVERY_STREAM


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
def test_two_ranks_stream_on_one_gpu(tmp_path: Path) -> None:
    assert output_on_gpus(tmp_path, 0, "--one-gpu") == EVERY_STREAM


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("cut", ["requests", "heads"])
@pytest.mark.parametrize("direction", ["to-halves", "to-whole"])
def test_one_rank_streams_to_two_and_two_to_one(direction: str, cut: str, tmp_path: Path) -> None:
    assert output_on_gpus(tmp_path, direction, cut, ranks=3, script="halves") == EVERY_STREAM


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
def test_a_flag_that_overtakes_its_copies_is_found_on_a_gpu(tmp_path: Path) -> None:
    assert "differs, first at" in output_on_gpus(tmp_path, 0, "--one-gpu", "--overtake")


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("level", ["3", "0", "0-batched"])
@pytest.mark.parametrize("lost", ["source", "sink"])
def test_the_other_side_ends_soon_after_a_loss(lost: str, level: str, tmp_path: Path) -> None:
    """Without the launcher's help: by the other's word, or by its own deadline."""
    with Job(tmp_path, 2, lost, level, driver=(str(DRIVERS / "ipc_killed.py"),)) as job:
        survivor = "sink" if lost == "source" else "source"
        job.until(lambda: f"{survivor}: StreamingError" in job.stdout, "the survivor's end")
        report = job.stdout.split(f"{survivor}: StreamingError")[1]
        assert float(report.split("ended after ")[1].split()[0]) < 10.0, job.stdout


ON_ONE_GPU = args(
    "--device cuda --inference-data-type fp16 --size-per-head 32 --nccl-loopback --threads 1"
)


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("layout", list(KVLayout))
def test_a_run_on_one_gpu_is_labelled_and_says_how_chunks_went(
    layout: KVLayout, tmp_path: Path
) -> None:
    modes = ("--streaming", "none,cuda-ipc", "--level", "0,0-batched,1,2,3")
    sizes = ("--ubatch-size", 2, "--input-len", 32, "--output-len", 4, "--kv-layout", layout.value)
    rounds = ("--rounds", 1, "--warmup", 0)
    job = run(tmp_path, 2, "run", *TINY, *ON_ONE_GPU, *modes, *sizes, *rounds)
    arm_names = {arm.name for arm in job.run.header.arms}
    assert {"cuda-ipc-loopback@0", "cuda-ipc-loopback@3"} <= arm_names
    checked = [record for _, record in job.run.records_of(Verification)]
    assert len(checked) == 7
    assert all(record.ok for record in checked)
    names = {record.name for _, record in job.run.records_of(Ceiling)}
    assert {"cuda-ipc-raw", "cuda-ipc-destination"} <= names
    ((_, copy_ways),) = job.run.records_of(CopyWays)
    direct = {kind for kind, way in copy_ways.ways.items() if way.startswith("strided DMA")}
    assert direct == {"cuda-ipc prompt"} | (set() if layout is KVLayout.FT else {"cuda-ipc token"})
