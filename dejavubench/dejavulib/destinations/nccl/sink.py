"""The sink's side of ``nccl``: grants chunks, receives them and scatters them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

import torch
from mpi4py import MPI

from ... import chunk_times
from ...waiting import wait_asleep
from ..base import Stream, StreamingError, StreamKey
from .link import (
    MOST_EXTENTS_PER_GROUP,
    MOST_SINGLE_EXTENTS,
    Acknowledgement,
    Announcement,
    ChunkForm,
    CudaStreamMark,
    Grant,
    NCCLLink,
    Notifications,
    check_link,
)


class _PackedReceive:
    """A buffer that waits for the next chunk of its stream."""

    def __init__(
        self,
        endpoint: NCCLSinkEndpoint,
        stream: Stream,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None],
    ) -> None:
        self.packed = packed
        self.scatter = scatter
        self._scattered_mark: CudaStreamMark | None = None
        self.received_ns = 0  # when it was seen that the chunk had come
        self._arrived_mark: CudaStreamMark | None = None
        self._endpoint = endpoint
        self._stream = stream
        self._due_s: float | None = None

    def issue(self, link: NCCLLink) -> None:
        """Issue the receive, and the scatter behind it."""
        link.recv(self.packed.data_ptr(), self.packed.numel())
        self._arrived_mark = link.mark()
        # On another CUDA stream, so that the next receive need not wait for this scatter.
        with link.side_cuda_stream():
            self.scatter(self.packed)
            self._scattered_mark = link.mark_filled()

    def note_announced(self) -> None:
        """Note that the chunk is announced: from now on it is due."""
        self._due_s = MPI.Wtime()

    def poll(self) -> bool:
        """Take announcements; then return whether this chunk is in its place.

        Raises:
            StreamingError: it was announced, and did not come.
        """
        self._endpoint.take_announcements(self._stream)
        if self._scattered_mark is None or self._arrived_mark is None:
            return False
        if not self.received_ns and self._arrived_mark.query():
            self.received_ns = chunk_times.now()
        # The scatter's mark lies behind the receive's, but on another CUDA stream: both are asked.
        # The announcement went first, and must be taken before the next chunk's.
        if self.received_ns and self._scattered_mark.query() and self._due_s is not None:
            return True
        waited_s = 0.0 if self._due_s is None else MPI.Wtime() - self._due_s
        self._endpoint.check_arrival(self._stream, waited_s)
        return False


class _ExtentReceive:
    """Places that wait for the extents of the next chunk of their stream."""

    def __init__(
        self, endpoint: NCCLSinkEndpoint, stream: Stream, extents: Sequence[tuple[int, int]]
    ) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._extents = extents
        self.received_ns = 0

    def poll(self) -> bool:
        """Receive the extents if they are announced next; return whether they were.

        Raises:
            StreamingError: they were announced, and did not come.
        """
        if not self._endpoint.has_announced_extents(self._stream):
            return False
        self.received_ns = chunk_times.now()
        self._endpoint.fetch_extents(self._stream, self._extents)
        return True


class NCCLSinkEndpoint:
    """The sink's side: receives chunks in the order of their announcements, or ahead of these.

    Args:
        comm: the communicator that the sources' :class:`NCCLDestination` has.
        links: the link to each source, by its rank in ``comm``.
        timeout: seconds within which an announced chunk must come.
        most_ahead: by the rank of a source, receives of packed chunks that are issued before they
            are announced, at most. A source that is not named has none. One that is named must have
            one stream to this sink: the order of its chunks is known by the schedule alone.
    """

    by_address = True

    def __init__(
        self,
        comm: MPI.Intracomm,
        links: Mapping[int, NCCLLink],
        timeout: float = 60.0,
        most_ahead: Mapping[int, int] | None = None,
    ) -> None:
        self._notifications = Notifications(comm)
        self._links = dict(links)
        self._most_ahead = dict(most_ahead or {})
        self._timeout_s = timeout
        self._announced: dict[int, deque[Announcement]] = {peer: deque() for peer in links}
        # By source and stream: receives that are not issued, in order.
        self._waiting: defaultdict[tuple[int, int], deque[_PackedReceive]] = defaultdict(deque)
        # By source: receives that are issued, and whose announcements are not taken, in order.
        self._unannounced: dict[int, deque[_PackedReceive]] = {peer: deque() for peer in links}
        self._receives: defaultdict[StreamKey, deque[_PackedReceive | _ExtentReceive]]
        self._receives = defaultdict(deque)  # those not acknowledged yet, oldest first
        self._failed = False

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> _PackedReceive:
        """Receive the stream's next chunk into ``packed`` once it is polled for; scatter it."""
        # Nothing is issued here: a kernel that waits for the source would hold up whatever the
        # owner still does on this GPU before the source begins.
        packed_receive = _PackedReceive(self, stream, packed, scatter)
        self._waiting[stream.peer_rank, stream.id].append(packed_receive)
        self._receives[stream.key].append(packed_receive)
        return packed_receive

    def receive_extents(
        self, stream: Stream, extents: Sequence[tuple[int, int]], each_complete: bool
    ) -> _ExtentReceive:
        """Receive the next chunk's extents, given as (address, bytes), once they are announced."""
        extent_receive = _ExtentReceive(self, stream, extents)
        self._receives[stream.key].append(extent_receive)
        return extent_receive

    def take_announcements(self, stream: Stream) -> None:
        """Take announcements of packed chunks; grant and issue the receives that may come next.

        Raises:
            StreamingError: the two sides do not have the same schedule.
        """
        peer = stream.peer_rank
        announced = self._listen(peer)
        unannounced = self._unannounced[peer]
        # Only the oldest announcement may be granted: NCCL matches messages by their order.
        while announced and announced[0].form == ChunkForm.PACKED:
            stream_id = announced[0].stream_id
            # Receives that are issued ahead stand before all others in NCCL's order. Then the
            # announcement belongs to the oldest of these, and nothing is left to grant.
            expected = unannounced or self._waiting[peer, stream_id]
            if not expected:
                break
            _check_size(announced.popleft(), expected[0].packed.numel(), peer)
            if not unannounced:
                self._issue_next(peer, stream_id)
            unannounced.popleft().note_announced()
        most_ahead = self._most_ahead.get(peer, 0)
        while len(unannounced) < most_ahead and self._waiting[peer, stream.id]:
            self._issue_next(peer, stream.id)

    def has_announced_extents(self, stream: Stream) -> bool:
        """Return whether the source has announced extents of the stream next."""
        announced = self._listen(stream.peer_rank)
        return (
            bool(announced)
            and announced[0].form != ChunkForm.PACKED
            and announced[0].stream_id == stream.id
        )

    def fetch_extents(self, stream: Stream, extents: Sequence[tuple[int, int]]) -> None:
        """Receive announced extents, each straight into its place; return when all are there.

        Raises:
            StreamingError: they did not come.
        """
        peer = stream.peer_rank
        announcement = self._announced[peer].popleft()
        link = self._links[peer]
        _check_size(announcement, sum(nbytes for _, nbytes in extents), peer)
        self._notifications.send(peer, Grant(stream.id))
        # A mark each block: a lost source is noticed within one.
        earlier_mark: CudaStreamMark | None = None
        is_grouped = announcement.form == ChunkForm.IN_GROUPS
        block_extent_count = MOST_EXTENTS_PER_GROUP if is_grouped else MOST_SINGLE_EXTENTS
        for start in range(0, len(extents), block_extent_count):
            _issue_block(link, extents[start : start + block_extent_count], announcement.form)
            newest_mark = link.mark()
            if earlier_mark is not None:  # one block is always issued ahead
                self._wait(earlier_mark, stream)
            earlier_mark = newest_mark
        if earlier_mark is not None:
            self._wait(earlier_mark, stream)

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the stream's oldest chunk not yet acknowledged is in its place."""
        sink_ns = chunk_times.now() - self._receives[stream.key].popleft().received_ns
        self._notifications.send(stream.peer_rank, Acknowledgement(stream.id, sink_ns))

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(self._notifications.is_drained, "acknowledgements", self._timeout_s)

    def close(self) -> None:
        """Release the links, which needs the sources to do the same; after an error, abort them."""
        for link in self._links.values():
            if self._failed:
                link.abort()
            else:
                link.close()

    def abort(self) -> None:
        """Abort the links after an error elsewhere: no kernel may wait for a lost source."""
        self._failed = True
        for link in self._links.values():
            link.abort()

    def check_arrival(self, stream: Stream, waited_s: float) -> None:
        """Check on a chunk that was announced ``waited_s`` seconds ago and is not there yet.

        Raises:
            StreamingError: it is overdue or NCCL has failed; the links are aborted.
        """
        check_link(self._links[stream.peer_rank])
        if waited_s > self._timeout_s:
            self.abort()
            raise StreamingError(
                f"rank {stream.peer} announced a chunk of stream {stream.id} "
                f"that did not come within {waited_s:.0f} s"
            )

    def _issue_next(self, peer: int, stream_id: int) -> None:
        """Grant the next packed chunk of a source's stream, and issue its receive."""
        packed_receive = self._waiting[peer, stream_id].popleft()
        # The grant goes first: until the source sends, the receive only occupies this GPU.
        self._notifications.send(peer, Grant(stream_id))
        packed_receive.issue(self._links[peer])
        self._unannounced[peer].append(packed_receive)

    def _listen(self, peer: int) -> deque[Announcement]:
        announced = self._announced[peer]
        announced.extend(self._notifications.receive(peer, Announcement))
        return announced

    def _wait(self, mark: CudaStreamMark, stream: Stream) -> None:
        began_s = MPI.Wtime()

        def has_arrived() -> bool:
            if mark.query():
                return True
            self.check_arrival(stream, MPI.Wtime() - began_s)
            return False

        wait_asleep(has_arrived, "extents")


def _issue_block(link: NCCLLink, extents: Sequence[tuple[int, int]], form: int) -> None:
    receive = link.recv
    if form == ChunkForm.IN_GROUPS:
        with link.group():
            for address, nbytes in extents:
                receive(address, nbytes)
    else:
        for address, nbytes in extents:
            receive(address, nbytes)


def _check_size(announcement: Announcement, nbytes: int, peer: int) -> None:
    """Raise StreamingError if the two sides do not have the same schedule."""
    if announcement.nbytes != nbytes:
        raise StreamingError(
            f"rank {peer} announced {announcement.nbytes} bytes as chunk "
            f"{announcement.chunk_index} of stream {announcement.stream_id}, "
            f"where {nbytes} are expected"
        )
