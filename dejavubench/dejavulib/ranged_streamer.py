"""A streamer that names what its helper thread does, for a profiler such as Nsight Systems.

Whoever wants the names makes a :class:`RangedStreamer` in place of a ``Streamer``. So the helper
asks nothing and pays nothing where nobody wants them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from .chunk_times import LatencyPart
from .destinations.base import Destination
from .device import BounceBuffer, DeviceStaging
from .packing import Packing
from .streamer import Streamer
from .titles import format_chunk_title
from .transfers import Transfer


class Ranges(Protocol):
    """Receiver of named ranges of time. Each thread has a stack of its own."""

    def push(self, name: str) -> None:
        """Begin a range within the newest one of this thread."""

    def pop(self) -> None:
        """End the newest range of this thread."""


def name_range(lane: str, title: str) -> str:
    """Return the name of a range: lane and event as ``dejavubench trace`` calls them."""
    return f"{lane}: {title}"


@contextmanager
def push_range(ranges: Ranges, name: str) -> Iterator[None]:
    """Push a range, and pop it at the end of the block."""
    ranges.push(name)
    try:
        yield
    finally:
        ranges.pop()


class RangedStreamer(Streamer):
    """A streamer whose helper thread pushes a range for each chunk's gather, post and move.

    A range is named for the part of the chunk's latency that the call is in. On a CUDA device it
    covers the call that issues the work there. Parts that one call issues have one range, such as
    ``gather + copy to host``.

    Args:
        ranges: where they are pushed. All others are those of :class:`Streamer`.
    """

    def __init__(
        self,
        ranges: Ranges,
        destination: Destination,
        slots: Sequence[torch.Tensor],
        device_staging: DeviceStaging | None = None,
        bounce_buffer: BounceBuffer | None = None,
        holds_failure: bool = False,
        timed: bool = True,
    ) -> None:
        self._ranges = ranges
        self._is_gathering = False  # the range of a gather is open
        super().__init__(destination, slots, device_staging, bounce_buffer, holds_failure, timed)

    def _start(self, transfer: Transfer) -> None:
        gather, _ = self._lanes(transfer)
        self._push(gather, transfer)
        self._is_gathering = True
        try:
            super()._start(transfer)
        finally:
            self._end_gather()  # open if no flush followed at once: the chunk leaves the device

    def _post(self, transfer: Transfer, packed: torch.Tensor | None) -> None:
        self._end_gather()  # one part ends where the next one begins
        _, post = self._lanes(transfer)
        self._push(post, transfer)
        try:
            super()._post(transfer, packed)
        finally:
            self._ranges.pop()

    def _end_gather(self) -> None:
        if self._is_gathering:
            self._is_gathering = False
            self._ranges.pop()

    def _push(self, lane: str, transfer: Transfer) -> None:
        planned_chunk = transfer.planned_chunk
        self._ranges.push(
            name_range(lane, format_chunk_title(planned_chunk.chunk.step, planned_chunk.layer))
        )

    def _lanes(self, transfer: Transfer) -> tuple[str, str]:
        """Return the names of the parts in which a chunk is gathered and posted."""
        _, *parts = self._parts(transfer)  # the first one is the queue, in which nothing is called
        gathering = [part.name for part in parts if part.until in ("gathered", "copied")]
        # Nothing is called until the helper has seen a copy's end.
        later_parts = [
            part.name for part in parts if part.until not in ("gathered", "copied", "seen")
        ]
        if not isinstance(
            transfer.planned_chunk.source, Packing
        ):  # one call moves all extents of a chunk
            moving_lane = " + ".join([*gathering, later_parts[0]])
            return moving_lane, moving_lane
        return " + ".join(gathering) or later_parts[0], later_parts[0]

    def _parts(self, transfer: Transfer) -> tuple[LatencyPart, ...]:
        entry = self.destination.entry
        planned_chunk = transfer.planned_chunk
        on_device = transfer.ready_event is not None
        if not isinstance(planned_chunk.source, Packing):
            if not on_device or self.destination.by_address:
                return entry.extent_parts
            return entry.bounced_parts(planned_chunk.each_complete)
        if not on_device or self.device_staging is None:
            return entry.parts
        return self.device_staging.parts(entry, planned_chunk.chunk.step)
