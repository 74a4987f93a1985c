"""The sink's side of ``nixl``: names its memory to the sources and acknowledges what has come there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

from dejavubench.dejavulib.addresses import Bases
from dejavubench.dejavulib.destinations.base import (
    Stream,
)
from dejavubench.dejavulib.destinations.nixl.agent import Agent, Letter
from dejavubench.dejavulib.destinations.nixl.source import Planned
from dejavubench.dejavulib.kvcache import KVCache


class Arrival:
    """A place that a chunk of a stream is written to; complete once the chunk is there and, on a device, scattered."""

    def __init__(
        self,
        endpoint: NIXLSinkEndpoint,
        stream: Stream,
        number: int,
        scatter: Callable[[], torch.cuda.Event] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._number = number
        self._scatter = scatter
        self._scattered: torch.cuda.Event | None = None
        self._written = False

    def Test(self) -> bool:  # noqa: N802 - MPI's name
        if not self._written:
            self._written = self._endpoint.written(self._stream, self._number)
            if self._written and self._scatter is not None:
                self._scattered = self._scatter()
        return self._written and (self._scattered is None or self._scattered.query())


class NIXLSinkEndpoint:
    """The sink's side: names places to the sources, and acknowledges what has come there.

    Args:
        comm: the communicator that the sources' :class:`NIXLDestination` has.
        sources: ranks in it that something comes from.
        memory: staging slots, and the caches' tensors where single runs are moved: all on the host, or on one device.
        planned: the streams whose runs are written straight into these caches.

    Raises:
        StreamingError: NIXL cannot be used, or a source did not come.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        sources: Sequence[int],
        memory: Sequence[torch.Tensor],
        planned: Sequence[tuple[KVCache, Stream]] = (),
    ) -> None:
        tell: dict[int, Planned] = {source: {} for source in sources}
        for cache, stream in planned:
            assert stream.peer is not None
            tell[stream.peer][stream.id] = stream.schedule, Bases.of(cache)
        self.agent = Agent(comm, memory, tell)
        self._beside = torch.cuda.Stream(memory[0].device) if memory[0].is_cuda else None
        self._named: Counter[tuple[int | None, int]] = Counter()
        self._acknowledged: Counter[tuple[int | None, int]] = Counter()
        self._awaited: dict[tuple[int | None, int], Arrival] = {}

    def post(
        self,
        stream: Stream,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None] | None = None,
    ) -> Arrival:
        """``fetch``: name ``packed`` to the source as the place for the stream's next chunk.

        Args:
            scatter: on a device only: issues, on torch's current stream, what puts ``packed`` where it belongs.
        """
        number = self._name(stream, packed.data_ptr(), packed.numel())
        return Arrival(self, stream, number, scatter and partial(self._scatter, packed, scatter))

    def post_runs(self, stream: Stream, runs: Sequence[Any]) -> list[Arrival]:
        """Let the source write the runs of the stream's next chunk where they belong: all have come when one has."""
        return [Arrival(self, stream, self._name(stream))]

    def wait_runs(self, posted: Sequence[Arrival]) -> None:
        """They have come."""

    def arriving(self, stream: Stream) -> bool:
        """Whether the runs of the stream's next chunk are where they belong; the source may write them from now on."""
        if stream.key not in self._awaited:
            (self._awaited[stream.key],) = self.post_runs(stream, ())
        return self._awaited[stream.key].Test()

    def fetch_runs(self, stream: Stream, runs: Sequence[Any]) -> None:
        """They have come."""
        del self._awaited[stream.key]

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is where it belongs."""
        self.agent.say(stream, Letter.DONE, self._acknowledged[stream.key])
        self._acknowledged[stream.key] += 1

    def written(self, stream: Stream, number: int) -> bool:
        """Whether a chunk has come to its place; true once."""
        self.agent.listen()
        return self.agent.take(stream, Letter.WRITTEN, number) is not None

    def _name(self, stream: Stream, address: int = 0, nbytes: int = 0) -> int:
        number = self._named[stream.key]
        self._named[stream.key] += 1
        self.agent.say(stream, Letter.PLACE, number, address, nbytes)
        return number

    def _scatter(
        self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> torch.cuda.Event:
        scattered = torch.cuda.Event()
        with torch.cuda.stream(self._beside):
            scatter(packed)
            scattered.record(self._beside)
        return scattered

    def finish(self) -> None:
        """Let what has not left yet leave: NIXL does not tell."""
        self.agent.listen()

    def close(self) -> None:
        self.agent.close()
