"""The sink's side of ``nccl``: grants chunks as they are announced, receives and scatters them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from mpi4py import MPI

from ... import chunk_times
from ...waiting import wait_asleep
from ..base import Stream, StreamingError, StreamKey
from .link import (
    ACK,
    ANNOUNCE,
    GRANT,
    IN_GROUPS,
    MOST_EXTENTS_PER_GROUP,
    PACKED,
    NCCLLink,
    Notifications,
    StreamMark,
)


class Announcement(NamedTuple):
    """A chunk that a source wants to send."""

    stream_id: int
    chunk: int
    nbytes: int
    kind: int


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
        self._scattered_mark: StreamMark | None = None
        self.received_ns = 0  # when it was seen that the chunk had come
        self._arrived_mark: StreamMark | None = None
        self._endpoint = endpoint
        self._stream = stream
        self._issued_s = 0.0

    def issue(self, link: NCCLLink) -> None:
        """Issue the receive, and the scatter behind it."""
        link.recv(self.packed.data_ptr(), self.packed.numel())
        self._arrived_mark = link.mark()
        # On a side stream, so that the next receive need not wait for this scatter.
        with link.side_stream():
            self.scatter(self.packed)
            self._scattered_mark = link.mark_filled()
        self._issued_s = MPI.Wtime()

    def poll(self) -> bool:
        """Take announcements; then return whether this chunk is in its place.

        Raises:
            StreamingError: it was announced, and did not come.
        """
        self._endpoint.take(self._stream)
        if self._scattered_mark is None or self._arrived_mark is None:
            return False
        if not self.received_ns and self._arrived_mark.query():
            self.received_ns = chunk_times.now()
        # The scatter's mark lies behind the receive's, but on another stream: both are asked.
        if self.received_ns and self._scattered_mark.query():
            return True
        self._endpoint.check_arrival(self._stream, MPI.Wtime() - self._issued_s)
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
    """The sink's side: receives chunks in the order in which they are announced.

    Args:
        comm: the communicator that the sources' :class:`NCCLDestination` has.
        links: the link to each source, by its rank in ``comm``.
        timeout: seconds within which an announced chunk must come.
    """

    by_address = True

    def __init__(
        self, comm: MPI.Intracomm, links: Mapping[int, NCCLLink], timeout: float = 60.0
    ) -> None:
        self._notifications = Notifications(comm)
        self._links = dict(links)
        self._timeout = timeout
        self._announced: dict[int, deque[Announcement]] = {peer: deque() for peer in links}
        self._waiting: dict[StreamKey, deque[_PackedReceive]] = {}
        self._receives: defaultdict[StreamKey, deque[_PackedReceive | _ExtentReceive]]
        self._receives = defaultdict(deque)  # those not acknowledged yet, oldest first
        self._failed = False

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> _PackedReceive:
        """Receive the stream's next chunk into ``packed`` once it is announced; scatter it."""
        receiving = _PackedReceive(self, stream, packed, scatter)
        self._waiting.setdefault(stream.key, deque()).append(receiving)
        self._receives[stream.key].append(receiving)
        return receiving

    def receive_extents(
        self, stream: Stream, extents: Sequence[tuple[int, int]], each_complete: bool
    ) -> _ExtentReceive:
        """Receive the next chunk's extents, given as (address, bytes), once they are announced."""
        receiving = _ExtentReceive(self, stream, extents)
        self._receives[stream.key].append(receiving)
        return receiving

    def take(self, stream: Stream) -> None:
        """Grant and issue the packed chunks that are announced next and have a buffer."""
        peer = stream.peer_rank
        announced = self._listen(peer)
        link = self._links[peer]
        # Only the oldest announcement may be granted: NCCL matches messages by their order.
        while (
            announced
            and announced[0].kind == PACKED
            and (waiting := self._waiting.get((peer, announced[0].stream_id)))
        ):
            announcement = announced.popleft()
            receiving = waiting.popleft()
            _check_size(announcement, receiving.packed.numel(), peer)
            # The grant goes first: until the source sends, the receive only occupies this GPU.
            self._notifications.send(peer, GRANT)
            receiving.issue(link)

    def has_announced_extents(self, stream: Stream) -> bool:
        """Return whether the source has announced extents of the stream next."""
        announced = self._listen(stream.peer_rank)
        return (
            bool(announced) and announced[0].kind != PACKED and announced[0].stream_id == stream.id
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
        self._notifications.send(peer, GRANT)
        earlier_mark: StreamMark | None = (
            None  # a mark each block: a lost source is noticed within one
        )
        # Outside a group, each extent is a kernel of its own: fewer are issued ahead.
        block_extent_count = (
            MOST_EXTENTS_PER_GROUP
            if announcement.kind == IN_GROUPS
            else MOST_EXTENTS_PER_GROUP // 8
        )
        for start in range(0, len(extents), block_extent_count):
            _issue_block(link, extents[start : start + block_extent_count], announcement.kind)
            newest_mark = link.mark()
            if earlier_mark is not None:  # one block is always issued ahead
                self._wait(earlier_mark, stream)
            earlier_mark = newest_mark
        if earlier_mark is not None:
            self._wait(earlier_mark, stream)

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the stream's oldest chunk not yet acknowledged is in its place."""
        sink_ns = chunk_times.now() - self._receives[stream.key].popleft().received_ns
        self._notifications.send(stream.peer_rank, ACK, stream.id, sink_ns)

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(self._notifications.is_drained, "acknowledgements", self._timeout)

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
        """Check on a chunk that was granted ``waited_s`` seconds ago and is not there yet.

        Raises:
            StreamingError: it is overdue or NCCL has failed; the links are aborted.
        """
        self._links[stream.peer_rank].check()
        if waited_s > self._timeout:
            self.abort()
            raise StreamingError(
                f"rank {stream.peer} announced a chunk of stream {stream.id} "
                f"that did not come within {waited_s:.0f} s"
            )

    def _listen(self, peer: int) -> deque[Announcement]:
        announced = self._announced[peer]
        notifications = self._notifications.receive(peer, ANNOUNCE)
        announced.extend(Announcement(*fields) for fields in notifications)
        return announced

    def _wait(self, mark: StreamMark, stream: Stream) -> None:
        began_s = MPI.Wtime()

        def has_arrived() -> bool:
            if mark.query():
                return True
            self.check_arrival(stream, MPI.Wtime() - began_s)
            return False

        wait_asleep(has_arrived, "extents")


def _issue_block(link: NCCLLink, extents: Sequence[tuple[int, int]], kind: int) -> None:
    receive = link.recv
    if kind == IN_GROUPS:
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
            f"rank {peer} announced {announcement.nbytes} bytes as chunk {announcement.chunk} of "
            f"stream {announcement.stream_id}, where {nbytes} are expected"
        )
