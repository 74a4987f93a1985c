"""``mpi``: chunks as messages to a sink's memory, on a communicator of their own.

A message carries the chunk and nothing else: both sides know the schedule. The sink acknowledges
each chunk once it is in its place. A send that has merely left does not count as complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mpi4py import MPI

from ..schedule import Chunk
from ..waiting import wait_asleep
from .base import RemoteDestination, Stream, StreamingError


def _data_tag(stream: Stream) -> int:
    return 2 * stream.id


def _ack_tag(stream: Stream) -> int:
    return 2 * stream.id + 1


class MPIDestination(RemoteDestination[tuple[MPI.Request, MPI.Request]]):
    """The source's side.

    Args:
        comm: shared by all sources and sinks. Give it a duplicate that nothing else uses, so that
            no other message can be mistaken for a chunk.

    Raises:
        StreamingError: the MPI library does not let a second thread call it.
    """

    name = "mpi"

    def __init__(self, comm: MPI.Intracomm) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StreamingError(
                "this MPI library does not grant MPI_THREAD_MULTIPLE, which streaming by mpi needs"
            )
        super().__init__()
        self._comm = comm

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        ack = self._expect_ack(stream)
        message = (packed.numpy(), MPI.BYTE)
        send = self._comm.Isend(message, stream.peer_rank, _data_tag(stream))
        self._under_way[stream.key].append((send, ack))

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        peer, tag = stream.peer_rank, _data_tag(stream)
        self._under_way[stream.key].append((MPI.REQUEST_NULL, self._expect_ack(stream)))
        if each_complete:
            send = self._comm.Ssend  # returns only once the sink has taken the extent
            for block in self.counted(extents):
                for extent in block:
                    send(extent, peer, tag)
        else:
            issue = self._comm.Isend
            MPI.Request.Waitall(
                [issue(extent, peer, tag) for block in self.counted(extents) for extent in block]
            )

    def _expect_ack(self, stream: Stream) -> MPI.Request:
        # Posted before the chunk leaves, so that the acknowledgement finds its receive. mpi4py's
        # request keeps the one-byte buffer alive. Nobody reads it: that it came is the message.
        return self._comm.Irecv((bytearray(1), MPI.BYTE), stream.peer_rank, _ack_tag(stream))

    def completed(self, stream: Stream) -> int:
        under_way = self._under_way[stream.key]
        # Both requests: acknowledged, and the buffer of the send is free as well.
        while under_way and all(request.Test() for request in under_way[0]):
            under_way.popleft()
            self._completed[stream.key] += 1
        return self._completed[stream.key]


class _Packed:
    """A packed chunk that is being received, and is scattered once it has arrived."""

    __slots__ = ("_packed", "_request", "_scatter")

    def __init__(
        self,
        request: MPI.Request,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None],
    ) -> None:
        self._request, self._packed, self._scatter = request, packed, scatter

    def done(self) -> bool:
        if not self._request.Test():
            return False
        self._scatter(self._packed)
        return True


class _Batch:
    """Extents of a chunk whose receives have all been issued."""

    def __init__(self, requests: list[MPI.Request]) -> None:
        self._requests = requests

    def done(self) -> bool:
        if not self._requests[0].Test():
            return False
        MPI.Request.Waitall(self._requests)  # the first has come, so the others are on their way
        return True


class _OneByOne:
    """Extents of a chunk that are received one by one, once the first of them arrives."""

    def __init__(
        self, comm: MPI.Intracomm, peer: int, tag: int, extents: Sequence[memoryview]
    ) -> None:
        self._comm, self._peer, self._tag, self._extents = comm, peer, tag, extents

    def done(self) -> bool:
        if not self._comm.Iprobe(self._peer, self._tag):
            return False
        receive, peer, tag = self._comm.Recv, self._peer, self._tag
        # Blocking is right here: the source sends the extents of this chunk and nothing else.
        for extent in self._extents:
            receive(extent, peer, tag)
        return True


class MPISinkEndpoint:
    """The sink's side: receives a stream's chunks in order and acknowledges them.

    Args:
        comm: the communicator that the sources' :class:`MPIDestination` has.
    """

    by_address = False

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._acks: list[MPI.Request] = []
        self._ack = bytearray(1)  # never written, so all sends can share it at once

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> _Packed:
        """Begin to receive the stream's next chunk into ``packed``; then scatter it."""
        message = (packed.numpy(), MPI.BYTE)
        request = self._comm.Irecv(message, stream.peer_rank, _data_tag(stream))
        return _Packed(request, packed, scatter)

    def receive_extents(
        self, stream: Stream, extents: Sequence[memoryview], each_complete: bool
    ) -> _Batch | _OneByOne:
        """Receive the next chunk's extents, each a message, straight into views of the cache."""
        peer, tag = stream.peer_rank, _data_tag(stream)
        if each_complete:
            return _OneByOne(self._comm, peer, tag, extents)
        receive = self._comm.Irecv
        return _Batch([receive(extent, peer, tag) for extent in extents])

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is in its place."""
        # Forget the sends that are done. MPI frees a request only when somebody tests it.
        self._acks = [request for request in self._acks if not request.Test()]
        message = (self._ack, MPI.BYTE)
        self._acks.append(self._comm.Isend(message, stream.peer_rank, _ack_tag(stream)))

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(lambda: MPI.Request.Testall(self._acks), "acknowledgements")
        self._acks = []

    def close(self) -> None:
        """Wait until every acknowledgement has left; nothing else is held."""
        self.finish()
