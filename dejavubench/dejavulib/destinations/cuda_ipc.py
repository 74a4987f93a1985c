"""``cuda-ipc``: chunks put by copy engines into a sink's cache, on another GPU of the same host.

The sink exports its caches and staging slots by CUDA IPC, and the source maps them. A chunk whose
extents are regular goes by strided copies from cache to cache. Any other is packed, put into a slot
of the sink, and scattered there. The geometry of the two caches decides, so it is known beforehand.

Behind a chunk's copies the same CUDA stream stores a flag in host memory that both processes map.
The sink's CPU reads the flag, and reads nothing of the chunk before. Grants and acknowledgements
are words of the same memory: no message and no call of CUDA announces a chunk.

The sink grants a microbatch's first chunks once its cache is ready to be written. This grant is the
microbatch's epoch, before which the source writes nothing. From then on chunks go to their place
without a grant of their own. Slots are granted again when they are free.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from mpi4py import MPI

from ..boxes import plan_cache_copies, suits_strided_dma
from ..kv_cache import KVCache
from ..packing import SideScatter
from ..schedule import Chunk
from ..waiting import DeadlineError, wait_asleep
from .base import CONNECT_S, PreparedChunk, RemoteDestination, Stream, StreamingError, StreamKey
from .peers.chunk_queue import ChunkQueue
from .peers.chunk_words import IN_CACHE, MOST_CHUNKS_AHEAD, ChunkTarget, SideState, list_flags
from .peers.granted_chunk import GrantedChunk
from .peers.pairs import (
    MappedSink,
    PairedSource,
    map_sink,
    offer_memory,
    release_sinks,
    release_sources,
)
from .peers.puts import CudaPuts, Puts
from .registry import CUDA_IPC

MOST_COPIES_PER_CHUNK = 16
"""Most copies of a chunk that goes from cache to cache. A chunk that needs more is packed.

