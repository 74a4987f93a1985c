"""Shared by both sides of ``nccl``: links, and notifications by MPI."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

MOST_EXTENTS_PER_GROUP = 2048
"""Most extents of one operation (an NCCL group), if they are not waited for one by one."""

MOST_SINGLE_EXTENTS = MOST_EXTENTS_PER_GROUP // 8
"""Most extents that are issued ahead outside a group, where each is a kernel of its own."""


class ChunkForm(IntEnum):
    """How a chunk comes; an announcement says it."""

    PACKED = 0
    ONE_BY_ONE = 1
    IN_GROUPS = 2


class Tag(IntEnum):
    """Tags of notifications."""

    ANNOUNCE = 0
    GRANT = 1
    ACK = 2


class StreamMark(Protocol):
    """A point in a link's stream of work."""

    def query(self) -> bool:
        """Return whether the work before this point is done."""


class NCCLLink(Protocol):
    """One direction between two ranks by NCCL, with a CUDA stream of its own.

    Addresses are the device's.
    """

    def send(self, address: int, nbytes: int) -> None:
        """Issue a send on the link."""

    def recv(self, address: int, nbytes: int) -> None:
        """Issue a receive on the link."""

    def group(self) -> AbstractContextManager[object]:
        """Return a context; what is issued inside becomes one operation."""

    def mark_filled(self) -> StreamMark:
        """Mark what has been issued so far on torch's current stream."""

    def wait_for_mark(self, filled: Any) -> None:
        """Let what is issued on the link from now on begin after a mark of :meth:`mark_filled`."""

    def side_stream(self) -> AbstractContextManager[object]:
        """Return a context in which torch's current stream follows everything received so far."""

    def mark(self) -> StreamMark:
        """Mark what has been issued so far on the link."""

    def synchronize(self) -> None:
        """Wait until everything issued on the link is done; :meth:`abort` ends the wait."""

    def check(self) -> None:
        """Raise an error if something that was issued has failed since."""

    def abort(self) -> None:
        """End everything that waits on the link. From any thread."""

    def close(self) -> None:
        """Release the link; the other side must do the same."""


class Notifications:
    """Small messages of four integers to and from the other side.

    Args:
        comm: nothing else may use it.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._leaving: deque[MPI.Request] = deque()

    def send(self, peer: int, tag: Tag, *payload: int) -> None:
        """Send up to four numbers; the others are 0."""
        self._forget_sent()
        # A new array each time: mpi4py's request keeps it until the message has left.
        message = np.array([*payload, 0, 0, 0, 0][:4], dtype=np.int64)
        self._leaving.append(self._comm.Isend(message, peer, tag))

    def receive(self, peer: int, tag: Tag) -> Iterator[tuple[int, int, int, int]]:
        """Yield the messages that have come, in order."""
        message = np.empty(4, dtype=np.int64)
        while self._comm.Iprobe(peer, tag):
            self._comm.Recv(message, peer, tag)  # returns at once: Iprobe has seen this message
            first, second, third, fourth = message.tolist()
            yield first, second, third, fourth

    def is_drained(self) -> bool:
        """Return whether all messages have left."""
        self._forget_sent()
        return not self._leaving

    def _forget_sent(self) -> None:
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
