"""A source and a sink on one host: how they connect, notice each other's end, and unmap memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

from ...extents import BaseAddresses
from ...kv_cache import KVCache
from ...regions import Region, Span
from ...schedule import StreamSchedule
from ...waiting import DeadlineError, wait_asleep
from ..base import CONNECT_S, WAIT_FOR_PEER_REPORT_S, Stream, StreamingError
from .chunk_words import PairWords, SideState, StreamWords
from .gpu_memory import MappedTensors, SharedTensor, export_tensors
from .shared_words import PeerMemoryError, SharedWords, WordsOffer, has_ended

CHECK_INTERVAL_S = 0.25
"""Seconds between two checks that the other process is alive."""


class _Tag(IntEnum):
    """MPI's tags of the two messages of a connection.

    Each side waits for a tag of its own, so it never takes the other kind of message.
    """

    OFFER = 0  # sink: its memory and streams, or why it cannot offer them
    ANSWER = 1  # source: its process, or why it cannot map the memory


class Peer:
    """The other side of a pair, checked while this side waits for it.

    Args:
        pid: its process.
        find_end_state: returns how far it is with its end.

    Attributes:
        rank: its rank.
    """

    def __init__(self, rank: int, pid: int, find_end_state: Callable[[], SideState]) -> None:
        self.rank = rank
        self._pid = pid
        self._find_end_state = find_end_state
        self._next_check_s = 0.0

    def check_alive(self, must_be_open: bool = False) -> None:
        """Raise StreamingError if the other side has failed or its process has ended.

        Called at each poll, it looks only every :data:`CHECK_INTERVAL_S`. It sleeps for
        :data:`WAIT_FOR_PEER_REPORT_S` before it reports a process that has ended.

        Args:
            must_be_open: raise it, too, if the other side has closed.
        """
        now_s = time.monotonic()
        if now_s < self._next_check_s:  # reading /proc takes 20 µs
            return
        self._next_check_s = now_s + CHECK_INTERVAL_S
        end_state = self._find_end_state()
        if end_state is SideState.ABORTED:
            raise StreamingError(f"rank {self.rank} has given up streaming to or from this rank")
        if must_be_open and end_state is not SideState.OPEN:
            raise StreamingError(f"rank {self.rank} has closed before the end of its stream")
        if has_ended(self._pid):
            time.sleep(WAIT_FOR_PEER_REPORT_S)
            raise StreamingError(f"the process of rank {self.rank} has ended within a stream")

    def await_state(self, least_state: SideState, timeout_s: float = CONNECT_S) -> None:
        """Wait until the other side is at least as far with its end as ``least_state``.

        Raises:
            StreamingError: it has failed, or is not that far within ``timeout_s``.
        """

        def has_reached_state() -> bool:
            self.check_alive()
            return self._find_end_state() >= least_state

        try:
            wait_asleep(has_reached_state, f"the end of rank {self.rank}", timeout_s)
        except DeadlineError as error:
            raise StreamingError(f"unmapping memory: {error}") from None


@dataclass(frozen=True)
class _Offer:
    """A sink's memory and streams, in its message to one of its sources."""

    words: WordsOffer
    tensors: Sequence[SharedTensor]
    streams: Mapping[int, tuple[StreamSchedule, BaseAddresses]]


# ---- the source's view ----


@dataclass(frozen=True)
class StreamAtSink:
    """One stream at a sink.

    Attributes:
        schedule: the sink's.
        bases: addresses of the sink's cache, as mapped here.
    """

    schedule: StreamSchedule
    bases: BaseAddresses
    words: StreamWords

    def has_chunks_of(self, schedule: StreamSchedule) -> bool:
        """Return whether a source's schedule cuts the stream into the same chunks."""
        return _list_common_sizes(schedule) == _list_common_sizes(self.schedule)

    def place_of(self, region: Region, schedule: StreamSchedule) -> Region:
        """Return the place in the sink's cache of a part of a source's stream."""

        def shift(part: Span, at_source: Span, at_sink: Span) -> Span:
            return part.shift(at_sink.start - at_source.start)

        source_region, sink_region = schedule.region, self.schedule.region
        return Region(
            shift(region.layers, source_region.layers, sink_region.layers),
            shift(region.requests, source_region.requests, sink_region.requests),
            shift(region.heads, source_region.heads, sink_region.heads),
            region.positions,
        )


def _list_common_sizes(schedule: StreamSchedule) -> tuple[int, ...]:
    """Return the sizes that two schedules of the same chunks have in common."""
    region = schedule.region
    return (
        region.layers.size,
        region.requests.size,
        region.heads.size,
        schedule.position_nbytes,
        schedule.input_len,
        schedule.steps,
        schedule.slot_nbytes,
        schedule.flush_interval,
    )


@dataclass(frozen=True)
class MappedSink:
    """A sink, as a source sees it.

    Attributes:
        streams: its streams from this source, by their ids.
        slots: mapped address and bytes of each tensor, by its address in the sink's process.
        unmap: gives the memory back; called when nothing is on its way there.
    """

    peer: Peer
    words: PairWords
    streams: Mapping[int, StreamAtSink]
    slots: Mapping[int, tuple[int, int]]
    unmap: Callable[[], None]

    def find(self, stream: Stream) -> StreamAtSink:
        """Return a stream as the sink has it.

        Raises:
            StreamingError: the sink does not have this stream with the same chunks.
        """
        sink_stream = self.streams.get(stream.id)
        if sink_stream is None or not sink_stream.has_chunks_of(stream.schedule):
            raise StreamingError(
                f"rank {self.peer.rank} has no stream {stream.id} of the same chunks as this rank"
            )
        return sink_stream


