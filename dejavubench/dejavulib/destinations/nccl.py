"""``nccl``: chunks from this GPU's memory to a sink's, where they land in place.

NCCL matches messages of a pair by the order in which they are issued, and a kernel that has been issued occupies part
of its GPU until the other side's is there. So the source *announces* each chunk by a small MPI message; the sink, in
the order of announcements, *grants* the chunk and issues the receive once it has room; only then does the source
issue the send. No kernel on the source ever waits for a sink that is not ready, so none takes room from the model for
that, nor can several pairs wait for each other in a circle. A chunk is complete when the sink has scattered it and
has said so by MPI.

NCCL itself comes in from outside, as a :class:`Link` to each rank at the other side.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import (
    Capabilities,
    RemoteDestination,
    Stream,
    StreamingError,
)
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import DeadlineError, wait_asleep

GROUP = 2048
"""Runs that are issued as one operation at most (NCCL's group), where runs are not waited for one by one."""

PACKED, RUN_BY_RUN, IN_GROUPS = range(3)
"""How a chunk comes: what an announcement says."""

_ANNOUNCE, _GRANT, _ACK = range(3)  # tags


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


class _Mail:
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


@dataclass
class _Sending:
    """A chunk that has been announced. ``filled``: after which ``packed`` holds it; ``sent``: once it is issued."""

    chunk: Chunk
    packed: torch.Tensor | None = None
    filled: Any = None
    sent: Mark | None = None


@dataclass
class _Sink:
    """What the source knows of one sink."""

    link: Link
    announced: deque[_Sending] = field(default_factory=deque)  # not issued yet
    grants: int = 0  # for the oldest of them
    acknowledged: dict[int, int] = field(default_factory=dict)  # by stream


class NCCLDestination(RemoteDestination[_Sending]):
    """The source's side.

    Args:
        comm: of all sources and sinks, for announcements; nothing else may use it.
        links: to each sink, by its rank in ``comm``.
        timeout: seconds that a naive chunk waits for the sink to be ready.

    Raises:
        StreamingError: the MPI library does not let a second thread call it.
    """

    name = "nccl"
    capabilities = Capabilities(remote=True, device_memory=True, by_address=True)

    def __init__(
        self, comm: MPI.Intracomm, links: Mapping[int, Link], timeout: float = 60.0
    ) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise StreamingError(
                "this MPI library does not grant MPI_THREAD_MULTIPLE, which streaming by nccl needs"
            )
        super().__init__()
        self._mail = _Mail(comm)
        self._sinks = {peer: _Sink(link) for peer, link in links.items()}
        self._timeout = timeout
        self._given_up = threading.Event()

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Announce a chunk that ``packed``, on the device, holds once torch's current stream has come here."""
        sink, sending = self._announce(stream, chunk, PACKED)
        sending.packed, sending.filled = packed, sink.link.filled()
        self._issue(stream)

    def flush_runs(
        self, stream: Stream, chunk: Chunk, runs: Sequence[tuple[int, int]], each_complete: bool
    ) -> None:
        """Send runs, given as (address, bytes), each from where it lies in the cache."""
        sink, sending = self._announce(stream, chunk, RUN_BY_RUN if each_complete else IN_GROUPS)
        self._wait(lambda: self._is_next(stream, sending), stream, chunk)
        sink.announced.popleft()
        sink.grants -= 1
        link, send = sink.link, sink.link.send
        if each_complete:
            wait, given_up = link.synchronize, self._given_up.is_set
            for block in self.counted(runs):
                for address, nbytes in block:
                    if given_up():  # what waited has been ended, and the link is gone
                        self._go_on(stream, chunk)
                    send(address, nbytes)
                    wait()
        else:
            for block in self.counted(runs, GROUP):
                self._go_on(stream, chunk)
                with link.group():
                    for address, nbytes in block:
                        send(address, nbytes)
            link.synchronize()
        self._go_on(stream, chunk)
        sending.sent = link.mark()

    def completed(self, stream: Stream) -> int:
        self._issue(stream)
        sink, under_way = self._sink(stream), self._under_way[stream.key]
        for id, *_ in self._mail.receive(_peer(stream), _ACK):
            sink.acknowledged[id] = sink.acknowledged.get(id, 0) + 1
        while under_way and sink.acknowledged.get(stream.id) and _is_sent(under_way[0]):
            under_way.popleft()
            sink.acknowledged[stream.id] -= 1
            self._completed[stream.key] += 1
        return self._completed[stream.key]

    def give_up(self) -> None:
        self._given_up.set()
        for sink in self._sinks.values():
            sink.link.abort()

    def close(self) -> None:
        """Give the links back, which needs the sinks to do the same, unless they have been given up."""
        if not self._given_up.is_set():
            for sink in self._sinks.values():
                sink.link.close()

    # ---- in the order of announcements ----

    def _sink(self, stream: Stream) -> _Sink:
        return self._sinks[_peer(stream)]

    def _announce(self, stream: Stream, chunk: Chunk, kind: int) -> tuple[_Sink, _Sending]:
        sink, sending = self._sink(stream), _Sending(chunk)
        sink.announced.append(sending)
        self._under_way[stream.key].append(sending)
        self._mail.send(_peer(stream), _ANNOUNCE, stream.id, chunk.index, chunk.nbytes, kind)
        return sink, sending

    def _issue(self, stream: Stream) -> None:
        """Send what its sink has granted."""
        sink = self._sink(stream)
        if not sink.announced or self._given_up.is_set():
            return
        sink.grants += sum(1 for _ in self._mail.receive(_peer(stream), _GRANT))
        while sink.grants and sink.announced and sink.announced[0].packed is not None:
            sending = sink.announced.popleft()
            sink.grants -= 1
            assert sending.packed is not None
            sink.link.after(sending.filled)
            sink.link.send(sending.packed.data_ptr(), sending.packed.numel())
            sending.sent = sink.link.mark()
        sink.link.check()

    def _is_next(self, stream: Stream, sending: _Sending) -> bool:
        self._issue(stream)
        sink = self._sink(stream)
        return sink.announced[0] is sending and sink.grants > 0

    def _wait(self, test: Callable[[], bool], stream: Stream, chunk: Chunk) -> None:
        try:
            wait_asleep(lambda: self._given_up.is_set() or test(), "grant", self._timeout)
        except DeadlineError:
            raise StreamingError(
                f"rank {stream.peer} was not ready for {_name(stream, chunk)} within {self._timeout:g} s"
            ) from None
        self._go_on(stream, chunk)

    def _go_on(self, stream: Stream, chunk: Chunk) -> None:
        if self._given_up.is_set():
            raise StreamingError(f"{_name(stream, chunk)} to rank {stream.peer} was given up")


def _is_sent(sending: _Sending) -> bool:
    return sending.sent is not None and sending.sent.query()


def _peer(stream: Stream) -> int:
    assert stream.peer is not None
    return stream.peer


def _name(stream: Stream, chunk: Chunk) -> str:
    return f"chunk {chunk.index} (step {chunk.step}) of stream {stream.id}"


# ---- the sink ----


class Announcement(NamedTuple):
    stream: int
    chunk: int
    nbytes: int
    kind: int


class Receiving:
    """A place that waits for the next chunk of its stream; it is complete when the chunk has been scattered."""

    def __init__(
        self,
        endpoint: NCCLSinkEndpoint,
        stream: Stream,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None],
    ) -> None:
        self.packed = packed
        self.scatter = scatter
        self.scattered: Mark | None = None
        self._endpoint = endpoint
        self._stream = stream
        self._issued = 0.0

    def issue(self, link: Link) -> None:
        """Receive, and scatter behind that."""
        link.recv(self.packed.data_ptr(), self.packed.numel())
        with link.beside():
            self.scatter(self.packed)
            self.scattered = link.filled()
        self._issued = MPI.Wtime()

    def Test(self) -> bool:  # noqa: N802 - MPI's name
        """Take announcements, then say whether this chunk is in its place.

        Raises:
            StreamingError: it was announced, and did not come.
        """
        self._endpoint.take(self._stream)
        if self.scattered is None:
            return False
        if self.scattered.query():
            return True
        self._endpoint.watch(self._stream, MPI.Wtime() - self._issued)
        return False


