"""The interface of a destination: it moves contiguous chunks of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch

from ..chunk_times import Receipt
from ..kv_cache import KVCache
from ..schedule import Chunk, StreamSchedule
from .registry import DestinationEntry

EXTENTS_PER_BLOCK = 256
"""Extents after which an unbuffered chunk counts as moving."""

CONNECT_S = 60.0
"""Seconds within which the other side must connect, or be done with this side's memory."""

WAIT_FOR_PEER_REPORT_S = 3.0
"""Seconds that this side waits before it complains of a lost peer.

The failed peer reports the cause. Waiting gives the launcher time to end this process before it
prints a second, less useful error.
"""

StreamKey = tuple[int | None, int]
"""A stream among those of one process: the other side's rank, and the stream's id."""

PreparedChunk = Any
"""A destination's own preparation for moving a chunk straight from its cache, opaque to others."""

_Extent = TypeVar("_Extent")
_Sending = TypeVar("_Sending")


class StreamingError(Exception):
    """Streaming cannot continue; the message says which chunk failed and why."""


class StorageError(StreamingError):
    """A file cannot be created, written or read: the device or the operating system refuses."""


class WrongBytesError(StreamingError):
    """The destination does not hold what was written to it."""


@dataclass(frozen=True)
class Stream:
    """One microbatch's cache between this worker and one target.

    Attributes:
        id: unique among the streams between two ranks.
        schedule: the chunks, in the coordinates of this side's cache.
        peer: rank of the other side; None for a destination that is not remote.
    """

    id: int
    schedule: StreamSchedule
    peer: int | None = None

    @property
    def key(self) -> StreamKey:
        """Unique among the streams of one process."""
        return self.peer, self.id

    @property
    def peer_rank(self) -> int:
        """The other side's rank, of a stream that has one."""
        assert self.peer is not None, f"stream {self.id} has no peer"
        return self.peer


class Buffer(Protocol):
    """Memory, or a part of a file, that holds chunks. A torch.Tensor of uint8 is one."""

    def fill_(self, value: int, /) -> object:
        """Set every byte to ``value`` (0 to 255)."""


