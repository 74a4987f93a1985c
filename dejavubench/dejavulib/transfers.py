"""Chunks on their way, and the counters of streaming.

A manager hands transfers to a streamer. Both sides know these classes and not each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from . import chunktimes
from .chunktimes import StampName, Stamps, TimesBlock
from .copies import Packing
from .destinations.base import Stream
from .extents import StepExtents
from .schedule import Chunk


@dataclass
class StreamStats:
    """Counters of streaming in one phase.

    Attributes:
        nbytes: bytes that were in place in the cache and handed to streaming.
        copies: copies or messages that moved them.
        stall_s: seconds the model waited for streaming, hand-over included.
        lag_nbytes: the most bytes that were in place and not yet complete.
    """

    nbytes: int = 0
    copies: int = 0
    stall_s: float = 0.0
    lag_nbytes: int = 0

    def add(self, other: StreamStats) -> None:
        """Add what streaming did elsewhere in the same phase."""
        self.nbytes += other.nbytes
        self.copies += other.copies
        self.stall_s += other.stall_s
        self.lag_nbytes = max(self.lag_nbytes, other.lag_nbytes)


@dataclass(eq=False)
class ByteProgress:
    """Bytes that one manager has handed over, and how many of them are complete.

    Each number has one writer, so that no lock is needed.

    Attributes:
        submitted_nbytes: written by the model's thread.
        completed_nbytes: written by the helper thread.
    """

    submitted_nbytes: int = 0
    completed_nbytes: int = 0

    @property
    def lag_nbytes(self) -> int:
        """Bytes that were handed over and are not complete."""
        return self.submitted_nbytes - self.completed_nbytes


@dataclass(frozen=True, eq=False)
class PlannedChunk:
    """A chunk that will be streamed, with what can be prepared beforehand.

    Attributes:
        packing: gathers the chunk into one buffer; None at the unbuffered levels.
        extents: extents that the unbuffered levels move one by one; None at other levels.
        each_complete: an extent is complete before the next one begins.
        row: the chunk's row among the chunks of its manager.
    """

    stream: Stream
    chunk: Chunk
    packing: Packing | None
    extents: StepExtents | None
    each_complete: bool
    row: int = 0

    @property
    def extents_count(self) -> int:
        """Contiguous pieces of the cache that the chunk is gathered from, or moved as."""
        schedule, step = self.stream.schedule, self.chunk.step
        if self.packing is not None:
            return schedule.geometry.count_extents(self.chunk.region)
        atoms, other = schedule.atoms(step), schedule.other
        return sum(schedule.geometry.count_extents(atom, other) for atom in atoms)


@dataclass(eq=False)
class Transfer:
    """One chunk on its way.

    Attributes:
        planned: the chunk.
        byte_progress: counts of the manager that handed the chunk over.
        stats: counters of the phase that the chunk belongs to.
        tokens: token ids [B] that went into its decode step, if they are known here.
        ready: CUDA event after which the chunk's keys and values are in place on the device.
        slot: the staging slot that it holds until it is complete.
        times: its manager's block of times; None where chunks are not timed.
        stamps: its own times, if chunks are timed.
    """

    planned: PlannedChunk
    byte_progress: ByteProgress
    stats: StreamStats
    tokens: np.ndarray | None = None
    ready: torch.cuda.Event | None = None
    slot: torch.Tensor | None = None
    times: TimesBlock | None = None
    stamps: Stamps | None = None

    def stamp(self, name: StampName) -> None:
        """Note that this happens to the chunk now, if chunks are timed."""
        if self.stamps is not None:
            setattr(self.stamps, name, chunktimes.now())
