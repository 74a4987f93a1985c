"""``toy``: chunks as MPI messages to a sink that keeps them in a deque. An example to copy.

This module is the library's part of a destination: the source's side and the sink's side together.
It is imported when the first arm needs it, so it may import torch and MPI.

Both sides know the schedule, so a message holds nothing but its chunk. A chunk is complete when the
sink has put it in its place and has acknowledged it, not when its message has left.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import RemoteDestination, Stream, StreamKey
from dejavubench.dejavulib.destinations.registry import DESTINATIONS
from dejavubench.dejavulib.schedule import Chunk

CORRUPTS = "TOY_CORRUPTS"
"""Environment variable for the test of verification.

It holds the number of a message, counted from 0 over all that a sink takes. The sink flips a bit
of this message's last byte.
"""


def _chunk_tag(stream: Stream) -> int:
    return 2 * stream.id


def _ack_tag(stream: Stream) -> int:
    return 2 * stream.id + 1


class ToyDestination(RemoteDestination[tuple[list[MPI.Request], MPI.Request]]):
    """The source's side. One helper thread calls it, the chunks of a stream in order."""

    entry = DESTINATIONS["toy"]

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()
        self._comm = comm

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        self._send(stream, [packed.numpy()])

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        # At the unbuffered levels nothing is gathered: each extent is a message of its own.
        MPI.Request.Waitall(self._send(stream, extents))

    def _send(
        self, stream: Stream, parts: Sequence[np.ndarray] | Sequence[memoryview]
    ) -> list[MPI.Request]:
        peer = stream.peer_rank
        acknowledged = self._comm.Irecv(bytearray(1), peer, _ack_tag(stream))
        sends = [self._comm.Isend(part, peer, _chunk_tag(stream)) for part in parts]
        # The base class counts streams' chunks; the oldest one on its way stands first.
        self._under_way[stream.key].append((sends, acknowledged))
        return sends

    def poll_completed(self, stream: Stream) -> int:
        under_way = self._under_way[stream.key]
        while under_way:
            sends, acknowledged = under_way[0]
            # Both: the sink has the chunk in its place, and the staging slot may be used again.
            if not (MPI.Request.Testall(sends) and acknowledged.Test()):
                break
            under_way.popleft()
            self._completed[stream.key] += 1
        return self._completed[stream.key]


class ToySink:
    """The sink's side: messages are kept in a deque until a receive asks for them."""

    by_address = False

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._kept: defaultdict[StreamKey, deque[np.ndarray]] = defaultdict(deque)
        self._acks: list[MPI.Request] = []
        self._taken = 0
        self._corrupts = int(os.environ.get(CORRUPTS, -1))

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> _Receive:
        """Receive the stream's next chunk into ``packed``, then put it in its place."""
        return _Receive(self, stream, [packed.numpy().data], lambda: scatter(packed))

    def receive_extents(
        self, stream: Stream, extents: Sequence[memoryview], each_complete: bool
    ) -> _Receive:
        """Receive the next chunk extent by extent, straight into these views of the cache."""
        return _Receive(self, stream, extents, lambda: None)

    def keep_arrived(self, stream: Stream) -> deque[np.ndarray]:
        """Take every message of a stream that has arrived; return all that are kept."""
        status, kept = MPI.Status(), self._kept[stream.key]
        while self._comm.Iprobe(stream.peer_rank, _chunk_tag(stream), status):
            message = np.empty(status.Get_count(), np.uint8)
            self._comm.Recv(message, stream.peer_rank, _chunk_tag(stream))
            if self._taken == self._corrupts:
                message[-1] ^= 0x01
            self._taken += 1
            kept.append(message)
        return kept

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that its oldest chunk is in its place."""
        self._acks.append(self._comm.Isend(bytearray(1), stream.peer_rank, _ack_tag(stream)))

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        MPI.Request.Waitall(self._acks)
        self._acks.clear()

    def close(self) -> None:
        self.finish()


class _Receive:
    """A chunk that will come: as one message, or extent by extent."""

    received_ns = None  # a time that this destination does not keep

    def __init__(
        self,
        sink: ToySink,
        stream: Stream,
        places: Sequence[memoryview],
        on_arrival: Callable[[], None],
    ) -> None:
        self._sink = sink
        self._stream = stream
        self._on_arrival = on_arrival
        self._places = deque(places)

    def poll(self) -> bool:
        """Return whether the chunk is in its place. It is called often and must not wait."""
        kept = self._sink.keep_arrived(self._stream)
        while self._places and kept:
            self._places.popleft()[:] = kept.popleft().data
        if self._places:
            return False
        self._on_arrival()
        return True
