"""Chunks on their way, and the counters of streaming.

A manager hands transfers to a streamer. Both sides know these classes and not each other.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from . import chunk_times
from .chunk_times import MOST_TIMED_CHUNKS, TimesBlock
from .destinations.base import PreparedChunk, Stream
from .device_times import DeviceMarks
from .extents import StepExtents
from .packing import Packing
from .schedule import Chunk


@dataclass
class StreamStats:
    """Counters of streaming in one phase.

    Attributes:
        nbytes: bytes that were in place in the cache and handed to streaming.
        copies: copies or messages that moved them.
        stall_s: seconds the model waited for streaming, hand-over included.
        lag_nbytes: the most bytes that were in place and not yet complete.
        stalls: begin and end of each stall within ``stall_s``, in nanoseconds of
            :func:`.chunk_times.now`; at most :data:`.chunk_times.MOST_TIMED_CHUNKS` of them.
    """

    nbytes: int = 0
    copies: int = 0
    stall_s: float = 0.0
    lag_nbytes: int = 0
    stalls: list[tuple[int, int]] = field(default_factory=list)

    def add_stall(self, began_ns: int) -> None:
        """Count the time since ``began_ns``, by :func:`.chunk_times.now`, as a stall."""
        self.add_past_stall(began_ns, chunk_times.now())

    def add_past_stall(self, began_ns: int, ended_ns: int) -> None:
        """Count the time from ``began_ns`` to ``ended_ns``, likewise."""
        self.stall_s += (ended_ns - began_ns) * 1e-9
        if len(self.stalls) < MOST_TIMED_CHUNKS:
            self.stalls.append((began_ns, ended_ns))

    def add(self, more: StreamStats) -> None:
        """Add the counters of other streaming in the same phase."""
        self.nbytes += more.nbytes
        self.copies += more.copies
        self.stall_s += more.stall_s
        self.lag_nbytes = max(self.lag_nbytes, more.lag_nbytes)
        self.stalls += more.stalls[: MOST_TIMED_CHUNKS - len(self.stalls)]


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


class HeldSteps:
    """Decode steps that are in place and wait until their group leaves.

    Args:
        step_nbytes: bytes that each step adds to all streams.

    Attributes:
        nbytes: bytes of the steps that wait.
    """

    def __init__(self, step_nbytes: int) -> None:
        self.nbytes = 0
        self._step_nbytes = step_nbytes
        self._tokens: list[np.ndarray | None] = []

    def add(self, tokens: np.ndarray | None) -> None:
        """Add a step; ``tokens``: the token ids [B] that went into it, if they are known."""
        self.nbytes += self._step_nbytes
        self._tokens.append(tokens)

    def leave(self) -> np.ndarray | None:
        """Let all steps leave. Return their token ids, [B] of a single step, else [B, n]."""
        tokens = self._tokens
        self.nbytes = 0
        self._tokens = []
        if len(tokens) <= 1:  # every step, where each leaves at its own end
            return tokens[0] if tokens else None
        known_ids = [ids for ids in tokens if ids is not None]
        return np.stack(known_ids, axis=1) if len(known_ids) == len(tokens) else None


@dataclass(frozen=True, eq=False)
class PlannedChunk:
    """A chunk that will be streamed, with what can be prepared beforehand.

    Attributes:
        source: gathers the chunk into one buffer; at the unbuffered levels, the extents that move
            one by one.
        each_complete: an extent is complete before the next one begins.
        row: the chunk's row among the chunks of its manager.
        direct: what the destination needs to move it straight from its cache; None: it is packed,
            or its extents move one by one.
    """

    stream: Stream
    chunk: Chunk
    source: Packing | StepExtents
    each_complete: bool
    row: int = 0
    direct: PreparedChunk | None = None

    @cached_property
    def begins_step(self) -> bool:
        """Whether it is the first chunk of a group of decode steps."""
        step = self.chunk.step
        return step > 0 and self.chunk.offset == self.stream.schedule.step_offset(step)

    @property
    def needs_slot(self) -> bool:
        """Whether it is packed on its way."""
        return isinstance(self.source, Packing) and self.direct is None

    @property
    def layer(self) -> int | None:
        """The first layer of the chunk; None if it has all layers of its cache."""
        layers = self.chunk.region.layers
        return None if layers.size == self.stream.schedule.geometry.layers else layers.start

    @property
    def extent_count(self) -> int:
        """Contiguous pieces of the cache that the chunk is gathered from, or moved as."""
        schedule = self.stream.schedule
        step = self.chunk.step
        if isinstance(self.source, Packing):
            return schedule.geometry.count_extents(self.chunk.region)
        atoms = schedule.atoms(step)
        other_geometry = schedule.other_geometry
        return sum(schedule.geometry.count_extents(atom, other_geometry) for atom in atoms)


@dataclass(eq=False)
class Transfer:
    """One chunk on its way.

    Attributes:
        planned_chunk: the chunk.
        byte_progress: counts of the manager that handed the chunk over.
        stats: counters of the phase that the chunk belongs to.
        tokens: token ids that went into its group of decode steps, if they are known here: [B] of a
            single step, or [B, n].
        ready_event: CUDA event after which the chunk's keys and values are in place on the device.
        slot: the staging slot that it holds until it is complete.
        times: its manager's block of times; None where chunks are not timed.
        stamps, first_stamp: its row of times, if chunks are timed: an array, and where it begins.
        marks: its events on a CUDA device, if chunks are timed.
    """

    planned_chunk: PlannedChunk
    byte_progress: ByteProgress
    stats: StreamStats
    tokens: np.ndarray | None = None
    ready_event: torch.cuda.Event | None = None
    slot: torch.Tensor | None = None
    times: TimesBlock | None = None
    stamps: array[int] | None = None
    first_stamp: int = 0
    marks: DeviceMarks | None = None

    def take_times(self, times: TimesBlock, ready_ns: int) -> None:
        """Let the chunk be timed; ``ready_ns``: when its keys and values were in place."""
        self.times = times
        self.stamps, self.first_stamp = times.row(self.planned_chunk.row)
        self.stamps[self.first_stamp] = ready_ns

    def stamp(self, stamp_index: int) -> None:
        """Note that this happens to the chunk now, if chunks are timed.

        Args:
            stamp_index: the event, such as :data:`.chunk_times.BEGUN`.
        """
        stamps = self.stamps
        if stamps is not None:
            stamps[self.first_stamp + stamp_index] = chunk_times.now()
