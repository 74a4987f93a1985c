"""The sink's side of ``nccl``: grants what is announced, receives it and scatters it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.base import (
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
    Link,
    Mail,
    Mark,
    peer_of,
)
from dejavubench.dejavulib.waiting import wait_asleep


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
        self._mail = Mail(comm)
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
        peer = peer_of(stream)
        announced, link = self._listen(peer), self._links[peer]
        while (
            announced
            and announced[0].kind == PACKED
            and (posted := self._posted.get((peer, announced[0].stream)))
        ):
            announcement, receiving = announced.popleft(), posted.popleft()
            self._same(announcement, receiving.packed.numel(), peer)
            self._mail.send(peer, GRANT)
            receiving.issue(link)

    def arriving(self, stream: Stream) -> bool:
        """Whether runs of the stream are the next that its source has announced."""
        announced = self._listen(peer_of(stream))
        return bool(announced) and announced[0].kind != PACKED and announced[0].stream == stream.id

    def fetch_runs(self, stream: Stream, runs: Sequence[tuple[int, int]]) -> None:
        """Receive announced runs, each straight into its place given as (address, bytes); returns when all are there.

        Raises:
            StreamingError: they did not come.
        """
        peer = peer_of(stream)
        announcement, link = self._announced[peer].popleft(), self._links[peer]
        self._same(announcement, sum(nbytes for _, nbytes in runs), peer)
        self._mail.send(peer, GRANT)
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
        self._mail.send(peer_of(stream), ACK, stream.id)

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
        self._links[peer_of(stream)].check()
        if waited > self._timeout:
            self.abort()
            raise StreamingError(
                f"rank {stream.peer} announced a chunk of stream {stream.id} that did not come within {waited:.0f} s"
            )

    def _listen(self, peer: int) -> deque[Announcement]:
        announced = self._announced[peer]
        announced.extend(Announcement(*letter) for letter in self._mail.receive(peer, ANNOUNCE))
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
