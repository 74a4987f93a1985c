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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import (
    Capabilities,
    RemoteDestination,
    Stream,
    StreamingError,
)
from dejavubench.dejavulib.destinations.nccl.link import (
    ACK,
    ANNOUNCE,
    GRANT,
    GROUP,
    IN_GROUPS,
    PACKED,
    RUN_BY_RUN,
    Link,
    Mail,
    Mark,
    peer_of,
)
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.waiting import DeadlineError, wait_asleep


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
        self._mail = Mail(comm)
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
        for id, *_ in self._mail.receive(peer_of(stream), ACK):
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
        return self._sinks[peer_of(stream)]

    def _announce(self, stream: Stream, chunk: Chunk, kind: int) -> tuple[_Sink, _Sending]:
        sink, sending = self._sink(stream), _Sending(chunk)
        sink.announced.append(sending)
        self._under_way[stream.key].append(sending)
        self._mail.send(peer_of(stream), ANNOUNCE, stream.id, chunk.index, chunk.nbytes, kind)
        return sink, sending

    def _issue(self, stream: Stream) -> None:
        """Send what its sink has granted."""
        sink = self._sink(stream)
        if not sink.announced or self._given_up.is_set():
            return
        sink.grants += sum(1 for _ in self._mail.receive(peer_of(stream), GRANT))
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


def _name(stream: Stream, chunk: Chunk) -> str:
    return f"chunk {chunk.index} (step {chunk.step}) of stream {stream.id}"
