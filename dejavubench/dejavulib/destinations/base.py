"""What a destination is: something that moves contiguous chunks of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from dejavubench.dejavulib.schedule import Chunk, StreamSchedule

BLOCK = 256
"""Runs after which an unbuffered chunk shows that it moves."""


_Run = TypeVar("_Run")
_Sending = TypeVar("_Sending")


class StreamingError(Exception):
    """Streaming could not go on; the message says which chunk and why."""


class StorageError(StreamingError):
    """A file could not be made, written or read: the device or the operating system refuses."""


class WrongBytesError(StreamingError):
    """The destination does not hold what was written to it."""


@dataclass(frozen=True)
class Capabilities:
    """What a destination can do; stated in every report.

    Attributes:
        remote: chunks leave for another rank, so a sink must receive them.
        device_memory: takes chunks from the accelerator's memory; else from host memory only.
        by_address: takes single runs as (address, bytes); else as views of host memory.
        durable: a complete chunk survives a loss of power.
        durability: the named option in force, where there is one.
    """

    remote: bool
    device_memory: bool = False
    by_address: bool = False
    durable: bool = False
    durability: str | None = None


@dataclass(frozen=True)
class Stream:
    """One microbatch slot's cache on its way from this worker to one target.

    ``id`` is unique among the streams between two ranks; ``peer`` is the other side's rank, if remote.
    """

    id: int
    schedule: StreamSchedule
    peer: int | None = None

    @property
    def key(self) -> tuple[int | None, int]:
        """Unique among the streams of one process."""
        return self.peer, self.id


class Buffer(Protocol):
    """Memory, or a part of a file, that holds chunks. Every torch.Tensor of uint8 is one."""

    def fill_(self, value: int, /) -> object:
        """Set every byte to ``value`` (0 to 255)."""


class Destination(ABC):
    """The source's side of a destination. One helper thread calls it; chunks of a stream come in order.

    A chunk is *complete* when the destination has it: copied (host), acknowledged (mpi), durable as the
    option says (disk). Packed buffers handed to :meth:`flush` stay untouched until their chunk is complete.
    """

    name: str
    capabilities: Capabilities
    moved = 0
    """Blocks of runs that have been moved so far: what a long unbuffered chunk has to show for itself."""

    staged = True
    """Chunks go through staging slots; off where :meth:`place` always gives a chunk its final place.

    The slots are in the device's memory if the destination takes chunks from there, else in host memory.
    """

    @abstractmethod
    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Prepare for a microbatch, outside the clock; other streams' chunks may be on their way meanwhile.

        Args:
            tokens: the prompt's token ids, int64 [B, P].
        """

    def buffers(self, stream: Stream) -> Sequence[Buffer]:
        """Return what holds a stream's chunks once :meth:`begin` has returned; empty if only the sink holds them.

        The owner may overwrite the buffers until the stream's first chunk moves.
        """
        return ()

    def step(self, stream: Stream, step: int, tokens: np.ndarray | None) -> None:  # noqa: B027 - most need nothing
        """A decode step's chunks follow; ``tokens`` are the ids [B] that went into it, None if not known here."""

    def place(self, stream: Stream, chunk: Chunk) -> torch.Tensor | None:
        """The chunk's final place, if this process can gather straight into it; no staging is used then."""
        return None

    @abstractmethod
    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Begin to move a packed chunk (uint8, contiguous); may return before it is complete.

        One in the device's memory is filled by what has been issued on torch's current stream.
        """

    @abstractmethod
    def flush_runs(
        self, stream: Stream, chunk: Chunk, runs: Sequence[Any], each_complete: bool
    ) -> None:
        """Move a chunk's runs, each a copy or message of its own, in packed order; returns when all are issued.

        Args:
            runs: views of host memory; (address, bytes) for a destination that takes them by address.
            each_complete: a run is complete before the next one begins.
        """

    def counted(self, runs: Sequence[_Run], block: int = BLOCK) -> Iterator[Sequence[_Run]]:
        """``runs`` in blocks, each counted as moved when the next one is asked for."""
        for start in range(0, len(runs), block):
            yield runs[start : start + block]
            self.moved += 1

    @abstractmethod
    def completed(self, stream: Stream) -> int:
        """How many chunks of the stream are complete, counted from its beginning; does not wait."""

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Read a complete chunk back into ``packed``; remote destinations cannot."""
        raise NotImplementedError(f"{self.name} is read on the sink")

    def fetch_steps(self, stream: Stream, steps: range) -> tuple[torch.Tensor, int]:
        """Complete steps of one size (the prompt, or decode steps) one behind the other, called from any thread.

        Returns:
            uint8 that begins with the first step's packed bytes, and how many bytes each step begins behind the one
            before. It is to be read only, and at once.
        """
        raise NotImplementedError(f"{self.name} is read on the sink")

    def cpu_seconds(self) -> float:
        """CPU time so far of threads of the destination's own; 0 where the helper thread does everything."""
        return 0.0

    def give_up(self) -> None:  # noqa: B027 - most never wait for anybody
        """Chunks on their way are given up: whatever waits for another rank must end. Called from any thread."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what the destination holds."""


class RemoteDestination(Destination, Generic[_Sending]):
    """What destinations on other ranks have in common: the chunks of each stream on their way, oldest first."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[int | None, int], deque[_Sending]] = {}
        self._completed: dict[tuple[int | None, int], int] = {}

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """As :meth:`Destination.begin`. Raises StreamingError: chunks of the last microbatch are on their way."""
        if self._under_way.get(stream.key):
            raise StreamingError(
                f"stream {stream.id} begins anew with {len(self._under_way[stream.key])} chunks on their way"
            )
        self._under_way[stream.key] = deque()
        self._completed[stream.key] = 0