def map_sink(
    comm: MPI.Intracomm, sink: int, device: torch.device, pin: Callable[[SharedWords], None]
) -> MappedSink:
    """Map what a sink offers by :func:`offer_memory`.

    Args:
        device: device that will put into the memory.
        pin: lets the device store into shared words.

    Raises:
        StreamingError: the memory cannot be mapped, or the sink did not offer any.
    """
    offer = _receive(comm, sink, _Tag.OFFER)
    if isinstance(offer, str):
        raise StreamingError(f"rank {sink}: {offer}")
    try:
        shared = SharedWords.open(offer.words)
        pin(shared)
        memory = MappedTensors(offer.tensors, device)
    except PeerMemoryError as error:
        _send(comm, {sink: str(error)}, _Tag.ANSWER)
        raise PeerMemoryError(f"memory of rank {sink}: {error}") from None
    _send(comm, {sink: os.getpid()}, _Tag.ANSWER)
    words = PairWords(shared, len(offer.streams))
    streams = {
        stream_id: StreamAtSink(
            schedule, BaseAddresses(*(memory.addresses[base] for base in bases)), stream_words
        )
        for (stream_id, (schedule, bases)), stream_words in zip(
            offer.streams.items(), words.streams, strict=True
        )
    }
    slots = {
        tensor.address: (memory.addresses[tensor.address], tensor.nbytes)
        for tensor in offer.tensors
    }
    peer = Peer(sink, offer.words.pid, lambda: words.sink_state)
    return MappedSink(peer, words, streams, slots, memory.close)


def release_sinks(sinks: Sequence[MappedSink]) -> None:
    """Unmap the memory of all sinks, once each sink is done.

    Raises:
        StreamingError: a sink has failed, or is not done in time.
    """
    for sink in sinks:
        sink.words.source_state = SideState.DONE
    for sink in sinks:
        sink.peer.await_state(SideState.DONE)
        sink.unmap()
        sink.words.source_state = SideState.UNMAPPED


# ---- the sink's view ----


@dataclass(frozen=True)
class PairedSource:
    """A source, as a sink sees it.

    Attributes:
        streams: words of each stream from it, by the stream's id.
    """

    peer: Peer
    words: PairWords
    streams: Mapping[int, StreamWords]


def offer_memory(
    comm: MPI.Intracomm,
    sources: Sequence[int],
    memory: Sequence[torch.Tensor],
    streams: Sequence[tuple[KVCache, Stream]],
) -> dict[int, PairedSource]:
    """Let all sources map this sink's memory; return them by their ranks.

    Args:
        memory: caches and slots, tensors of one device.
        streams: every stream that arrives, with its cache.

    Raises:
        StreamingError: a source cannot map the memory, or did not connect.
    """
    try:
        tensors = export_tensors(memory)
    except PeerMemoryError as error:
        _send(comm, dict.fromkeys(sources, str(error)), _Tag.OFFER)  # else they would wait for it
        raise
    offered: dict[int, dict[int, tuple[StreamSchedule, BaseAddresses]]] = {
        source: {} for source in sources
    }
    for cache, stream in streams:
        offered[stream.peer_rank][stream.id] = stream.schedule, BaseAddresses.of_cache(cache)
    shared = {
        source: SharedWords.create(PairWords.count_words(len(streams_of_source)))
        for source, streams_of_source in offered.items()
    }
    offers = {
        source: _Offer(shared[source].offer(), tensors, streams_of_source)
        for source, streams_of_source in offered.items()
    }
    _send(comm, offers, _Tag.OFFER)
    pids = {source: _receive_pid(comm, source) for source in sources}
    return {
        source: _pair_source(
            source,
            pids[source],
            PairWords(shared[source], len(streams_of_source)),
            streams_of_source,
        )
        for source, streams_of_source in offered.items()
    }


def _pair_source(
    source: int, pid: int, words: PairWords, stream_ids: Iterable[int]
) -> PairedSource:
    words_by_id = dict(zip(stream_ids, words.streams, strict=True))
    return PairedSource(Peer(source, pid, lambda: words.source_state), words, words_by_id)


def release_sources(sources: Sequence[PairedSource]) -> None:
    """Return once no source has the memory mapped any more.

    Raises:
        StreamingError: a source has failed, or is not done in time.
    """
    for source in sources:
        source.words.sink_state = SideState.DONE
    for source in sources:
        source.peer.await_state(SideState.UNMAPPED)
        source.words.shared.close()


# ---- messages ----


def _send(comm: MPI.Intracomm, messages: Mapping[int, object], tag: _Tag) -> None:
    requests = [comm.isend(message, rank, tag) for rank, message in messages.items()]
    _wait(lambda: bool(MPI.Request.testall(requests)[0]), "sending addresses of memory")


def _receive(comm: MPI.Intracomm, rank: int, tag: _Tag) -> Any:
    _wait(partial(comm.iprobe, rank, tag), f"rank {rank}'s side of shared memory")
    return comm.recv(None, rank, tag)


def _receive_pid(comm: MPI.Intracomm, source: int) -> int:
    """Return the process of a source that has mapped the memory."""
    answer = _receive(comm, source, _Tag.ANSWER)
    if isinstance(answer, str):
        raise StreamingError(f"rank {source}: {answer}")
    pid: int = answer
    return pid


def _wait(test: Callable[[], bool], awaited: str) -> None:
    try:
        wait_asleep(test, awaited, CONNECT_S)
    except DeadlineError as error:
        raise StreamingError(str(error)) from None