Issuing one copy takes 2 µs. Gathering and scattering a token's chunk of 6.5 MiB takes 46 µs.
"""


# ---- the source's side ----


class CudaIPCDestination(RemoteDestination[int]):
    """The source's side.

    Args:
        puts: issues copies and flags.
        sinks: the sinks by their ranks.
        timeout: seconds that an unbuffered chunk waits for its grant.
    """

    entry = CUDA_IPC
    by_address = True

    def __init__(
        self, puts: Puts, sinks: Mapping[int, MappedSink], timeout: float = CONNECT_S
    ) -> None:
        super().__init__()
        self._ways: dict[str, str] = {}
        self._puts = puts
        self._sinks = sinks
        self._timeout_s = timeout
        self._queues: dict[StreamKey, ChunkQueue] = {}
        self._given_up = threading.Event()

    @classmethod
    def connect(
        cls,
        comm: MPI.Intracomm,
        sinks: Sequence[int],
        device: torch.device,
        timeout: float = CONNECT_S,
        make_puts: Callable[[torch.device, np.ndarray], Puts] = CudaPuts,
    ) -> CudaIPCDestination:
        """Map the memory of the sinks, which must make their endpoints.

        Args:
            comm: names the ranks; nothing else may be on its way there meanwhile.
            make_puts: makes the puts of a device, with the flags that they can store.

        Raises:
            StreamingError: a sink's memory cannot be mapped, or a sink did not connect.
        """
        puts = make_puts(device, list_flags())
        mapped_sinks = {sink: map_sink(comm, sink, device, puts.pin) for sink in sinks}
        return cls(puts, mapped_sinks, timeout)

    @property
    def ways(self) -> Mapping[str, str]:
        """How chunks of each kind are put: by strided DMA, or packed by a kernel."""
        return self._ways

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch; the sink's grants come when its cache is ready."""
        super().begin(stream, tokens)
        if stream.key not in self._queues:
            sink = self._sinks[stream.peer_rank]
            self._queues[stream.key] = ChunkQueue(self._puts, sink, sink.find(stream))
        self._queues[stream.key].begin()

    def prepare_direct(self, stream: Stream, chunk: Chunk, cache: KVCache) -> PreparedChunk | None:
        """Prepare copies from cache to cache; return None if they are many or have short rows."""
        sink_stream = self._sinks[stream.peer_rank].find(stream)
        place = sink_stream.place_of(chunk.region, stream.schedule)
        copies = plan_cache_copies(
            cache.geometry, chunk.region, sink_stream.schedule.geometry, place
        )
        phase = "token" if chunk.step else "prompt"
        if len(copies) > MOST_COPIES_PER_CHUNK or not suits_strided_dma(copies):
            row_nbytes = min(copy.width for copy in copies)
            self._ways[phase] = (
                "kernel, put, kernel, as strided DMA would take "
                f"{len(copies)} copies of rows of {row_nbytes} bytes"
            )
            return None
        self._ways[phase] = "strided DMA from cache to cache"
        return self._puts.prepare(cache, copies, sink_stream.bases)

    def flush_direct(self, stream: Stream, chunk: Chunk, prepared: PreparedChunk) -> None:
        """Put a chunk from cache to cache once the sink grants it; never waits."""
        self._under_way[stream.key].append(self._queues[stream.key].add(prepared, None))

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Put a packed chunk into the slot that the sink grants; never waits."""
        self._under_way[stream.key].append(self._queues[stream.key].add(None, packed))

    def flush_extents(
        self,
        stream: Stream,
        chunk: Chunk,
        extents: Sequence[tuple[int, int]],
        each_complete: bool,
    ) -> None:
        """Put extents, given as (address, bytes), each into its place; the flag follows them."""
        queue = self._queues[stream.key]
        number = queue.next_number()
        self._under_way[stream.key].append(number)
        self._await_grant(queue, number, chunk)
        targets = iter(queue.extents.of_step(chunk.step))
        put, synchronize = self._puts.put, self._puts.synchronize
        cuda_stream_handle = self._puts.own_cuda_stream_handle
        for block in self.cut_and_count(extents):
            self._check_not_given_up(queue, chunk)
            for (address, nbytes), (target, _) in zip(block, targets, strict=False):
                put(address, target, nbytes, cuda_stream_handle)
                if each_complete:
                    synchronize()
        queue.store_flag(number, ChunkTarget.PLACE, cuda_stream_handle)

    def poll_completed(self, stream: Stream) -> int:
        """Put the chunks that have been granted; then count those that are in place."""
        queue = self._queues[stream.key]
        under_way = self._under_way[stream.key]
        in_place = queue.words.done_count
        while under_way and under_way[0] < in_place:
            number = under_way.popleft()
            queue.collect(number)
            self._completed[stream.key] += 1
            if self.timed:
                self._receipts[stream.key].append((None, queue.words.sink_ns(number)))
        if not self._given_up.is_set():
            queue.issue()
        if under_way:
            queue.peer.check_alive()
        return self._completed[stream.key]

    def give_up(self) -> None:
        """End every wait for a sink, and let the sinks end theirs. From any thread."""
        self._given_up.set()
        for sink in self._sinks.values():
            sink.words.source_state = SideState.ABORTED

    def close(self) -> None:
        """Unmap the sinks' memory once both sides are done, unless it was given up.

        Raises:
            StreamingError: a sink has failed, or is not done in time.
        """
        if self._given_up.is_set():
            return  # no call of CUDA: a peer that died may have broken the context
        self._puts.close()
        release_sinks(list(self._sinks.values()))

    def _await_grant(self, queue: ChunkQueue, number: int, chunk: Chunk) -> None:
        """Wait until all chunks before are put, and this one is granted."""

        def is_granted() -> bool:
            self._check_not_given_up(queue, chunk)
            queue.peer.check_alive()
            return queue.is_granted(number)

        try:
            wait_asleep(is_granted, "grant", self._timeout_s)
        except DeadlineError:
            raise StreamingError(
                f"rank {queue.peer.rank} was not ready for chunk {chunk.index} "
                f"(step {chunk.step}) within {self._timeout_s:g} s"
            ) from None

    def _check_not_given_up(self, queue: ChunkQueue, chunk: Chunk) -> None:
        """Raise StreamingError if the destination has been given up."""
        if self._given_up.is_set():
            raise StreamingError(
                f"chunk {chunk.index} (step {chunk.step}) to rank {queue.peer.rank} was given up"
            )


# ---- the sink's side ----


class CudaIPCSinkEndpoint:
    """The sink's side: grants chunks, reads their flags, and scatters what came into slots.

    Args:
        sources: the sources by their ranks.
        device: device of the caches, where slots are scattered on a stream of their own.
    """

    by_address = True

    def __init__(self, sources: Mapping[int, PairedSource], device: torch.device) -> None:
        self._sources = sources
        self._side_scatter = SideScatter(device)
        self._next_numbers: Counter[StreamKey] = Counter()
        # The receives of each stream that are not acknowledged yet, oldest first.
        self._receives: defaultdict[StreamKey, deque[GrantedChunk]] = defaultdict(deque)
        self._has_failed = False

    @classmethod
    def connect(
        cls,
        comm: MPI.Intracomm,
        sources: Sequence[int],
        memory: Sequence[torch.Tensor],
        streams: Sequence[tuple[KVCache, Stream]],
    ) -> CudaIPCSinkEndpoint:
        """Let the sources map this side's memory. They must connect, too.

        Args:
            comm: names the ranks; nothing else may be on its way there meanwhile.
            memory: caches and staging slots, tensors of one device.
            streams: every stream that arrives, with its cache.

        Raises:
            StreamingError: the memory cannot be shared, or a source did not connect.
        """
        return cls(offer_memory(comm, sources, memory, streams), memory[0].device)

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> GrantedChunk:
        """Grant the stream's next chunk: straight to its place, or to ``packed``."""
        return self._grant_next(
            stream, packed.data_ptr(), partial(self._side_scatter.issue, packed, scatter)
        )

    def receive_extents(
        self, stream: Stream, extents: Sequence[tuple[int, int]], each_complete: bool
    ) -> GrantedChunk:
        """Grant the stream's next chunk, extent by extent, straight to its place."""
        return self._grant_next(stream, IN_CACHE)

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the stream's oldest chunk not yet acknowledged is in its place."""
        self._receives[stream.key].popleft().acknowledge()

    def finish(self) -> None:
        """Return at once: acknowledgements are stored, not sent."""

    def _check_source(self, source: PairedSource) -> None:
        """Raise StreamingError if a source has failed or closed.

        Abort first, so that no source waits for this side.
        """
        try:
            source.peer.check_alive(must_be_open=True)
        except StreamingError:
            self.abort()
            raise

    def abort(self) -> None:
        """Let the sources know that this side has failed. No call of CUDA is made from now on."""
        self._has_failed = True
        for source in self._sources.values():
            source.words.sink_state = SideState.ABORTED

    def close(self) -> None:
        """Wait until the sources have unmapped this side's memory, unless it has failed.

        Raises:
            StreamingError: a source has failed, or has not done so in time.
        """
        if not self._has_failed:
            release_sources(list(self._sources.values()))

    def _grant_next(
        self,
        stream: Stream,
        grant: int,
        scatter: Callable[[], torch.cuda.Event | None] | None = None,
    ) -> GrantedChunk:
        receives = self._receives[stream.key]
        if len(receives) == MOST_CHUNKS_AHEAD:
            raise StreamingError(
                f"stream {stream.id} has more than {MOST_CHUNKS_AHEAD} chunks under way"
            )
        source = self._sources[stream.peer_rank]
        words = source.streams[stream.id]
        number = self._next_numbers[stream.key]
        self._next_numbers[stream.key] += 1
        granted = GrantedChunk(words, number, partial(self._check_source, source), scatter)
        receives.append(granted)
        words.store_grant(number, grant)
        return granted
