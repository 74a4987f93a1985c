"""The source's side of ``nixl``: writes chunks into the memory that the sink has named."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from ... import chunk_times
from ...extents import BaseAddresses, ExtentAddresses
from ...schedule import Chunk, StreamSchedule
from ...waiting import wait_asleep
from ..base import RemoteDestination, Stream, StreamingError, StreamKey
from ..registry import NIXL
from .agent import Agent, Notification, WriteHandle

MOST_EXTENTS_PER_WRITE = 2048
"""Most extents of one NIXL write, if they are not waited for one by one."""

SinkCaches = dict[int, tuple[StreamSchedule, BaseAddresses]]
"""By a stream's id, the schedule and the address of the sink's cache: what a sink shares."""


@dataclass
class _SentChunk:
    """A chunk on its way.

    Attributes:
        number: the chunk's number in its stream since the agents connected.
        packed: the chunk's buffer; None if its extents are written.
        filled_event: event on a device after which ``packed`` holds the chunk.
        write: NIXL's handle while the chunk is being written.
        is_written: the chunk is in the sink's memory.
        moved_ns: when that was seen.
        sink_ns: nanoseconds that the sink took from then until it was in its place.
    """

    number: int
    packed: torch.Tensor | None = None
    filled_event: torch.cuda.Event | None = None
    write: WriteHandle | None = None
    is_written: bool = False
    moved_ns: int | None = None
    sink_ns: int | None = None


class NIXLDestination(RemoteDestination[_SentChunk]):
    """The source's side. Making one needs the sinks to make their endpoint.

    Args:
        comm: communicator of all sources and sinks; nothing else may be on its way there meanwhile.
        sinks: ranks in ``comm`` that something is streamed to.
        memory: staging slots, and the tensors of caches whose extents are moved singly. All on the
            host, or all on one device.

    Raises:
        StreamingError: NIXL cannot be used, or a sink did not connect.
    """

    entry = NIXL
    by_address = True

    def __init__(
        self, comm: MPI.Intracomm, sinks: Sequence[int], memory: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self._on_device = memory[0].is_cuda
        self.agent = Agent(comm, memory, dict.fromkeys(sinks))
        self._remote_extents: dict[StreamKey, ExtentAddresses] = {}
        self._sent_counts: Counter[StreamKey] = Counter()
        self._given_up = threading.Event()

    @property
    def device_memory(self) -> bool:
        """Whether the registered memory is a device's: NIXL moves from either kind to its like."""
        return self.entry.uses_device_memory(self._on_device)

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Queue a packed chunk, and write it once the sink names its buffer; never waits."""
        sent_chunk = self._add(stream)
        sent_chunk.packed = packed
        if packed.is_cuda:
            sent_chunk.filled_event = torch.cuda.Event()
            sent_chunk.filled_event.record(torch.cuda.current_stream(packed.device))
        self._issue(stream)

    def flush_extents(
        self,
        stream: Stream,
        chunk: Chunk,
        extents: Sequence[tuple[int, int]],
        each_complete: bool,
    ) -> None:
        """Write extents, given as (address, bytes), into their place in the sink's cache."""
        sent_chunk = self._add(stream)
        remote_extents = self._remote_extents_of(stream).of_step(chunk.step)
        self._await_buffer(stream, chunk, sent_chunk.number)
        if each_complete:
            writes = self.agent.write_each(stream, extents, remote_extents)
            for block in self.cut_and_count(extents):
                for _ in block:
                    self._finish(next(writes), stream, chunk)
        else:
            at_once = MOST_EXTENTS_PER_WRITE
            writes_under_way = [
                self.agent.write(
                    stream,
                    block,
                    remote_extents[block_index * at_once : (block_index + 1) * at_once],
                )
                for block_index, block in enumerate(self.cut_and_count(extents, at_once))
            ]
            for write in writes_under_way:
                self._finish(write, stream, chunk)
        # One notification for all: it leaves behind writes that are done already, so nothing
        # overtakes it.
        self.agent.notify(stream, Notification.WRITTEN, sent_chunk.number, nbytes=chunk.nbytes)
        sent_chunk.is_written = True
        sent_chunk.moved_ns = chunk_times.now()

    def poll_completed(self, stream: Stream) -> int:
        """Issue the writes that can begin; then count the chunks that the sink reports done."""
        self._issue(stream)
        under_way = self._under_way[stream.key]
        # In order, although a later chunk may be done already: slots are given back in order.
        while under_way and self._is_complete(stream, under_way[0]):
            sent_chunk = under_way.popleft()
            self._completed[stream.key] += 1
            if self.timed:
                self._receipts[stream.key].append((sent_chunk.moved_ns, sent_chunk.sink_ns))
        return self._completed[stream.key]

    def give_up(self) -> None:
        """End every wait for the sink. From any thread."""
        self._given_up.set()

    def close(self) -> None:
        """Disconnect the agent, unless it was given up: then its memory may still be read."""
        if not self._given_up.is_set():
            self.agent.close()

    def _add(self, stream: Stream) -> _SentChunk:
        sent_chunk = _SentChunk(self._sent_counts[stream.key])
        self._sent_counts[stream.key] += 1
        self._under_way[stream.key].append(sent_chunk)
        return sent_chunk

    def _issue(self, stream: Stream) -> None:
        """Write the chunks that are packed and have a remote buffer."""
        self.agent.advance()
        for sent_chunk in self._under_way[stream.key]:
            if sent_chunk.packed is None or sent_chunk.write is not None or sent_chunk.is_written:
                continue
            # Chunks of a stream are written in order, so the first that cannot go holds the rest:
            # the sink looks for its oldest chunk first.
            if sent_chunk.filled_event is not None and not sent_chunk.filled_event.query():
                break
            buffer = self.agent.take(stream, Notification.BUFFER, sent_chunk.number)
            if buffer is None:
                break
            packed_extent = sent_chunk.packed.data_ptr(), sent_chunk.packed.numel()
            if buffer[1] != packed_extent[1]:
                raise StreamingError(
                    f"rank {stream.peer} has a buffer of {buffer[1]} bytes for a chunk of "
                    f"{packed_extent[1]} of stream {stream.id}"
                )
            sent_chunk.write = self.agent.write(
                stream, [packed_extent], [buffer], sent_chunk.number
            )

    def _is_complete(self, stream: Stream, sent_chunk: _SentChunk) -> bool:
        if sent_chunk.write is not None and self.agent.has_finished(sent_chunk.write):
            sent_chunk.write = None
            sent_chunk.is_written = True
            sent_chunk.moved_ns = chunk_times.now()
        if not sent_chunk.is_written:
            return False
        notification = self.agent.take(stream, Notification.DONE, sent_chunk.number)
        if notification is None:
            return False
        _, sent_chunk.sink_ns = notification
        return True

    def _remote_extents_of(self, stream: Stream) -> ExtentAddresses:
        # The sink has sent its schedule and the addresses of its cache with its metadata.
        if stream.key not in self._remote_extents:
            sink_caches: SinkCaches = self.agent.shared[stream.peer_rank]
            schedule, bases = sink_caches[stream.id]
            self._remote_extents[stream.key] = ExtentAddresses(bases, schedule)
        return self._remote_extents[stream.key]

    def _finish(self, write: WriteHandle, stream: Stream, chunk: Chunk) -> None:
        """Wait for one write without sleeping: level 0 has nothing else to do meanwhile."""
        while not self.agent.has_finished(write):
            self._check_going_on(stream, chunk)

    def _await_buffer(self, stream: Stream, chunk: Chunk, chunk_number: int) -> None:
        def is_named() -> bool:
            self._check_going_on(stream, chunk)
            self.agent.advance()
            return self.agent.take(stream, Notification.BUFFER, chunk_number) is not None

        wait_asleep(is_named, "a remote buffer")

    def _check_going_on(self, stream: Stream, chunk: Chunk) -> None:
        """Raise StreamingError if the destination has been given up."""
        if self._given_up.is_set():
            raise StreamingError(
                f"chunk {chunk.index} of stream {stream.id} to rank {stream.peer} was given up"
            )
