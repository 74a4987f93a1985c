"""Posting a transfer to its destination, packed or extent by extent, and the times that it takes.

The streamer's helper thread calls these functions.
"""

from __future__ import annotations

import torch

from . import chunk_times
from .chunk_times import COMPLETE, GATHERED, MOVED, POSTED, SINK_NS
from .destinations.base import Destination
from .extents import StepExtents
from .transfers import PlannedChunk, Transfer


def prepare_next_step(planned_chunk: PlannedChunk, extents: StepExtents) -> None:
    """Find the extents of the step after this chunk's, while the model computes."""
    schedule = planned_chunk.stream.schedule
    extents.prepare(schedule.step_after(planned_chunk.chunk.step))


def post_packed(destination: Destination, transfer: Transfer, packed: torch.Tensor | None) -> None:
    """Post a chunk that is gathered into ``packed``; without it, straight from the cache."""
    _announce(destination, transfer)
    planned_chunk = transfer.planned_chunk
    stream, chunk = planned_chunk.stream, planned_chunk.chunk
    if packed is None:
        destination.flush_direct(stream, chunk, planned_chunk.direct)
    else:
        destination.flush(stream, chunk, packed)
    transfer.stamp(POSTED)
    transfer.stats.copies += 1


def post_extents(destination: Destination, transfer: Transfer, step_extents: StepExtents) -> None:
    """Post a chunk extent by extent, straight from the cache."""
    planned_chunk = transfer.planned_chunk
    if transfer.ready_event is not None:
        # Whoever reads single extents does not wait for the event, so this thread does.
        transfer.ready_event.synchronize()
    _announce(destination, transfer)
    extents = step_extents.of_step(planned_chunk.chunk.step)
    transfer.stamp(GATHERED)
    destination.flush_extents(
        planned_chunk.stream, planned_chunk.chunk, extents, planned_chunk.each_complete
    )
    transfer.stamp(POSTED)
    transfer.stats.copies += len(extents)


def note_completion(destination: Destination, transfer: Transfer) -> None:
    """Keep the times of a chunk that is complete, if it is timed."""
    times = transfer.times
    stamps = transfer.stamps
    first_stamp = transfer.first_stamp
    if times is None or stamps is None:
        return
    stamps[first_stamp + COMPLETE] = chunk_times.now()
    if transfer.marks is not None:
        transfer.marks.fill(stamps, first_stamp)
    receipt = destination.receipt(transfer.planned_chunk.stream)
    if receipt is not None:
        moved_ns, sink_ns = receipt
        if moved_ns is not None:
            stamps[first_stamp + MOVED] = moved_ns
        if sink_ns is not None:
            stamps[first_stamp + SINK_NS] = sink_ns
    times.count(transfer.planned_chunk.row, stamps)


def _announce(destination: Destination, transfer: Transfer) -> None:
    """Tell the destination that a decode step begins, before the step's first chunk."""
    planned_chunk = transfer.planned_chunk
    if planned_chunk.begins_step:
        destination.step(planned_chunk.stream, planned_chunk.chunk.step, transfer.tokens)
