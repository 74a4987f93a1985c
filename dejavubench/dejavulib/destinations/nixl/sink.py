"""The sink's side of ``nixl``: names its memory to the sources and acknowledges what comes."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mpi4py import MPI

from ... import chunk_times
from ...extents import BaseAddresses
from ...kv_cache import KVCache
from ...packing import SideScatter
from ..base import Stream, StreamKey
from .agent import Agent, Notification
from .source import SinkCaches


class PackedReceive:
    """A chunk that the source may write into memory of this side.

    Args:
        scatter: called once the chunk is written; on a device, it returns the event after which
            the chunk is in its place. None: the chunk is written into its place.
    """

    def __init__(
        self,
        endpoint: NIXLSinkEndpoint,
        stream: Stream,
        chunk_number: int,
        scatter: Callable[[], torch.cuda.Event | None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._number = chunk_number
        self._scatter = scatter
        self._scatter_event: torch.cuda.Event | None = None
        self.received_ns = 0  # when it was seen that the chunk is written

    def poll(self) -> bool:
        """Return whether the chunk is in its place."""
        if not self.received_ns:
            if not self._endpoint.take_written(self._stream, self._number):
                return False
            self.received_ns = chunk_times.now()
            if self._scatter is not None:
                self._scatter_event = self._scatter()
        return self._scatter_event is None or self._scatter_event.query()


class NIXLSinkEndpoint:
    """The sink's side.

    Args:
        comm: the communicator that the sources' :class:`NIXLDestination` has.
        sources: ranks of ``comm`` that something comes from.
        memory: staging slots, and the tensors of caches whose extents are moved singly. All on the
            host, or all on one device.
        in_place_streams: the streams whose extents are written straight into these caches.

    Raises:
        StreamingError: NIXL cannot be used, or a source did not connect.
    """

    by_address = True

    def __init__(
        self,
        comm: MPI.Intracomm,
        sources: Sequence[int],
        memory: Sequence[torch.Tensor],
        in_place_streams: Sequence[tuple[KVCache, Stream]] = (),
    ) -> None:
        share: dict[int, SinkCaches] = {source: {} for source in sources}
        for cache, stream in in_place_streams:
            share[stream.peer_rank][stream.id] = stream.schedule, BaseAddresses.of_cache(cache)
        self.agent = Agent(comm, memory, share)
        self._side_scatter = SideScatter(memory[0].device)
        # Numbers run on over all microbatches: a late notification of the last one matches nothing.
        self._named_counts: Counter[StreamKey] = Counter()
        self._acknowledged: Counter[StreamKey] = Counter()
        # The arrivals of each stream that are not acknowledged yet, oldest first.
        self._arrivals: defaultdict[StreamKey, deque[PackedReceive]] = defaultdict(deque)

    def receive(
        self,
        stream: Stream,
        packed: torch.Tensor,
        scatter: Callable[[torch.Tensor], None] | None = None,
    ) -> PackedReceive:
        """Name ``packed`` to the source as the buffer of the stream's next chunk.

        Args:
            scatter: puts ``packed`` in its place once it is written. None: it stays there.
        """
        chunk_number = self._name(stream, packed.data_ptr(), packed.numel())
        place_chunk = scatter and partial(self._side_scatter.issue, packed, scatter)
        return self._expect(PackedReceive(self, stream, chunk_number, place_chunk), stream)

    def receive_extents(
        self, stream: Stream, extents: Sequence[tuple[int, int]], each_complete: bool
    ) -> PackedReceive:
        """Let the source write the extents of the stream's next chunk into their place."""
        return self._expect(PackedReceive(self, stream, self._name(stream)), stream)

    def _expect(self, arrival: PackedReceive, stream: Stream) -> PackedReceive:
        self._arrivals[stream.key].append(arrival)
        return arrival

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is in its place."""
        sink_ns = chunk_times.now() - self._arrivals[stream.key].popleft().received_ns
        self.agent.notify(stream, Notification.DONE, self._acknowledged[stream.key], nbytes=sink_ns)
        self._acknowledged[stream.key] += 1

    def take_written(self, stream: Stream, chunk_number: int) -> bool:
        """Return whether a chunk has been written; true once."""
        self.agent.advance()
        return self.agent.take(stream, Notification.WRITTEN, chunk_number) is not None

    def _name(self, stream: Stream, address: int = 0, nbytes: int = 0) -> int:
        chunk_number = self._named_counts[stream.key]
        self._named_counts[stream.key] += 1
        self.agent.notify(stream, Notification.BUFFER, chunk_number, address, nbytes)
        return chunk_number

    def finish(self) -> None:
        """Let acknowledgements leave; NIXL does not say when they have."""
        self.agent.advance()

    def close(self) -> None:
        """Disconnect from the sources and release the memory."""
        self.agent.close()
