"""The sink's side of a stream: chunks come in the schedule's order and go into the sink's cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from . import chunk_times, progress
from .chunk_times import MOST_TIMED_CHUNKS
from .destinations.base import Stream
from .extents import ExtentAddresses, ExtentViews, StepExtents
from .kv_cache import KVCache
from .levels import LEVELS, Level
from .packing import Packing, device_staging, staging
from .schedule import DEVICE_SLOT_COUNT, HOST_SLOT_COUNT, Chunk
from .upload import BouncedExtents, DeviceUpload
from .waiting import EAGER_NAPS, LAZY_NAPS, Naps, wait_asleep

SHORTEST_STEP_S = 5e-3
"""Seconds between two chunks from which on they are the steps of a model, and no stream at full
rate.
"""

LONGEST_FIRST_NAP_S = 10e-3
"""Most seconds by which a chunk may be taken late when chunks begin to come faster."""

NAP_SHARE = 1 / 40
"""Share of the step by which a chunk that comes as the one before did is taken late at most."""

LONGEST_NAP_S = 5e-3
"""Most seconds by which such a chunk is taken late."""


class PendingReceive(Protocol):
    """A receive under way."""

    @property
    def received_ns(self) -> int | None:
        """Time by ``chunk_times.now`` at which the chunk was seen to have come.

        None: the endpoint keeps no such time. Read once :meth:`poll` has returned True.
        """

    def poll(self) -> bool:
        """Put the chunk in its place if it has come; return whether it is there.

        Never waits for the source.
        """


class SinkEndpoint(Protocol):
    """The sink's side of a remote destination.

    A stream's receives are requested in the order of its chunks, before the chunks come. Whether
    the endpoint passes that on (mpi posts a receive, nixl names the memory) or waits for an
    announcement of the source (nccl, unless it may receive ahead) is its own affair.

    Attributes:
        by_address: takes extents as (address, bytes). Off: as views of host memory.
    """

    by_address: bool

    def receive(
        self, stream: Stream, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]
    ) -> PendingReceive:
        """Receive the stream's next chunk into ``packed``, then put it in its place.

        Args:
            packed: uint8 of the chunk's bytes.
            scatter: puts ``packed`` in its place. If ``packed`` is on a device, it issues that on
                torch's current stream. If only the cache is on a device, it issues an upload, whose
                end the receiver waits for.
        """

    def receive_extents(
        self, stream: Stream, extents: Sequence[Any], each_complete: bool
    ) -> PendingReceive:
        """Receive the stream's next chunk extent by extent, each straight into its place.

        Args:
            extents: the chunk's extents in packed order; not empty.
            each_complete: the source sends an extent after the one before it is complete.
        """

    def acknowledge(self, stream: Stream) -> None:
        """Tell the source that the oldest chunk not yet acknowledged is in its place."""

    def finish(self) -> None:
        """Wait until every acknowledgement has left."""

    def close(self) -> None:
        """Release what the endpoint holds."""


def largest_chunk(stream: Stream) -> int:
    """Return the bytes of a stream's largest chunk at any buffered level: a slot's least size."""
    buffered_levels = [level for level in LEVELS.values() if level.buffered]
    return max(
        chunk.nbytes for level in buffered_levels for chunk in stream.schedule.all_chunks(level)
    )


def receiving_slots(device: torch.device) -> int:
    """Return how many slots a receiver needs for a cache on ``device``."""
    return DEVICE_SLOT_COUNT if device.type == "cuda" else HOST_SLOT_COUNT


class _PendingChunk(NamedTuple):
    pending_receive: PendingReceive
    chunk: Chunk
    slot: torch.Tensor | None  # None: extents go straight to their place
    message_count: int


class _PendingUpload(NamedTuple):
    arrived_chunk: _PendingChunk
    placed_event: torch.cuda.Event


class ChunkArrival(NamedTuple):
    """When a chunk was seen to have come, if its endpoint knows, and when it was in its place."""

    received_ns: int | None
    scattered_ns: int


class CacheReceiver:
    """Receives one microbatch's stream into ``cache``.

    The owner calls :meth:`begin`, then :meth:`poll` until :attr:`done`.

    At the levels that are not buffered, extents go straight to their place: received one by one
    (level 0), or all at once (``0-batched``). The caches of both sides must then cut a region into
    the same extents: same heads, in the same layout.

    Args:
        slots: staging of at least :func:`largest_chunk` bytes each, in the memory of the cache, or
            with ``upload`` in pinned host memory. Receivers that do not work at the same time may
            share it. Without it, the receiver has :func:`receiving_slots` of its own.
        timed: note when each chunk came and was in its place.
        upload: brings chunks that come in host memory to a cache on a device. Receivers may share
            it.

    Attributes:
        slots: the staging; the owner may overwrite it before :meth:`begin`.
        stream: the stream that is received.
        missing_count: chunks of the microbatch that have not arrived.
        nbytes, messages: counters of what has arrived since :meth:`begin`.
        arrivals: times of each chunk since then, of at most
            :data:`~.chunk_times.MOST_TIMED_CHUNKS` chunks.
    """

    def __init__(
        self,
        cache: KVCache,
        stream: Stream,
        level: Level,
        endpoint: SinkEndpoint,
        slots: Sequence[torch.Tensor] = (),
        timed: bool = True,
        upload: DeviceUpload | None = None,
    ) -> None:
        self._cache = cache
        self._upload = upload
        self.stream = stream
        self.arrivals: list[ChunkArrival] = []
        self._most_arrivals = MOST_TIMED_CHUNKS if timed else 0
        self._level = level
        self._endpoint = endpoint
        self.slots = slots
        # Listed once: to find a chunk takes longer than to wait for it.
        self._all_chunks = list(stream.schedule.all_chunks(level))
        self._scatters: list[Callable[[torch.Tensor], None]] = []
        self._extents: StepExtents | None = None
        if level.buffered:
            self.slots = slots or self._make_slots()
            self._scatters = self._make_scatters()
        elif upload is not None:
            self._extents = BouncedExtents(cache, stream.schedule, upload)
        elif endpoint.by_address:
            self._extents = ExtentAddresses(cache, stream.schedule)
        else:
            self._extents = ExtentViews(cache, stream.schedule)
        self._chunks: Iterator[Chunk] = iter(())
        self._pending_chunks: deque[_PendingChunk] = deque()
        self._pending_uploads: deque[_PendingUpload] = deque()  # of arrived chunks, oldest first
        self.missing_count = 0
        self.nbytes = 0
        self.messages = 0

    def _make_slots(self) -> list[torch.Tensor]:
        nbytes = largest_chunk(self.stream)
        device = self._cache.k.device
        if device.type == "cuda" and self._upload is None:
            return device_staging(nbytes, DEVICE_SLOT_COUNT, device)
        return staging(nbytes, HOST_SLOT_COUNT, pinned=self._upload is not None)

    def _make_scatters(self) -> list[Callable[[torch.Tensor], None]]:
        """Return the scatter of each chunk, prepared beforehand."""
        packings = [Packing(self._cache, chunk.region) for chunk in self._all_chunks]
        if self._upload is None:
            return [packing.scatter for packing in packings]
        return [partial(self._upload.put, scatter=packing.scatter) for packing in packings]

    def begin(self) -> None:
        """Prepare for a microbatch, outside the clock: ask for the first chunks."""
        if self._cache.k.is_cuda:
            # Chunks arrive on streams of their own. Whatever the owner still writes to the cache
            # and the slots comes first.
            torch.cuda.synchronize(self._cache.k.device)
        self._chunks = iter(self._all_chunks)
        self.missing_count = len(self._all_chunks)
        self.nbytes = 0
        self.messages = 0
        self.arrivals = []
        if self._extents is None:
            for slot in self.slots:
                self._receive(slot)  # one receive per slot: the source may run that far ahead
        else:  # one chunk: its extents go to the cache, which has no slots
            self._receive_extents(self._extents)

    @property
    def done(self) -> bool:
        """Whether all chunks of the microbatch are in their place."""
        return self.missing_count == 0

    @property
    def is_waited_for(self) -> bool:
        """Whether the source's model waits until this side has acknowledged a chunk."""
        return not self._level.overlapped

    @property
    def expected(self) -> str:
        """The chunk that is waited for, in words."""
        total = len(self._all_chunks)
        return (
            f"chunk {total - self.missing_count} of {total} of stream {self.stream.id} "
            f"from rank {self.stream.peer}"
        )

    def poll(self) -> bool:
        """Take the next chunk if it is there; return whether it was.

        Raises:
            StreamingError: a chunk that was announced does not come.
        """
        has_finished = self._finish_uploads()
        if not self._pending_chunks or not self._pending_chunks[0].pending_receive.poll():
            return has_finished
        arrived_chunk = self._pending_chunks.popleft()
        if self._upload is None:
            self._finish_chunk(arrived_chunk)
        else:
            if isinstance(self._extents, BouncedExtents):
                self._extents.put(arrived_chunk.chunk.step)
            self._pending_uploads.append(_PendingUpload(arrived_chunk, self._upload.mark()))
        return True

    def _finish_uploads(self) -> bool:
        """Finish the chunks whose upload has ended; return whether there were any."""
        count_before = len(self._pending_uploads)
        # One stream runs all uploads, so the oldest ends first.
        while self._pending_uploads and self._pending_uploads[0].placed_event.query():
            self._finish_chunk(self._pending_uploads.popleft().arrived_chunk)
        return len(self._pending_uploads) < count_before

    def _receive(self, slot: torch.Tensor) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            packed = slot[: chunk.nbytes]
            scatter = self._scatters[chunk.index]
            pending_receive = self._endpoint.receive(self.stream, packed, scatter)
            self._pending_chunks.append(_PendingChunk(pending_receive, chunk, slot, 1))

    def _receive_extents(self, step_extents: StepExtents) -> None:
        chunk = next(self._chunks, None)
        if chunk is not None:
            extents = step_extents.of_step(chunk.step)
            pending_receive = self._endpoint.receive_extents(
                self.stream, extents, self._level.each_complete
            )
            self._pending_chunks.append(_PendingChunk(pending_receive, chunk, None, len(extents)))

    def _finish_chunk(self, arrived_chunk: _PendingChunk) -> None:
        """Acknowledge a chunk that is in its place, and ask for the next one into its slot."""
        self._endpoint.acknowledge(self.stream)  # first: the source may be waiting
        if len(self.arrivals) < self._most_arrivals:
            self.arrivals.append(
                ChunkArrival(arrived_chunk.pending_receive.received_ns, chunk_times.now())
            )
        progress.listener.count_progress()
        self.missing_count -= 1
        self.nbytes += arrived_chunk.chunk.nbytes
        self.messages += arrived_chunk.message_count
        if arrived_chunk.slot is not None:
            self._receive(arrived_chunk.slot)
        elif self._extents is not None:
            self._receive_extents(self._extents)


