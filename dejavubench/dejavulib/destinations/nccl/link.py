"""Shared by both sides of ``nccl``: links, and notifications by MPI."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from mpi4py import MPI

from ..base import WAIT_FOR_PEER_REPORT_S

MOST_EXTENTS_PER_GROUP = 2048
"""Most extents of one operation (an NCCL group), if they are not waited for one by one."""

MOST_SINGLE_EXTENTS = MOST_EXTENTS_PER_GROUP // 8
"""Most extents that are issued ahead outside a group, where each is a kernel of its own."""


class ChunkForm(IntEnum):
    """How a chunk comes; an announcement says it."""

    PACKED = 0
    ONE_BY_ONE = 1
    IN_GROUPS = 2


class Announcement(NamedTuple):
    """A source wants to send a chunk."""

    stream_id: int
    chunk_index: int
    nbytes: int
    form: int
    """A :class:`ChunkForm`."""


class Grant(NamedTuple):
    """The sink lets the source send the next chunk of a stream."""

    stream_id: int


class Acknowledgement(NamedTuple):
    """A chunk of a stream is in its place, ``sink_ns`` nanoseconds after it was seen to come."""

    stream_id: int
    sink_ns: int


NCCLNotification = Announcement | Grant | Acknowledgement
"""A message from one side to the other. All fields are integers."""

_TAGS: dict[type[NCCLNotification], int] = {Announcement: 0, Grant: 1, Acknowledgement: 2}
"""MPI's tag of each kind."""

_NotificationT = TypeVar("_NotificationT", Announcement, Grant, Acknowledgement)


class CudaStreamMark(Protocol):
    """A point in the work of a CUDA stream."""

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

    def mark_filled(self) -> CudaStreamMark:
        """Mark what has been issued so far on torch's current stream."""

    def wait_for_mark(self, mark: Any) -> None:
        """Let what is issued on the link from now on begin after a mark of :meth:`mark_filled`.

        Args:
            mark: of this kind of link: each kind knows its own marks alone.
        """

    def side_cuda_stream(self) -> AbstractContextManager[object]:
        """Return a context in which torch's current stream follows everything received so far."""

    def mark(self) -> CudaStreamMark:
        """Mark what has been issued so far on the link."""

    def synchronize(self) -> None:
        """Wait until everything issued on the link is done; :meth:`abort` ends the wait."""

    def check(self) -> None:
        """Raise an error if something that was issued has failed since."""

    def abort(self) -> None:
        """End everything that waits on the link. From any thread."""

    def close(self) -> None:
        """Release the link; the other side must do the same."""


def check_link(link: NCCLLink) -> None:
    """Raise what :meth:`NCCLLink.check` raises, after :data:`WAIT_FOR_PEER_REPORT_S`."""
    try:
        link.check()
    except Exception:
        # NCCL fails here, too, once the other rank has failed: that one reports the cause.
        time.sleep(WAIT_FOR_PEER_REPORT_S)
        raise


class Notifications:
    """Notifications to and from the other sides.

    Args:
        comm: nothing else may use it.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._leaving: deque[MPI.Request] = deque()

    def send(self, peer: int, notification: NCCLNotification) -> None:
        """Send a notification; never waits."""
        self._forget_sent()
        # A new array each time: mpi4py's request keeps it until the message has left.
        message = np.array(notification, dtype=np.int64)
        self._leaving.append(self._comm.Isend(message, peer, _TAGS[type(notification)]))

    def receive(self, peer: int, kind: type[_NotificationT]) -> Iterator[_NotificationT]:
        """Yield the notifications of one kind that have come, in order."""
        message = np.empty(len(kind._fields), dtype=np.int64)
        while self._comm.Iprobe(peer, _TAGS[kind]):
            # Returns at once: Iprobe has seen this message.
            self._comm.Recv(message, peer, _TAGS[kind])
            yield kind._make(message.tolist())

    def is_drained(self) -> bool:
        """Return whether all messages have left."""
        self._forget_sent()
        return not self._leaving

    def _forget_sent(self) -> None:
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
