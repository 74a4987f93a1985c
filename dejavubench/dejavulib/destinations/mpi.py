"""``mpi``: chunks as messages to a sink's memory, on a communicator of their own.

A message carries nothing but the chunk: both sides know the schedule. The sink acknowledges each chunk
once it is where it belongs; a send that has merely left counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import (
    Capabilities,
    RemoteDestination,
    Stream,
    StreamingError,
)
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import wait_asleep


def _data_tag(stream: Stream) -> int:
    return 2 * stream.id


def _ack_tag(stream: Stream) -> int:
    return 2 * stream.id + 1


class MPIDestination(RemoteDestination[tuple[MPI.Request, MPI.Request]]):
    """The source's side.

    Args:
        comm: shared by all sources and sinks; duplicated, so that no other message can be mistaken for a chunk.

    Raises:
        StreamingError: the MPI library does not let a second thread call it.
    """

    name = "mpi"
    capabilities = Capabilities(remote=True)

    def __init__(self, comm: MPI.Intracomm) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StreamingError(
                "this MPI library does not grant MPI_THREAD_MULTIPLE, which streaming by mpi needs"
            )
        super().__init__()
        self._comm = comm

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        assert stream.peer is not None
        ack = self._expect_ack(stream)
        send = self._comm.Isend((packed.numpy(), MPI.BYTE), stream.peer, _data_tag(stream))
        self._under_way[stream.key].append((send, ack))

    def flush_runs(
        self, stream: Stream, chunk: Chunk, runs: Sequence[memoryview], each_complete: bool
    ) -> None:
        assert stream.peer is not None
        peer, tag = stream.peer, _data_tag(stream)
        self._under_way[stream.key].append((MPI.REQUEST_NULL, self._expect_ack(stream)))
        if each_complete:
            send = self._comm.Ssend  # returns only once the sink has taken the run
            for block in self.counted(runs):
                for run in block:
                    send(run, peer, tag)
        else:
            issue = self._comm.Isend
            MPI.Request.Waitall(
                [issue(run, peer, tag) for block in self.counted(runs) for run in block]
            )

    def _expect_ack(self, stream: Stream) -> MPI.Request:
        assert stream.peer is not None
        return self._comm.Irecv((bytearray(1), MPI.BYTE), stream.peer, _ack_tag(stream))

    def completed(self, stream: Stream) -> int:
        under_way = self._under_way[stream.key]
        while under_way and all(
            request.Test() for request in under_way[0]
        ):  # its buffer is free as well
            under_way.popleft()
            self._completed[stream.key] += 1
        return self._completed[stream.key]


class MPISinkEndpoint:
    """The sink's side: receives a stream's chunks, in order, and acknowledges them.

    Args:
        comm: the communicator that the sources' :class:`MPIDestination` has.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._acks: list[MPI.Request] = []
        self._ack = bytearray(1)

    def post(self, stream: Stream, packed: torch.Tensor) -> MPI.Request:
        """``fetch``: begin to receive the next chunk of the stream into ``packed``."""
        assert stream.peer is not None
        return self._comm.Irecv((packed.numpy(), MPI.BYTE), stream.peer, _data_tag(stream))

    def post_runs(self, stream: Stream, runs: Sequence[memoryview]) -> list[MPI.Request]:
        """Begin to receive runs, each a message, straight into the views of the cache that they belong to."""
        assert stream.peer is not None
        receive, peer, tag = self._comm.Irecv, stream.peer, _data_tag(stream)
        return [receive(run, peer, tag) for run in runs]

    def wait_runs(self, posted: Sequence[MPI.Request]) -> None:
        """Wait until all posted runs have arrived."""
        MPI.Request.Waitall(list(posted))

    def arriving(self, stream: Stream) -> bool:
        """Whether a message of the stream has begun to arrive that no receive was posted for."""
        assert stream.peer is not None
        return self._comm.Iprobe(stream.peer, _data_tag(stream))

    def fetch_runs(self, stream: Stream, runs: Sequence[memoryview]) -> None:
        """Receive runs one by one into the views of the cache that they belong to; each is asked for in turn."""
        assert stream.peer is not None
        receive, peer, tag = self._comm.Recv, stream.peer, _data_tag(stream)
        for run in runs:
            receive(run, peer, tag)

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is where it belongs."""
        assert stream.peer is not None
        self._acks = [request for request in self._acks if not request.Test()]
        self._acks.append(self._comm.Isend((self._ack, MPI.BYTE), stream.peer, _ack_tag(stream)))

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(lambda: MPI.Request.Testall(self._acks), "acknowledgements")
        self._acks = []

    def close(self) -> None:
        """Nothing is held but what :meth:`finish` waits for."""
        self.finish()
