"""The part of ``raw-mpi`` that moves bytes; :mod:`raw_mpi_transport` says what it leaves out."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from mpi4py import MPI
from raw_mpi_transport import BLOCKING, NOTHING_ENTRY, POSTED

from dejavubench.dejavulib.destinations.base import (
    Destination,
    RemoteDestination,
    Stream,
    StreamingError,
    StreamKey,
)
from dejavubench.dejavulib.schedule import Chunk


class RawDestination(RemoteDestination[MPI.Request]):
    """The source's side: a message per chunk, whose bytes mean nothing."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        super().__init__()
        self._comm = comm

    @abstractmethod
    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Send a packed chunk, and count it as complete without an acknowledgement."""

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Refuse: the yardstick moves whole chunks."""
        raise StreamingError(f"{self.entry.name} moves whole chunks")

    def poll_completed(self, stream: Stream) -> int:
        """Return how many chunks were flushed, since nobody acknowledges them."""
        return self._completed[stream.key]


class BlockingDestination(RawDestination):
    """Returns from ``flush`` when MPI has the chunk, which it waits for without a nap."""

    entry = BLOCKING

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Send a chunk; return when MPI has taken it."""
        self._comm.Send((packed.numpy(), MPI.BYTE), stream.peer_rank, stream.id)
        self._completed[stream.key] += 1


class PostedDestination(RawDestination):
    """Begins to send, and counts the chunk as complete: its bytes may be sent over and over."""

    entry = POSTED

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Issue a send, and forget those that have left."""
        under_way = self._under_way[stream.key]
        while under_way and under_way[0].Test():  # MPI frees a request only when somebody tests it
            under_way.popleft()
        message = (packed.numpy(), MPI.BYTE)
        under_way.append(self._comm.Isend(message, stream.peer_rank, stream.id))
        self._completed[stream.key] += 1

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Wait until the last microbatch's sends have left."""
        MPI.Request.Waitall(list(self._under_way.pop(stream.key, deque())))
        super().begin(stream)


class Nothing(Destination):
    """Takes chunks, and moves none of them."""

    entry = NOTHING_ENTRY

    def __init__(self) -> None:
        self._completed: dict[StreamKey, int] = {}

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Count from zero again."""
        self._completed[stream.key] = 0

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Count a chunk and move nothing."""
        self._completed[stream.key] += 1

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Refuse: the yardstick moves whole chunks."""
        raise StreamingError(f"{self.entry.name} moves whole chunks")

    def poll_completed(self, stream: Stream) -> int:
        """Return how many chunks were flushed."""
        return self._completed[stream.key]


class RawSink:
    """The sink's side: a posted receive per chunk, and nothing else."""

    by_address = False

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Received:
        """Post a receive; nothing is scattered, so the cache stays as it was."""
        return Received(self._comm.Irecv((packed.numpy(), MPI.BYTE), stream.peer_rank, stream.id))

    def receive_extents(
        self, stream: Stream, extents: Sequence[memoryview], each_complete: bool
    ) -> Received:
        """Refuse: the yardstick moves whole chunks."""
        raise StreamingError("raw-mpi moves whole chunks")

    def acknowledge(self, stream: Stream) -> None:
        """Send nothing."""

    def finish(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Release nothing."""


class Received:
    """A chunk that will come as one message."""

    __slots__ = ("_request",)

    received_ns = None  # a time that this destination does not keep

    def __init__(self, request: MPI.Request) -> None:
        self._request = request

    def poll(self) -> bool:
        """Return whether the message has come."""
        return bool(self._request.Test())