class NCCLSinkEndpoint:
    """The sink's side: receives chunks in the order in which they are announced, scatters and acknowledges them.

    Args:
        comm: the communicator that the sources' :class:`NCCLDestination` has.
        links: to each source, by its rank in ``comm``.
        timeout: seconds within which what was announced must come.
    """

    def __init__(
        self, comm: MPI.Intracomm, links: Mapping[int, Link], timeout: float = 60.0
    ) -> None:
        self._mail = _Mail(comm)
        self._links = dict(links)
        self._timeout = timeout
        self._announced: dict[int, deque[Announcement]] = {peer: deque() for peer in links}
        self._posted: dict[tuple[int | None, int], deque[Receiving]] = {}
        self._failed = False

    def post(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> Receiving:
        """``fetch``: have the next chunk of the stream received into ``packed`` and scattered from there.

        Args:
            packed: of the chunk's bytes, on the device.
            scatter: issues, on torch's current stream, what puts ``packed`` into its place.
        """
        receiving = Receiving(self, stream, packed, scatter)
        self._posted.setdefault(stream.key, deque()).append(receiving)
        return receiving

    def take(self, stream: Stream) -> None:
        """Grant and issue what has been announced by the stream's source and has a place, in order."""
        peer = _peer(stream)
        announced, link = self._listen(peer), self._links[peer]
        while (
            announced
            and announced[0].kind == PACKED
            and (posted := self._posted.get((peer, announced[0].stream)))
        ):
            announcement, receiving = announced.popleft(), posted.popleft()
            self._same(announcement, receiving.packed.numel(), peer)
            self._mail.send(peer, _GRANT)
            receiving.issue(link)

    def arriving(self, stream: Stream) -> bool:
        """Whether runs of the stream are the next that its source has announced."""
        announced = self._listen(_peer(stream))
        return bool(announced) and announced[0].kind != PACKED and announced[0].stream == stream.id

    def fetch_runs(self, stream: Stream, runs: Sequence[tuple[int, int]]) -> None:
        """Receive announced runs, each straight into its place given as (address, bytes); returns when all are there.

        Raises:
            StreamingError: they did not come.
        """
        peer = _peer(stream)
        announcement, link = self._announced[peer].popleft(), self._links[peer]
        self._same(announcement, sum(nbytes for _, nbytes in runs), peer)
        self._mail.send(peer, _GRANT)
        before: Mark | None = None
        size = GROUP if announcement.kind == IN_GROUPS else GROUP // 8
        for start in range(0, len(runs), size):
            self._receive_block(link, runs[start : start + size], announcement.kind)
            issued = link.mark()
            if before is not None:  # one block is always ahead
                self._wait(before, stream)
            before = issued
        if before is not None:
            self._wait(before, stream)

    def _receive_block(self, link: Link, runs: Sequence[tuple[int, int]], kind: int) -> None:
        receive = link.recv
        if kind == IN_GROUPS:
            with link.group():
                for address, nbytes in runs:
                    receive(address, nbytes)
        else:
            for address, nbytes in runs:
                receive(address, nbytes)

    def post_runs(self, stream: Stream, runs: Sequence[tuple[int, int]]) -> list[Any]:
        """Nothing is received before it is announced: :meth:`arriving` tells."""
        return []

    def wait_runs(self, posted: Sequence[Any]) -> None:
        """Nothing has been posted."""

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk of the stream not yet acknowledged is where it belongs."""
        self._mail.send(_peer(stream), _ACK, stream.id)

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""
        wait_asleep(self._mail.all_left, "acknowledgements", self._timeout)

    def close(self) -> None:
        """Give the links back, which needs the sources to do the same; after an error: abort them."""
        for link in self._links.values():
            if self._failed:
                link.abort()
            else:
                link.close()

    def abort(self) -> None:
        """After an error elsewhere: no kernel may go on waiting for a source that is gone."""
        self._failed = True
        for link in self._links.values():
            link.abort()

    def watch(self, stream: Stream, waited: float) -> None:
        """Raises StreamingError, with the links aborted, if a chunk that was granted is overdue or NCCL has failed."""
        self._links[_peer(stream)].check()
        if waited > self._timeout:
            self.abort()
            raise StreamingError(
                f"rank {stream.peer} announced a chunk of stream {stream.id} that did not come within {waited:.0f} s"
            )

    def _listen(self, peer: int) -> deque[Announcement]:
        announced = self._announced[peer]
        announced.extend(Announcement(*letter) for letter in self._mail.receive(peer, _ANNOUNCE))
        return announced

    def _wait(self, mark: Mark, stream: Stream) -> None:
        began = MPI.Wtime()

        def arrived() -> bool:
            if mark.query():
                return True
            self.watch(stream, MPI.Wtime() - began)
            return False

        wait_asleep(arrived, "runs")

    def _same(self, announcement: Announcement, nbytes: int, peer: int) -> None:
        if announcement.nbytes != nbytes:
            raise StreamingError(
                f"rank {peer} announced {announcement.nbytes} bytes as chunk {announcement.chunk} of stream "
                f"{announcement.stream}, where {nbytes} are expected"
            )
