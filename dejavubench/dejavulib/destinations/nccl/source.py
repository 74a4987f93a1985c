"""The source's side of ``nccl``: announces chunks and sends those that the sink has granted."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from mpi4py import MPI

from ... import chunk_times
from ...schedule import Chunk
from ...waiting import DeadlineError, wait_asleep
from ..base import RemoteDestination, Stream, StreamingError
from ..registry import NCCL
from .link import (
    MOST_EXTENTS_PER_GROUP,
    Acknowledgement,
    Announcement,
    ChunkForm,
    CudaStreamMark,
    Grant,
    NCCLLink,
    Notifications,
    check_link,
)


@dataclass
class _AnnouncedChunk:
    """A chunk that has been announced.

    Attributes:
        stream_id: the chunk's stream.
        packed: the chunk's buffer; None if its extents are sent.
        filled_mark: the mark after which ``packed`` holds the chunk.
        sent_mark: the mark after which it has left; None until it is issued.
        moved_ns: when that mark was seen to be reached.
    """

    chunk: Chunk
    stream_id: int
    packed: torch.Tensor | None = None
    filled_mark: CudaStreamMark | None = None
    sent_mark: CudaStreamMark | None = None
    moved_ns: int | None = None

    def has_left(self) -> bool:
        """Return whether the send kernel no longer reads the chunk."""
        if self.moved_ns is None and self.sent_mark is not None and self.sent_mark.query():
            self.moved_ns = chunk_times.now()
        return self.moved_ns is not None


@dataclass
class _SinkView:
    """The source's view of one sink.

    Attributes:
        announced: chunks that have not been issued, oldest first.
        granted: the stream of each chunk that may be issued, in the sink's order.
        acknowledged: by stream, nanoseconds that the sink took for each chunk that is in its place
            and not yet counted.
    """

    link: NCCLLink
    announced: deque[_AnnouncedChunk] = field(default_factory=deque)
    granted: deque[int] = field(default_factory=deque)
    acknowledged: defaultdict[int, deque[int]] = field(default_factory=lambda: defaultdict(deque))


class NCCLDestination(RemoteDestination[_AnnouncedChunk]):
    """The source's side.

    Args:
        comm: communicator of all sources and sinks, for notifications; nothing else may use it.
        links: the link to each sink, by its rank in ``comm``.
        timeout: seconds that an unbuffered chunk waits for the sink to be ready.

    Raises:
        StreamingError: the MPI library does not let a second thread call it.
    """

    entry = NCCL
    by_address = True

    def __init__(
        self, comm: MPI.Intracomm, links: Mapping[int, NCCLLink], timeout: float = 60.0
    ) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StreamingError(
                "this MPI library does not grant MPI_THREAD_MULTIPLE, which streaming by nccl needs"
            )
        super().__init__()
        self._notifications = Notifications(comm)
        # One queue per sink, over all its streams: NCCL matches a pair's messages by their order.
        self._sinks = {peer: _SinkView(link) for peer, link in links.items()}
        self._timeout_s = timeout
        self._given_up = threading.Event()

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Announce a packed chunk, and send it as soon as the sink grants it; never waits."""
        sink, announced_chunk = self._announce(stream, chunk, ChunkForm.PACKED)
        announced_chunk.packed = packed
        announced_chunk.filled_mark = sink.link.mark_filled()
        self._issue(stream)

    def flush_extents(
        self,
        stream: Stream,
        chunk: Chunk,
        extents: Sequence[tuple[int, int]],
        each_complete: bool,
    ) -> None:
        """Send extents, given as (address, bytes), each from its place in the cache."""
        sink, announced_chunk = self._announce(
            stream, chunk, ChunkForm.ONE_BY_ONE if each_complete else ChunkForm.IN_GROUPS
        )
        self._wait(lambda: self._is_next(stream, announced_chunk), stream, chunk)
        sink.announced.popleft()
        sink.granted.popleft()
        link = sink.link
        send = sink.link.send
        if each_complete:
            wait = link.synchronize
            given_up = self._given_up.is_set
            for block in self.cut_and_count(extents):
                for address, nbytes in block:
                    if given_up():  # the wait was ended, and the link is gone
                        self._check_going_on(stream, chunk)
                    send(address, nbytes)
                    wait()
        else:
            for block in self.cut_and_count(extents, MOST_EXTENTS_PER_GROUP):
                self._check_going_on(stream, chunk)
                with link.group():
                    for address, nbytes in block:
                        send(address, nbytes)
            link.synchronize()
        self._check_going_on(stream, chunk)
        announced_chunk.sent_mark = link.mark()

    def poll_completed(self, stream: Stream) -> int:
        """Issue the sends that the sink has granted; then count acknowledged chunks.

        Raises:
            StreamingError: NCCL has failed since the last call.
        """
        self._issue(stream)
        sink = self._sink_of(stream)
        under_way = self._under_way[stream.key]
        # A sink's acknowledgements come for any of its streams: counted for all, used for this one.
        for acknowledgement in self._notifications.receive(stream.peer_rank, Acknowledgement):
            sink.acknowledged[acknowledgement.stream_id].append(acknowledgement.sink_ns)
        sink_times_ns = sink.acknowledged[stream.id]
        # Both: it has left, so that its slot is free, and it is acknowledged.
        while under_way and under_way[0].has_left() and sink_times_ns:
            announced_chunk = under_way.popleft()
            sink_ns = sink_times_ns.popleft()
            self._completed[stream.key] += 1
            if self.timed:
                self._receipts[stream.key].append((announced_chunk.moved_ns, sink_ns))
        return self._completed[stream.key]

    def give_up(self) -> None:
        """Abort the links, which ends a wait inside NCCL. From any thread."""
        self._given_up.set()
        for sink in self._sinks.values():
            sink.link.abort()  # ends a wait of the helper inside NCCL, which no flag would

    def close(self) -> None:
        """Release the links, which needs the sinks to do the same, unless they are given up."""
        if not self._given_up.is_set():
            for sink in self._sinks.values():
                sink.link.close()

    # ---- in the order of announcements ----

    def _sink_of(self, stream: Stream) -> _SinkView:
        return self._sinks[stream.peer_rank]

    def _announce(
        self, stream: Stream, chunk: Chunk, form: ChunkForm
    ) -> tuple[_SinkView, _AnnouncedChunk]:
        sink = self._sink_of(stream)
        announced_chunk = _AnnouncedChunk(chunk, stream.id)
        sink.announced.append(announced_chunk)
        self._under_way[stream.key].append(announced_chunk)
        announcement = Announcement(stream.id, chunk.index, chunk.nbytes, form)
        self._notifications.send(stream.peer_rank, announcement)
        return sink, announced_chunk

    def _issue(self, stream: Stream) -> None:
        """Send the packed chunks that the stream's sink has granted.

        Raises:
            StreamingError: the sink has granted the chunks in another order.
        """
        sink = self._sink_of(stream)
        if not sink.announced or self._given_up.is_set():
            return
        grants = self._notifications.receive(stream.peer_rank, Grant)
        sink.granted.extend(grant.stream_id for grant in grants)
        # An unbuffered chunk at the head stops this loop: flush_extents() sends that one itself.
        while self._is_granted(sink, stream) and sink.announced[0].packed is not None:
            announced_chunk = sink.announced.popleft()
            sink.granted.popleft()
            assert announced_chunk.packed is not None
            # The link's CUDA stream waits on the device for the gather; this thread does not.
            sink.link.wait_for_mark(announced_chunk.filled_mark)
            sink.link.send(announced_chunk.packed.data_ptr(), announced_chunk.packed.numel())
            announced_chunk.sent_mark = sink.link.mark()
        check_link(sink.link)

    @staticmethod
    def _is_granted(sink: _SinkView, stream: Stream) -> bool:
        """Return whether the chunk that was announced first may be sent."""
        if not sink.granted or not sink.announced:
            return False
        # NCCL would put the chunk where the other stream's is expected, and nobody would notice.
        if sink.granted[0] != sink.announced[0].stream_id:
            raise StreamingError(
                f"rank {stream.peer} granted a chunk of stream {sink.granted[0]}, where one of "
                f"stream {sink.announced[0].stream_id} is next"
            )
        return True

    def _is_next(self, stream: Stream, announced_chunk: _AnnouncedChunk) -> bool:
        self._issue(stream)
        sink = self._sink_of(stream)
        return sink.announced[0] is announced_chunk and self._is_granted(sink, stream)

    def _wait(self, test: Callable[[], bool], stream: Stream, chunk: Chunk) -> None:
        try:
            wait_asleep(lambda: self._given_up.is_set() or test(), "grant", self._timeout_s)
        except DeadlineError:
            raise StreamingError(
                f"rank {stream.peer} was not ready for {_describe_chunk(stream, chunk)} "
                f"within {self._timeout_s:g} s"
            ) from None
        self._check_going_on(stream, chunk)

    def _check_going_on(self, stream: Stream, chunk: Chunk) -> None:
        """Raise StreamingError if the destination has been given up."""
        if self._given_up.is_set():
            raise StreamingError(
                f"{_describe_chunk(stream, chunk)} to rank {stream.peer} was given up"
            )


def _describe_chunk(stream: Stream, chunk: Chunk) -> str:
    return f"chunk {chunk.index} (step {chunk.step}) of stream {stream.id}"
