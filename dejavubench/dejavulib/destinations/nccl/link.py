"""What both sides of ``nccl`` have in common: links, notifications by MPI, and how chunks are announced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream

GROUP = 2048
"""Runs that are issued as one operation at most (NCCL's group), where runs are not waited for one by one."""

PACKED, RUN_BY_RUN, IN_GROUPS = range(3)
"""How a chunk comes: what an announcement says."""

ANNOUNCE, GRANT, ACK = range(3)  # tags


class Mark(Protocol):
    """A point in a link's stream of work."""

    def query(self) -> bool: ...


class Link(Protocol):
    """What is needed of NCCL: one direction between two ranks, with a stream of its own. Addresses are the device's.

    ``filled`` is what has been issued so far on torch's current stream, which :meth:`after` makes the link wait for;
    ``mark`` what has been issued on the link. Inside :meth:`beside` torch's current stream is one where what has been
    received so far is there. :meth:`abort` ends whatever waits, from any thread.
    """

    def send(self, address: int, nbytes: int) -> None: ...
    def recv(self, address: int, nbytes: int) -> None: ...
    def group(self) -> AbstractContextManager[Any]: ...
    def filled(self) -> Mark: ...
    def after(self, filled: Any) -> None: ...
    def beside(self) -> AbstractContextManager[Any]: ...
    def mark(self) -> Mark: ...
    def synchronize(self) -> None: ...
    def check(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


class Mail:
    """Small messages of four numbers to and from the other side."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._leaving: deque[MPI.Request] = deque()

    def send(self, peer: int, tag: int, *numbers: int) -> None:
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
        self._leaving.append(
            self._comm.Isend(np.array([*numbers, 0, 0, 0, 0][:4], dtype=np.int64), peer, tag)
        )

    def receive(self, peer: int, tag: int) -> Iterator[tuple[int, int, int, int]]:
        """What has come, in order."""
        letter = np.empty(4, dtype=np.int64)
        while self._comm.Iprobe(peer, tag):
            self._comm.Recv(letter, peer, tag)
            first, second, third, fourth = letter.tolist()
            yield first, second, third, fourth

    def all_left(self) -> bool:
        while self._leaving and self._leaving[0].Test():
            self._leaving.popleft()
        return not self._leaving


def peer_of(stream: Stream) -> int:
    """Return the rank at the other side of a stream."""
    assert stream.peer is not None
    return stream.peer
