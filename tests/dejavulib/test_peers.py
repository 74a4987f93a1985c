"""Memory and words that two processes share: opening, grants, flags, and which ends are noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream, StreamingError
from dejavubench.dejavulib.destinations.peers import gpu_memory, pairs
from dejavubench.dejavulib.destinations.peers.chunk_words import (
    FLAG_PERIOD,
    RING_WORD_COUNT,
    ChunkTarget,
    PairWords,
    SideState,
    find_flag_index,
    list_flags,
    make_flag,
)
from dejavubench.dejavulib.destinations.peers.gpu_memory import SharedTensor
from dejavubench.dejavulib.destinations.peers.granted_chunk import GrantedChunk
from dejavubench.dejavulib.destinations.peers.pairs import (
    PairedSource,
    map_sink,
    offer_memory,
    release_sinks,
    release_sources,
)
from dejavubench.dejavulib.destinations.peers.shared_words import (
    PeerMemoryError,
    SharedWords,
    has_ended,
)
from dejavubench.dejavulib.kv_cache import KVCache
from helpers.fake_destination import PATIENCE, schedule_of, small_geometry
from helpers.waits import stays, until

OTHER_PROCESS = """
import sys
from dejavubench.dejavulib.destinations.peers.shared_words import SharedWords, WordsOffer
words = SharedWords.open(WordsOffer(*map(int, sys.argv[1:]))).words
words[3] = words[2] + 1
input()
"""
"""Opens the words that its arguments offer and answers in one of them."""


@pytest.fixture
def other() -> subprocess.Popen[bytes]:
    """Return a process that waits for its standard input."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_another_process_sees_the_same_words() -> None:
    shared = SharedWords.create(16)
    assert list(shared.words[:16]) == [0] * 16
    shared.words[2] = 4711
    arguments = [str(part) for part in shared.offer()]
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, *arguments], stdin=subprocess.PIPE
    ) as process:
        until(lambda: shared.words[3] == 4712, "the other process's answer", PATIENCE)
        process.communicate(b"\n")
    shared.close()


def test_words_that_cannot_be_reached_are_refused(other: subprocess.Popen[bytes]) -> None:
    shared = SharedWords.create(16)
    offer = shared.offer()
    with pytest.raises(PeerMemoryError, match="is not the other process's memory"):
        SharedWords.open(offer._replace(token=offer.token + 1))
    with pytest.raises(PeerMemoryError, match=r"/proc/\d+/fd/\d+ of the other process cannot"):
        SharedWords.open(offer._replace(pid=other.pid, file_descriptor=99))
    other.communicate(b"\n")
    shared.close()


def test_a_process_has_ended_when_nobody_has_waited_for_it_yet(
    other: subprocess.Popen[bytes],
) -> None:
    assert not has_ended(other.pid)
    assert not has_ended(os.getpid())
    other.kill()
    until(lambda: has_ended(other.pid), "the end", PATIENCE)
    assert other.poll() is not None
    assert has_ended(other.pid)
    other.communicate()


def test_flags_tell_chunks_of_a_word_apart() -> None:
    values = list_flags()
    assert len(set(values.tolist())) == len(values) == 2 * FLAG_PERIOD
    assert 0 not in values  # words begin as 0, which announces nothing
    for number in (0, 1, RING_WORD_COUNT, FLAG_PERIOD - 1, FLAG_PERIOD, 10 * FLAG_PERIOD + 7):
        for target in ChunkTarget:
            assert values[find_flag_index(number, target)] == make_flag(number, target)


def test_words_of_two_streams_do_not_overlap() -> None:
    shared = SharedWords.create(PairWords.count_words(2))
    pair = PairWords(shared, 2)
    numbers = range(5, 5 + RING_WORD_COUNT)
    for stream_index, words in enumerate(pair.streams):
        for number in numbers:
            words.store_grant(number, 1000 * (1 + stream_index) + number)
            words.flags[number % RING_WORD_COUNT] = make_flag(number, ChunkTarget(stream_index))
            words.note_done(number, 10 * number + stream_index)
    pair.source_state, pair.sink_state = SideState.DONE, SideState.ABORTED
    for stream_index, words in enumerate(pair.streams):
        for number in numbers:
            assert words.take_grant(number) == 1000 * (1 + stream_index) + number
            assert words.take_grant(number) == 0, "a grant is taken once"
            assert words.find_target(number) is ChunkTarget(stream_index)
            assert words.find_target(number + RING_WORD_COUNT) is None
            assert words.sink_ns(number) == 10 * number + stream_index
        assert words.done_count == numbers.stop
    assert (pair.source_state, pair.sink_state) == (SideState.DONE, SideState.ABORTED)


