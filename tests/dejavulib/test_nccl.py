"""NCCL: ranks that share a GPU, the protocol over a link made of memory, and real GPUs."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.nccl import NCCLSinkEndpoint
from dejavubench.dejavulib.destinations.nccl import sink as nccl_sink
from dejavubench.dejavulib.destinations.nccl import source as nccl_source
from dejavubench.dejavulib.extents import ExtentAddresses, cut_extent_views
from dejavubench.dejavulib.kv_cache import BOTH, KVCache, KVLayout, Span
from dejavubench.dejavulib.levels import LEVELS, Level
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.streamer import Streamer
from dejavubench.dejavulib.waiting import wait_asleep
from dejavubench.parallel.mps import is_mps_running
from dejavubench.parallel.nccl import NCCLError, call_within
from dejavubench.parallel.shared_gpus import (
    PhysicalGpu,
    SharedGpuError,
    find_shared_gpus,
    prepare_gpus,
)
from dejavubench.records.environment import NcclLoopback
from helpers.caches import INTEGERS, packed_stream, random_cache
from helpers.fake_destination import (
    CUT_LAYERS,
    INPUT_LEN,
    PATIENCE,
    STEPS,
    WHOLE_LAYERS,
    schedule_of,
    small_geometry,
)
from helpers.gpu_marks import needs_gpus
from helpers.jobs import Job, run
from helpers.memory_link import MemoryLink, linked_ends
from helpers.paths import DRIVERS
from helpers.waits import stays

# ---- ranks that share a GPU ----


class Ranks:
    """A communicator whose ``allgather`` returns the answers of the ranks of a made-up job."""

    def __init__(self, rank: int, *answers: list[Any]) -> None:
        self.rank = rank
        self._answers = iter(answers)

    def allgather(self, mine: Any) -> list[Any]:
        everyone = next(self._answers)
        assert everyone[self.rank] == mine
        return everyone


FIRST_GPU = PhysicalGpu("one", "GPU-a")
SECOND_GPU = PhysicalGpu("one", "GPU-b")
ELSEWHERE = PhysicalGpu("two", "GPU-a")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide NCCL's variables, and take back those that a test sets."""
    monkeypatch.setattr(
        os,
        "environ",
        {key: value for key, value in os.environ.items() if not key.startswith("NCCL_")},
    )


def prepare_rank(
    gpus: list[PhysicalGpu], rank: int, loopback: bool, versions: list[int] | None = None
) -> Any:
    comm = Ranks(rank, gpus, versions or [])
    return prepare_gpus(
        cast(MPI.Intracomm, comm), gpus[rank], loopback, lambda: (versions or [])[rank]
    )


def test_a_gpu_is_identified_by_host_and_uuid() -> None:
    assert find_shared_gpus([FIRST_GPU, SECOND_GPU, ELSEWHERE]) == []
    gpus_of_ranks = [FIRST_GPU, SECOND_GPU, FIRST_GPU, ELSEWHERE, SECOND_GPU, FIRST_GPU]
    assert find_shared_gpus(gpus_of_ranks) == [[0, 2, 5], [1, 4]]


@pytest.mark.usefixtures("environment")
def test_ranks_with_their_own_gpus_need_nothing() -> None:
    for loopback in (False, True):
        assert prepare_rank([FIRST_GPU, SECOND_GPU], rank=0, loopback=loopback) is None
    assert not [name for name in os.environ if name.startswith("NCCL_")]


@pytest.mark.parametrize("rank", range(4))
def test_sharing_a_gpu_is_refused_on_every_rank(rank: int) -> None:
    with pytest.raises(
        SharedGpuError,
        match=r"^ranks 0, 2 and 3 share one GPU \(GPU-a\): NCCL needs a GPU for each rank, "
        "or --nccl-loopback",
    ):
        prepare_rank([FIRST_GPU, SECOND_GPU, FIRST_GPU, FIRST_GPU], rank, loopback=False)


@pytest.mark.usefixtures("environment")
def test_an_older_nccl_loops_back_by_fake_hosts() -> None:
    os.environ["NCCL_BUFFSIZE"] = "1"  # the user's own
    # The older of the two versions decides.
    loopback_facts = prepare_rank(
        [FIRST_GPU, FIRST_GPU], rank=1, loopback=True, versions=[23203, 22809]
    )
    assert (loopback_facts.loopback_kind, loopback_facts.version, loopback_facts.rank_groups) == (
        "fake hosts",
        22809,
        [[0, 1]],
    )
    assert os.environ["NCCL_HOSTID"] == "fakehost1"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_MAX_P2P_NCHANNELS"] == "1"
    assert os.environ["NCCL_BUFFSIZE"] == "1"
    assert loopback_facts.variables.items() <= os.environ.items()
    assert "NCCL_BUFFSIZE" not in loopback_facts.variables
    assert "NCCL_MULTI_RANK_GPU_ENABLE" not in os.environ


