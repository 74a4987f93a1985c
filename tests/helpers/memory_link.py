"""An NCCL link made of memory, and the two sides of a stream over it in one process."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.nccl import NCCLDestination, NCCLSinkEndpoint
from dejavubench.dejavulib.packing import staging
from dejavubench.dejavulib.streamer import Streamer
from helpers.fake_destination import PATIENCE


class Mark:
    """A point in a link's work, passed once ``is_reached`` says so."""

    def __init__(self, is_reached: Callable[[], bool]) -> None:
        self.query = is_reached


class MemoryLink:
    """Both ends of a link within one process, matched by order alone, as NCCL's are.

    The main thread is the sink. What its receives wait for happens when their message comes.
    """

    def __init__(self, lost: bool = False) -> None:
        self.sizes: list[int] = []
        self.groups: list[int] = []
        self.closed = 0
        self.aborted = threading.Event()
        self.most_waiting = 0  # receives that waited for a message at the same time
        self._lost = lost
        self._lock = threading.RLock()
        self._messages: deque[bytes] = deque()
        self._waiting: deque[tuple[int, int]] = deque()  # receives: address and bytes
        self._received_count = 0
        self._issued_count = 0
        self._followers: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, address: int, nbytes: int) -> None:
        assert not self.aborted.is_set()
        self.sizes.append(nbytes)
        if not self._lost:
            with self._lock:
                self._messages.append(ctypes.string_at(address, nbytes))
                self._match()

    def recv(self, address: int, nbytes: int) -> None:
        with self._lock:
            self._issued_count += 1
            self._waiting.append((address, nbytes))
            self._match()
            self.most_waiting = max(self.most_waiting, len(self._waiting))

    def after_receives(self, follow: Callable[[], None]) -> None:
        """Call ``follow`` once every receive issued so far has its message."""
        with self._lock:
            self._followers.append((self._issued_count, follow))
            self._match()

    def _match(self) -> None:
        while self._messages and self._waiting:
            message, (address, nbytes) = self._messages.popleft(), self._waiting.popleft()
            assert len(message) == nbytes
            ctypes.memmove(address, message, nbytes)
            self._received_count += 1
        while self._followers and self._followers[0][0] <= self._received_count:
            self._followers.popleft()[1]()

    @contextmanager
    def group(self) -> Iterator[None]:
        messages_before = len(self.sizes)
        yield
        if not _is_sink():
            self.groups.append(len(self.sizes) - messages_before)

    def mark_filled(self) -> Mark:
        return self.mark()

    def wait_for_mark(self, mark: Any) -> None:
        assert isinstance(mark, Mark)

    def side_cuda_stream(self) -> Any:
        return nullcontext()

    def mark(self) -> Mark:
        if not _is_sink():
            return Mark(lambda: not self._lost)  # a message is copied as it is sent
        issued_count = self._issued_count

        def is_reached() -> bool:
            with self._lock:
                return issued_count <= self._received_count

        return Mark(is_reached)

    def synchronize(self) -> None:
        pass

    def check(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed += 1


def _is_sink() -> bool:
    return threading.current_thread() is threading.main_thread()


class MemoryLinkEndpoint(NCCLSinkEndpoint):
    """The sink's side whose scatters come behind their receives, as a device's streams have it."""

    def __init__(self, comm: MPI.Intracomm, link: MemoryLink, timeout: float, ahead: int) -> None:
        super().__init__(comm, {0: link}, timeout, most_ahead={0: ahead} if ahead else None)
        self._link = link

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Any:
        def scatter_later(packed: torch.Tensor) -> None:
            self._link.after_receives(lambda: scatter(packed))

        return super().receive(stream, packed, scatter_later)


@contextmanager
def linked_ends(
    slot: int, link: MemoryLink, timeout: float = PATIENCE, ahead: int = 0
) -> Iterator[tuple[Streamer, NCCLSinkEndpoint]]:
    """Yield a source's streamer and a sink's endpoint, both in this process."""
    comm = MPI.COMM_SELF.Dup()
    streamer = Streamer(NCCLDestination(comm, {0: link}, timeout), staging(slot, 3))
    try:
        yield streamer, MemoryLinkEndpoint(comm, link, timeout, ahead)
    finally:
        streamer.close()
        # The communicator is not freed: a test that fails on purpose leaves messages in it.
