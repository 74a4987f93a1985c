"""``mpi``: chunks as messages to a sink's memory, on a communicator of their own.

A message carries the chunk and nothing else: both sides know the schedule. The sink acknowledges
each chunk once it is in its place, by the nanoseconds that this took after the chunk's arrival. A
send that has merely left does not count as complete.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import torch
from mpi4py import MPI

from .. import chunk_times
from ..schedule import Chunk
from ..waiting import wait_asleep
from . import registry
from .base import RemoteDestination, Stream, StreamingError, StreamKey


def _make_data_tag(stream: Stream) -> int:
    return 2 * stream.id


def _make_ack_tag(stream: Stream) -> int:
    return 2 * stream.id + 1


_ACK_NBYTES = 8
"""An acknowledgement is a duration in nanoseconds, an integer of this size."""

_TESTS_PER_LOOK = 8
"""Tests of a large message before the next nap; an idle one takes 0.1 µs."""


def _is_done(request: MPI.Request) -> bool:
    """Return whether a request is done. Between hosts this moves it on, too.

    A test empties the socket's window, and only then the sender fills it again. With one test per
    nap, a message of 3 MB between two hosts took 27 ms on a link of any speed.
    """
    return any(request.Test() for _ in range(_TESTS_PER_LOOK))


class _SentChunk:
    """A chunk on its way.

    Attributes:
        moved_ns: when its send was seen to be done; None as long as it is not.
    """

    __slots__ = ("_ack", "_send", "_sink_ns", "moved_ns")

    def __init__(self, send: MPI.Request, ack: MPI.Request, sink_ns_bytes: bytearray) -> None:
        self._send = send
        self._ack = ack
        self._sink_ns = sink_ns_bytes
        self.moved_ns: int | None = None

    def is_acknowledged(self) -> bool:
        """Return whether the sink has acknowledged it and its buffer is free as well."""
        if self.moved_ns is None:
            if not _is_done(self._send):
                return False
            self.moved_ns = chunk_times.now()
        return self._ack.Test()

    @property
    def sink_ns(self) -> int:
        return int.from_bytes(self._sink_ns, "little")


class MPIDestination(RemoteDestination[_SentChunk]):
    """The source's side.

    Args:
        comm: shared by all sources and sinks. Give it a duplicate that nothing else uses, so that
            no other message can be mistaken for a chunk.

    Raises:
        StreamingError: the MPI library does not let a second thread call it.
    """

    entry = registry.MPI

    def __init__(self, comm: MPI.Intracomm) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StreamingError(
                "this MPI library does not grant MPI_THREAD_MULTIPLE, which streaming by mpi needs"
            )
        super().__init__()
        self._comm = comm

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Issue one non-blocking send; the chunk is complete once the sink acknowledges it."""
        ack, sink_ns_bytes = self._expect_ack(stream)
        message = (packed.numpy(), MPI.BYTE)
        send = self._comm.Isend(message, stream.peer_rank, _make_data_tag(stream))
        self._under_way[stream.key].append(_SentChunk(send, ack, sink_ns_bytes))

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Send each extent as a message of its own.

        At level 0 (``each_complete``) each send is synchronous and blocks until the sink takes the
        extent. At ``0-batched`` all sends are issued and then waited for together.
        """
        peer = stream.peer_rank
        tag = _make_data_tag(stream)
        sent_chunk = _SentChunk(MPI.REQUEST_NULL, *self._expect_ack(stream))
        self._under_way[stream.key].append(sent_chunk)
        if each_complete:
            send = self._comm.Ssend  # returns only once the sink has taken the extent
            for block in self.cut_and_count(extents):
                for extent in block:
                    send(extent, peer, tag)
        else:
            issue = self._comm.Isend
            MPI.Request.Waitall(
                [
                    issue(extent, peer, tag)
                    for block in self.cut_and_count(extents)
                    for extent in block
                ]
            )

    def _expect_ack(self, stream: Stream) -> tuple[MPI.Request, bytearray]:
        # Posted before the chunk leaves, so that the acknowledgement finds its receive.
        sink_ns_bytes = bytearray(_ACK_NBYTES)
        ack = self._comm.Irecv((sink_ns_bytes, MPI.BYTE), stream.peer_rank, _make_ack_tag(stream))
        return ack, sink_ns_bytes

    def poll_completed(self, stream: Stream) -> int:
        """Test the sends and acknowledgements under way, oldest first, and file their receipts."""
        under_way = self._under_way[stream.key]
        while under_way and under_way[0].is_acknowledged():
            acknowledged = under_way.popleft()
            self._completed[stream.key] += 1
            if self.timed:
                self._receipts[stream.key].append((acknowledged.moved_ns, acknowledged.sink_ns))
        return self._completed[stream.key]


class _PackedReceive:
    """A packed chunk that is being received, and is scattered once it has arrived."""

    __slots__ = ("_packed", "_request", "_scatter", "received_ns")

    def __init__(
        self,
        request: MPI.Request,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None],
    ) -> None:
        self._request = request
        self._packed = packed
        self._scatter = scatter
        self.received_ns = 0

    def poll(self) -> bool:
        if not _is_done(self._request):
            return False
        self.received_ns = chunk_times.now()
        self._scatter(self._packed)
        return True


class _BatchReceive:
    """Extents of a chunk whose receives have all been issued."""

    def __init__(self, requests: list[MPI.Request]) -> None:
        self._requests = requests
        self.received_ns = 0

    def poll(self) -> bool:
        if not self._requests[0].Test():
            return False
        self.received_ns = chunk_times.now()
        MPI.Request.Waitall(self._requests)  # the first has come, so the others are on their way
        return True


class _OneByOneReceive:
    """Extents of a chunk that are received one by one, once the first of them arrives."""

    def __init__(
        self, comm: MPI.Intracomm, peer: int, tag: int, extents: Sequence[memoryview]
    ) -> None:
        self._comm = comm
        self._peer = peer
        self._tag = tag
        self._extents = extents
        self.received_ns = 0

    def poll(self) -> bool:
        if not self._comm.Iprobe(self._peer, self._tag):
            return False
        self.received_ns = chunk_times.now()
        receive = self._comm.Recv
        peer = self._peer
        tag = self._tag
        # Blocking is right here: the source sends the extents of this chunk and nothing else.
        for extent in self._extents:
            receive(extent, peer, tag)
        return True


_Receiving = _PackedReceive | _BatchReceive | _OneByOneReceive


class MPISinkEndpoint:
    """The sink's side: receives a stream's chunks in order and acknowledges them.

    Args:
        comm: the communicator that the sources' :class:`MPIDestination` has.
    """

    by_address = False

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._acks: list[MPI.Request] = []
        # The receives of each stream that are not acknowledged yet, oldest first.
        self._receives: defaultdict[StreamKey, deque[_Receiving]] = defaultdict(deque)

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> _PackedReceive:
        """Begin to receive the stream's next chunk into ``packed``; then scatter it."""
        message = (packed.numpy(), MPI.BYTE)
        request = self._comm.Irecv(message, stream.peer_rank, _make_data_tag(stream))
        receive = _PackedReceive(request, packed, scatter)
        self._receives[stream.key].append(receive)
        return receive

    def receive_extents(
        self, stream: Stream, extents: Sequence[memoryview], each_complete: bool
    ) -> _BatchReceive | _OneByOneReceive:
        """Receive the next chunk's extents, each a message, straight into views of the cache."""
        peer = stream.peer_rank
        tag = _make_data_tag(stream)
        receive: _OneByOneReceive | _BatchReceive
        if each_complete:
            receive = _OneByOneReceive(self._comm, peer, tag, extents)
        else:
            irecv = self._comm.Irecv
            receive = _BatchReceive([irecv(extent, peer, tag) for extent in extents])
        self._receives[stream.key].append(receive)
        return receive

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is in its place."""
        # Forget the sends that are done. MPI frees a request only when somebody tests it.
        self._acks = [request for request in self._acks if not request.Test()]
        sink_ns = chunk_times.now() - self._receives[stream.key].popleft().received_ns
        message = (sink_ns.to_bytes(_ACK_NBYTES, "little"), MPI.BYTE)
        self._acks.append(self._comm.Isend(message, stream.peer_rank, _make_ack_tag(stream)))

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(lambda: MPI.Request.Testall(self._acks), "acknowledgements")
        self._acks = []

    def close(self) -> None:
        """Wait until every acknowledgement has left; nothing else is held."""
        self.finish()