def receive_all(receivers: Iterable[CacheReceiver], beside_model: bool = False) -> None:
    """Take what arrives for all receivers until each is done. Sleeps while nothing comes.

    Args:
        beside_model: a source computes on the cores of this host, so looks are rare. Not for links
            between hosts: there a chunk gets on only when both sides look.
    """
    unfinished_receivers = list(receivers)

    def poll() -> bool:
        return sum(receiver.poll() for receiver in unfinished_receivers) > 0  # each gets its turn

    wait_s = 0.0  # seconds that the chunk before took to come
    while unfinished_receivers:
        model_waits = any(receiver.is_waited_for for receiver in unfinished_receivers)
        # A drain waits for the last chunk.
        to_the_end = model_waits or any(
            receiver.missing_count == 1 for receiver in unfinished_receivers
        )
        first_nap_s = 0.0
        naps = EAGER_NAPS if model_waits else LAZY_NAPS
        if beside_model and wait_s > SHORTEST_STEP_S and not to_the_end:
            # A step takes about as long as the one before it: sleep through its first part.
            longest_nap_s = min(max(wait_s * NAP_SHARE, LAZY_NAPS.longest_s), LONGEST_NAP_S)
            first_nap_s = min(wait_s / 2, LONGEST_FIRST_NAP_S)
            naps = Naps(LAZY_NAPS.share, longest_nap_s)
        began_s = time.monotonic()
        wait_asleep(poll, "chunks", naps=naps, first_nap_s=first_nap_s)
        wait_s = time.monotonic() - began_s
        unfinished_receivers = [receiver for receiver in unfinished_receivers if not receiver.done]