def test_a_chunk_is_read_only_behind_its_flag() -> None:
    words = PairWords(SharedWords.create(PairWords.count_words(1)), 1).streams[0]
    scattered: list[str] = []
    checks: list[str] = []
    chunk = GrantedChunk(
        words,
        RING_WORD_COUNT + 1,
        lambda: checks.append("check"),
        lambda: scattered.append("scatter"),
    )
    words.flags[1] = make_flag(1, ChunkTarget.SLOT)  # an earlier chunk's flag, in the same word
    assert not chunk.poll()
    assert (scattered, checks, chunk.received_ns) == ([], ["check"], 0)
    words.flags[1] = make_flag(RING_WORD_COUNT + 1, ChunkTarget.SLOT)
    assert chunk.poll()
    assert chunk.poll()
    assert scattered == ["scatter"]
    assert chunk.received_ns
    chunk.acknowledge()
    assert words.done_count == RING_WORD_COUNT + 2


class Offering(threading.Thread):
    """A sink of one source, which is the same rank of another communicator's both ends."""

    def __init__(self, comm: MPI.Intracomm, streams: list[tuple[KVCache, Stream]]) -> None:
        super().__init__(daemon=True)
        self.offered: dict[int, PairedSource] = {}
        self.error: StreamingError | None = None
        self._comm, self._streams = comm, streams

    def run(self) -> None:
        cache, _ = self._streams[0]
        try:
            self.offered = offer_memory(self._comm, [0], [cache.k, cache.v], self._streams)
        except StreamingError as error:
            self.error = error


class Mapped:
    """Memory of another process that lies 1 TB further on here."""

    closed = 0

    def __init__(self, shared: Sequence[SharedTensor], device: torch.device) -> None:
        self.addresses = {tensor.address: tensor.address + (1 << 40) for tensor in shared}

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def streams() -> list[tuple[KVCache, Stream]]:
    """Return two streams to one cache."""
    cache = KVCache.allocate(small_geometry(), torch.int16)
    return [(cache, Stream(number, schedule_of(cache.geometry), 0)) for number in (7, 3)]


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share and map memory without CUDA."""

    def export(tensors: Sequence[torch.Tensor]) -> list[SharedTensor]:
        return [SharedTensor(tensor.data_ptr(), tensor.nbytes, b"", 0) for tensor in tensors]

    Mapped.closed = 0
    monkeypatch.setattr(pairs, "export_tensors", export)
    monkeypatch.setattr(pairs, "MappedTensors", Mapped)


CPU = torch.device("cpu")


@pytest.mark.usefixtures("fake_cuda")
def test_a_source_maps_what_its_sink_offers(streams: list[tuple[KVCache, Stream]]) -> None:
    comm = MPI.COMM_SELF.Dup()
    offering = Offering(comm, streams)
    offering.start()
    pinned: list[SharedWords] = []
    sink = map_sink(comm, 0, CPU, pinned.append)
    offering.join(PATIENCE)
    source = offering.offered[0]
    cache, _ = streams[0]
    assert [len(words.words) > PairWords.count_words(2) for words in pinned] == [True]
    assert sink.slots[cache.k.data_ptr()] == (cache.k.data_ptr() + (1 << 40), cache.k.nbytes)
    for _, stream in streams:
        sink_stream = sink.find(stream)
        assert sink_stream.bases == tuple(
            tensor.data_ptr() + (1 << 40) for tensor in (cache.k, cache.v)
        )
        source.streams[stream.id].store_grant(2, 1000 + stream.id)
        assert sink_stream.words.take_grant(2) == 1000 + stream.id
    # Each waits for the other's word before it gives memory back.
    releasing = threading.Thread(target=release_sinks, args=([sink],), daemon=True)
    releasing.start()
    until(lambda: source.words.source_state is SideState.DONE, "the source's word", PATIENCE)
    stays(lambda: not Mapped.closed, "the mapping", 0.1)
    release_sources([source])
    releasing.join(PATIENCE)
    assert Mapped.closed == 1
    assert source.words.source_state is SideState.UNMAPPED


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("fails", ["export_tensors", "MappedTensors"])
def test_both_sides_say_why_memory_cannot_be_shared(
    fails: str, streams: list[tuple[KVCache, Stream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PeerMemoryError("no such memory")

    monkeypatch.setattr(pairs, fails, refuse)
    comm = MPI.COMM_SELF.Dup()
    offering = Offering(comm, streams)
    offering.start()
    with pytest.raises(StreamingError, match="rank 0: no such memory"):
        map_sink(comm, 0, CPU, lambda words: None)
    offering.join(PATIENCE)
    assert "no such memory" in str(offering.error)


def test_a_side_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "CONNECT_S", 0.05)
    with pytest.raises(StreamingError, match="rank 0's side of shared memory: nothing came"):
        map_sink(MPI.COMM_SELF.Dup(), 0, CPU, lambda words: None)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (
            [{"address": 4096, "total_size": 8192, "is_expandable": True}],
            "expandable segments cannot be shared",
        ),
        ([{"address": 0, "total_size": 4096}], "only memory of its native allocator"),
    ],
)
def test_memory_that_cuda_does_not_export_is_refused(
    segments: list[dict[str, object]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    with pytest.raises(PeerMemoryError, match=message):
        gpu_memory.find_allocation(5000, segments)
    segments = [{"address": 0, "total_size": 4096}, {"address": 4096, "total_size": 8192}]
    assert gpu_memory.find_allocation(5000, segments) == 4096