@pytest.mark.usefixtures("environment")
def test_loopback_over_hosts_keeps_their_network() -> None:
    assert (
        "NCCL_SOCKET_IFNAME"
        not in prepare_rank(
            [FIRST_GPU, FIRST_GPU, ELSEWHERE], rank=0, loopback=True, versions=[22809] * 3
        ).variables
    )


@pytest.mark.usefixtures("environment")
def test_a_newer_nccl_loops_back_by_its_own_option() -> None:
    loopback_facts = prepare_rank(
        [FIRST_GPU, FIRST_GPU], rank=0, loopback=True, versions=[23000, 23000]
    )
    assert loopback_facts.loopback_kind == "multi-rank"
    record = NcclLoopback.model_validate(loopback_facts.to_record())
    assert (record.way, record.ranks) == ("multi-rank", [[0, 1]])
    assert os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"
    assert "NCCL_HOSTID" not in os.environ


@pytest.mark.parametrize(
    ("answer", "running"),
    [("cat >/dev/null; echo 4711", True), ("exit 1", False), ("exec sleep 30", False)],
)
def test_mps_runs_if_its_control_program_answers(
    answer: str, running: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not is_mps_running()
    (tmp_path / "control").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert not is_mps_running()
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert is_mps_running(timeout_s=2.0) is running


def test_a_call_of_nccl_that_takes_too_long_is_abandoned() -> None:
    forever = threading.Event()
    with pytest.raises(NCCLError, match=r"a communicator: not all ranks came within 0\.05 s"):
        call_within(0.05, forever.wait, "a communicator")
    forever.set()
    with pytest.raises(NCCLError, match="a communicator: refused"):
        call_within(
            PATIENCE, lambda: (_ for _ in ()).throw(RuntimeError("refused")), "a communicator"
        )
    assert call_within(PATIENCE, lambda: 7, "a number") == 7


# ---- the destination, over a link made of memory ----


class Model(threading.Thread):
    """Writes several microbatches in turn, step by step, and tells their managers."""

    def __init__(self, sources: list[KVCache], managers: list[CacheManager]) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._sources, self._managers = sources, managers

    def run(self) -> None:
        try:
            self._play()
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self.error = error

    def _play(self) -> None:
        for step in range(STEPS + 1):
            start, stop = (0, INPUT_LEN) if step == 0 else (INPUT_LEN + step - 1, INPUT_LEN + step)
            for source, manager in zip(self._sources, self._managers, strict=True):
                for layer in range(source.geometry.layers):
                    k = source.keys(layer, stop)[:, :, start:]
                    v = source.values(layer, stop)[:, :, start:]
                    manager.cache.store(layer, start, k, v)
                    if step == 0:
                        manager.layer_ready(layer)
                manager.step_ready(step)
        for manager in self._managers:
            manager.drain()


def join_model(model: Model) -> None:
    model.join(PATIENCE)
    assert not model.is_alive()
    if model.error is not None:
        raise model.error


FEW_EXTENTS = 16


@pytest.fixture
def few_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an NCCL group have few extents, so that a chunk has several."""
    monkeypatch.setattr(nccl_source, "MOST_EXTENTS_PER_GROUP", FEW_EXTENTS)
    monkeypatch.setattr(nccl_sink, "MOST_EXTENTS_PER_GROUP", FEW_EXTENTS)


class InterleavedStreams:
    """The streams of two microbatches over one link, which only the announcements tell apart."""

    def __init__(
        self, streamer: Streamer, endpoint: NCCLSinkEndpoint, level: Level, streams: list[Stream]
    ) -> None:
        self.streams = streams
        self.geometry = streams[0].schedule.geometry
        self.targets = [KVCache.allocate(self.geometry, INTEGERS[2]) for _ in streams]
        self.managers = [
            CacheManager(
                KVCache.allocate(self.geometry, INTEGERS[2]), [stream], level, streamer, PATIENCE
            )
            for stream in streams
        ]
        self._endpoint = endpoint
        self._receivers = [
            CacheReceiver(target, stream, level, endpoint)
            for target, stream in zip(self.targets, streams, strict=True)
        ]

    def play(self, first_seed: int, old_byte: int) -> list[KVCache]:
        """Stream random caches over targets that hold ``old_byte``; return what was sent."""
        sources = [
            random_cache(self.geometry, seed=first_seed + stream.id) for stream in self.streams
        ]
        for receiver, target in zip(self._receivers, self.targets, strict=True):
            target.fill(old_byte)
            for slot in receiver.slots:
                slot.fill_(0x41)
            receiver.begin()
        for manager in self.managers:
            manager.cache.fill(0x51)
            manager.begin()
        model = Model(sources, self.managers)
        model.start()
        receive_all(reversed(self._receivers))
        self._endpoint.finish()
        join_model(model)
        return sources


@pytest.mark.usefixtures("few_extents")
@pytest.mark.parametrize("slot_nbytes", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
def test_interleaved_streams_arrive_in_place(
    level: Level, layout: KVLayout, slot_nbytes: int
) -> None:
    """Twice, with other data."""
    schedule = schedule_of(small_geometry(layout), slot_nbytes)
    streams = [Stream(number, schedule, peer=0) for number in range(2)]
    with linked_ends(slot_nbytes, MemoryLink()) as ends:
        interleaved = InterleavedStreams(*ends, level, streams)
        for first_seed, old_byte in ((0, 0x31), (2, 0x32)):
            sources = interleaved.play(first_seed, old_byte)
            for source, target, stream in zip(sources, interleaved.targets, streams, strict=True):
                require_arrival(source, target, stream, unused_byte=old_byte)


@pytest.mark.usefixtures("few_extents")
@pytest.mark.parametrize("slot_nbytes", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
def test_only_extents_of_level_0_batched_are_sent_in_groups(
    level: Level, layout: KVLayout, slot_nbytes: int
) -> None:
    schedule = schedule_of(small_geometry(layout), slot_nbytes)
    link = MemoryLink()
    with linked_ends(slot_nbytes, link) as ends:
        interleaved = InterleavedStreams(*ends, level, [Stream(0, schedule, peer=0)])
        interleaved.play(first_seed=0, old_byte=0x31)
    if level.buffered or level.each_complete:
        assert not link.groups
    else:
        assert 1 < max(link.groups) <= FEW_EXTENTS


@pytest.mark.parametrize("layout", list(KVLayout))
@pytest.mark.parametrize("level", ["0", "0-batched"])
def test_each_extent_is_one_message(level: str, layout: KVLayout) -> None:
    schedule = schedule_of(small_geometry(layout), WHOLE_LAYERS)
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link) as ends:
        interleaved = InterleavedStreams(*ends, LEVELS[level], [Stream(0, schedule, peer=0)])
        interleaved.play(first_seed=0, old_byte=0x31)
    (manager,) = interleaved.managers
    assert len(link.sizes) == manager.prompt.copies + manager.tokens.copies


def require_arrival(source: KVCache, target: KVCache, stream: Stream, unused_byte: int) -> None:
    """Hold that all streamed bytes are in place, and the positions behind them as they were."""
    assert packed_stream(target, stream.schedule) == packed_stream(source, stream.schedule)
    positions = Span(INPUT_LEN + STEPS, target.geometry.positions)
    unused = target.geometry.region(positions=positions)
    for kv in BOTH:
        unused_bytes = target.piece(kv, unused).contiguous().view(torch.uint8)
        assert (unused_bytes == unused_byte).all()


@pytest.mark.parametrize("layout", list(KVLayout))
def test_extents_are_sent_from_their_addresses_in_the_cache(layout: KVLayout) -> None:
    cache = random_cache(small_geometry(layout))
    schedule = schedule_of(cache.geometry, CUT_LAYERS)
    addresses = ExtentAddresses(cache, schedule)
    for step in range(STEPS + 1):
        addresses.prepare(step)
        contents = [
            ctypes.string_at(address, nbytes) for address, nbytes in addresses.of_step(step)
        ]
        assert contents == [bytes(view) for view in cut_extent_views(cache, schedule.extents(step))]


def test_addresses_that_are_not_kept_are_computed_anew() -> None:
    cache = random_cache(small_geometry())
    kept_addresses = ExtentAddresses(cache, schedule_of(cache.geometry))
    computed_addresses = ExtentAddresses(cache, schedule_of(cache.geometry), most_kept=1)
    for step in (2, 0, 3):
        assert computed_addresses.of_step(step) == kept_addresses.of_step(step)
    computed_addresses.prepare(STEPS)
    computed_addresses.prepare(STEPS + 1)
    assert computed_addresses.of_step(STEPS) == kept_addresses.of_step(STEPS)


def begin_stream(
    streamer: Streamer,
    level: str,
    endpoint: NCCLSinkEndpoint,
    patience: float = PATIENCE,
    slot: int = WHOLE_LAYERS,
) -> tuple[CacheManager, CacheReceiver, KVCache]:
    geometry = small_geometry()
    stream = Stream(id=5, schedule=schedule_of(geometry, slot), peer=0)
    source = random_cache(geometry)
    cache, target = (KVCache.allocate(geometry, INTEGERS[2]) for _ in range(2))
    manager = CacheManager(cache, [stream], LEVELS[level], streamer, patience)
    receiver = CacheReceiver(target, stream, LEVELS[level], endpoint)
    manager.begin()
    receiver.begin()
    return manager, receiver, source


def test_nothing_is_sent_before_the_sink_is_ready() -> None:
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link) as (streamer, endpoint):
        manager, receiver, source = begin_stream(streamer, "3", endpoint)
        model = Model([source], [manager])
        model.start()
        stays(lambda: not link.sizes, "the silence of the source", 0.1)
        assert manager.lag_nbytes > 0
        receive_all([receiver])
        endpoint.finish()
        join_model(model)
        assert manager.lag_nbytes == 0


@pytest.mark.parametrize("slot", [WHOLE_LAYERS, CUT_LAYERS])
@pytest.mark.parametrize("ahead", [1, 2, 8])
@pytest.mark.parametrize("level", ["0", "1", "3"])
def test_a_sink_receives_ahead_of_announcements(level: str, ahead: int, slot: int) -> None:
    """At most as many as it may, and as it has slots; twice, with other data."""
    link = MemoryLink()
    with linked_ends(slot, link, ahead=ahead) as (streamer, endpoint):
        manager, receiver, source = begin_stream(streamer, level, endpoint, slot=slot)
        target = receiver._cache
        target.fill(0x31)
        slot_count = len(receiver.slots)
        assert not link.most_waiting  # nothing is issued before the first look
        for microbatch in range(2):
            if microbatch:
                source = random_cache(small_geometry(), seed=7)
                manager.begin()
                receiver.begin()
            link.most_waiting = 0
            assert not receiver.poll()
            assert link.most_waiting == (min(ahead, slot_count) if LEVELS[level].buffered else 0)
            model = Model([source], [manager])
            model.start()
            receive_all([receiver])
            endpoint.finish()
            join_model(model)
            require_arrival(source, target, receiver.stream, unused_byte=0x31)
    assert link.closed == 1


def test_a_chunk_that_is_granted_for_another_stream_is_refused() -> None:
    """Two streams to a sink that may receive ahead, which it must not."""
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link, ahead=1) as (streamer, endpoint):
        manager, receiver, source = begin_stream(streamer, "3", endpoint, patience=0.5)
        other_stream = replace(receiver.stream, id=6)
        other_receiver = CacheReceiver(
            KVCache.allocate(small_geometry(), INTEGERS[2]), other_stream, LEVELS["3"], endpoint
        )
        other_receiver.begin()
        assert not other_receiver.poll()
        model = Model([source], [manager])
        model.start()
        with pytest.raises(
            StreamingError,
            match="rank 0 granted a chunk of stream 6, where one of stream 5 is next",
        ):
            join_model(model)
        assert not link.sizes


@pytest.mark.parametrize("level", ["0", "0-batched"])
def test_a_sink_that_is_never_ready_ends_streaming(level: str) -> None:
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link, timeout=0.1) as (streamer, endpoint):
        manager, _, source = begin_stream(streamer, level, endpoint)
        model = Model([source], [manager])
        model.start()
        with pytest.raises(
            StreamingError, match=r"rank 0 was not ready for chunk 0 \(step 0\) of stream 5 within"
        ):
            join_model(model)
    assert link.aborted.is_set()
    assert not link.sizes
    assert not link.closed


def test_closing_aborts_a_link_that_still_waits() -> None:
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link) as (streamer, endpoint):
        manager, _, source = begin_stream(streamer, "0", endpoint, patience=0.1)
        model = Model([source], [manager])
        model.start()
        with pytest.raises(StreamingError, match=r"no chunk became complete within 0\.1 s"):
            join_model(model)
        began = time.monotonic()
    assert time.monotonic() - began < 5.0
    assert link.aborted.is_set()


@pytest.mark.parametrize("level", ["3", "0", "0-batched"])
def test_a_chunk_that_was_announced_and_does_not_come_is_named(level: str) -> None:
    link = MemoryLink(lost=True)
    with linked_ends(WHOLE_LAYERS, link, timeout=0.2) as (streamer, endpoint):
        manager, receiver, source = begin_stream(streamer, level, endpoint, patience=1.0)
        model = Model([source], [manager])
        model.start()
        with pytest.raises(
            StreamingError,
            match="rank 0 announced a chunk of stream 5 that did not come within 0 s",
        ):
            receive_all([receiver])
        assert link.aborted.is_set()
        endpoint.close()
        with pytest.raises(StreamingError):
            join_model(model)
    assert not link.closed


def test_a_chunk_of_another_size_is_refused() -> None:
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link) as (streamer, endpoint):
        manager, _, source = begin_stream(streamer, "3", endpoint, patience=0.5)
        receiving = endpoint.receive(
            manager.streams[0], torch.zeros(8, dtype=torch.uint8), lambda packed: None
        )
        waiting = endpoint._waiting[0, 5]
        waiting.rotate(1)  # that one comes first
        model = Model([source], [manager])
        model.start()
        with pytest.raises(
            StreamingError, match=r"rank 0 announced \d+ bytes as chunk 0 of stream 5, where 8 are"
        ):
            wait_asleep(receiving.poll, "the announcement", PATIENCE)
        with pytest.raises(StreamingError):
            join_model(model)


def test_a_stream_does_not_begin_anew_with_chunks_on_their_way() -> None:
    link = MemoryLink()
    with linked_ends(WHOLE_LAYERS, link) as (streamer, endpoint):
        manager, _, source = begin_stream(streamer, "3", endpoint, patience=0.2)
        model = Model([source], [manager])
        model.start()
        with pytest.raises(StreamingError):
            join_model(model)
        with pytest.raises(StreamingError, match="stream 5 cannot begin"):
            streamer.destination.begin(manager.streams[0])


# ---- several sources ----


@pytest.mark.mpi
@pytest.mark.parametrize("ahead", [0, 1, 8])
def test_two_sources_stream_to_one_sink(ahead: int, tmp_path: Path) -> None:
    """Over links made of MPI's messages; three microbatches, at every level."""
    assert output_of_ranks(tmp_path, "nccl_sources.py", ahead, ranks=3) == "all well\n"


# ---- on GPUs ----


EVERY_STREAM = f"{len(KVLayout) * 2 * len(LEVELS)} streams, all well\n"
"""Output of mpi/nccl_stream.py: one stream per layout, size of the slots (2) and level."""


def output_of_ranks(folder: Path, script: str, *args: object, ranks: int = 2) -> str:
    """Return the output of a script under mpirun."""
    return run(folder, ranks, *args, driver=("-m", "mpi4py", str(DRIVERS / script))).stdout


two_gpus = needs_gpus(2)
one_gpu = needs_gpus(1)


@two_gpus
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("ahead", [0, 1, 8])
@pytest.mark.parametrize("source", [0, 1])
def test_every_byte_arrives_over_nccl_on_the_other_gpu(
    source: int, ahead: int, tmp_path: Path
) -> None:
    assert output_of_ranks(tmp_path, "nccl_stream.py", source, ahead) == EVERY_STREAM


@two_gpus
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2)])
def test_collectives_of_gpus_are_right(tensor: int, stages: int, tmp_path: Path) -> None:
    assert output_of_ranks(tmp_path, "nccl_collectives.py", tensor, stages) == "all well\n"