class Destination(ABC):
    """The source's side of a destination.

    One helper thread calls it, and the chunks of a stream come in order. A chunk is *complete* when
    the destination has it: copied (host), acknowledged (mpi), as durable as the option says (disk).
    Packed buffers that were given to :meth:`flush` stay untouched until their chunk is complete.

    Attributes:
        entry: name and abilities of the destination, as the registry has them. Where it is not
            ``staged``, :meth:`place` always gives the final place.
        by_address: takes single extents as (address, bytes). Off: as views of host memory.
        blocks_moved: blocks of extents moved so far: a sign that a long unbuffered chunk still
            moves.
        timed: chunks get a :meth:`receipt`. The streamer switches it on.
    """

    entry: ClassVar[DestinationEntry]
    by_address = False
    blocks_moved = 0
    timed = False

    @property
    def device_memory(self) -> bool:
        """Whether it takes chunks from a CUDA device's memory, else from host memory only."""
        return self.entry.device_memory

    @property
    def ways(self) -> Mapping[str, str]:
        """How chunks of each kind (``prompt``, ``token``) move, in words, if it chooses itself."""
        return {}

    @abstractmethod
    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch. Chunks of other streams may be on their way meanwhile.

        Args:
            tokens: token ids of the prompt, int64 [B, P].
        """

    def buffers(self, stream: Stream) -> Sequence[Buffer]:
        """Return the memory that holds a stream's chunks, once :meth:`begin` has returned.

        The owner may overwrite the buffers until the stream's first chunk moves. Empty if only the
        sink holds the chunks.
        """
        return ()

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:  # noqa: B027
        """Note that the chunks of a group of decode steps follow.

        Args:
            step: the group's last step.
            tokens: token ids that went into the steps of the group, [B] of a single one or [B, n];
                None if this worker does not know them.
        """

    def place(self, stream: Stream, chunk: Chunk) -> torch.Tensor | None:
        """Return the chunk's final place if this process can gather straight into it."""
        return None

    @abstractmethod
    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Begin to move a packed chunk; may return before it is complete.

        Args:
            packed: uint8, contiguous. In device memory, it holds the chunk once the work issued on
                torch's current stream so far is done.
        """

    def prepare_direct(self, stream: Stream, chunk: Chunk, cache: KVCache) -> PreparedChunk | None:
        """Prepare to move a chunk straight from its cache, outside the clock.

        Returns:
            What :meth:`flush_direct` needs for it; None if the chunk is to be packed.
        """
        return None

    def flush_direct(self, stream: Stream, chunk: Chunk, prepared: PreparedChunk) -> None:
        """Begin to move a chunk straight from its cache; may return before it is complete.

        The cache stays as it is until the chunk is complete. On a device, the chunk is in its place
        there once the work issued on torch's current stream so far is done.

        Args:
            prepared: from :meth:`prepare_direct`.
        """
        raise NotImplementedError(f"{self.entry.name} packs every chunk")

    @abstractmethod
    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[Any], each_complete: bool
    ) -> None:
        """Move a chunk's extents in packed order, each by a copy or message of its own.

        Returns when all are issued.

        Args:
            extents: views of host memory, or (address, bytes) if :attr:`by_address`.
            each_complete: an extent is complete before the next one begins.
        """

    def cut_and_count(
        self, extents: Sequence[_Extent], block: int = EXTENTS_PER_BLOCK
    ) -> Iterator[Sequence[_Extent]]:
        """Cut ``extents`` into blocks; each counts as moved when the next one is asked for."""
        # A block, and not an extent, is counted: counting each would slow the naive loop.
        for start in range(0, len(extents), block):
            yield extents[start : start + block]
            self.blocks_moved += 1

    @abstractmethod
    def poll_completed(self, stream: Stream) -> int:
        """Return how many chunks of the stream are complete since :meth:`begin`; never waits."""

    def receipt(self, stream: Stream) -> Receipt | None:
        """Return the times of the stream's oldest complete chunk that was not asked for yet.

        Asked for once per chunk, as soon as it is complete, if ``timed``.
        """
        return None

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of the destination's own threads."""
        return 0.0

    def give_up(self) -> None:  # noqa: B027
        """End every wait for another rank: chunks on their way are given up. From any thread."""

    def close(self) -> None:  # noqa: B027
        """Release what the destination holds."""


class ReadableDestination(Destination):
    """A destination whose complete chunks the source can read back."""

    @abstractmethod
    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Read a complete chunk back into ``packed``, uint8 of the chunk's bytes.

        Raises:
            StreamingError: the chunk cannot be read.
        """


class LocalDestination(ReadableDestination):
    """A destination in this process's memory or on its disk."""

    @abstractmethod
    def fetch_steps(self, stream: Stream, steps: range) -> tuple[torch.Tensor, int]:
        """Read complete steps of one size (the prompt, or decode steps). From any thread.

        The stream's flush interval is 1.

        Returns:
            A uint8 tensor that begins with the first step's packed bytes, and the bytes from the
            beginning of one step to the next. The tensor is read only and valid until the next
            chunk of the stream moves.
        """


class RemoteDestination(Destination, Generic[_Sending]):
    """A destination on another rank: keeps each stream's chunks on their way, oldest first."""

    def __init__(self) -> None:
        self._under_way: dict[StreamKey, deque[_Sending]] = {}
        self._completed: dict[StreamKey, int] = {}
        self._receipts: dict[StreamKey, deque[Receipt]] = {}

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, as :meth:`Destination.begin`.

        Raises:
            StreamingError: chunks of the last microbatch are still on their way.
        """
        if self._under_way.get(stream.key):
            raise StreamingError(
                f"stream {stream.id} cannot begin: {len(self._under_way[stream.key])} chunks of "
                "the last microbatch are on their way"
            )
        self._under_way[stream.key] = deque()
        self._completed[stream.key] = 0
        self._receipts[stream.key] = deque()

    def receipt(self, stream: Stream) -> Receipt | None:
        """Return and forget the stream's oldest filed receipt; None without one."""
        receipts = self._receipts[stream.key]
        return receipts.popleft() if receipts else None