@two_gpus
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(("level", "ahead"), [("3", 0), ("3", 8), ("0", 0), ("0-batched", 0)])
@pytest.mark.parametrize("victim", ["source", "sink"])
def test_the_other_side_ends_soon_after_a_death(
    victim: str, level: str, ahead: int, tmp_path: Path
) -> None:
    """Without the launcher's help: the survivor's own deadline and abort end it."""
    with Job(tmp_path, 2, victim, level, ahead, driver=(str(DRIVERS / "nccl_killed.py"),)) as job:
        job.until(lambda: "ended after" in job.stdout, "the survivor's end")
        survivor = "sink" if victim == "source" else "source"
        assert f"{survivor}: StreamingError" in job.stdout
        assert float(job.stdout.split("ended after ")[1].split()[0]) < 10.0, job.stdout


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
def test_sharing_a_gpu_is_refused(tmp_path: Path) -> None:
    assert "ranks 0 and 1 share one GPU" in output_of_ranks(
        tmp_path, "nccl_stream.py", 0, 0, "--refused"
    )


@one_gpu
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("ahead", [0, 8])
def test_two_ranks_stream_on_one_gpu_by_loopback(ahead: int, tmp_path: Path) -> None:
    assert output_of_ranks(tmp_path, "nccl_stream.py", 0, ahead, "--loopback") == EVERY_STREAM
