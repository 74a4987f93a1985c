"""Times of chunks on a CUDA device: its events, related to the clock of the host.

An event says nothing about the host's clock, only how long after another event it was reached. So
one event per microbatch is waited for, outside any clock: the *anchor*.
"""

from __future__ import annotations

from array import array
from operator import itemgetter

import torch

from . import chunk_times
from .chunk_times import READY, STAMPS, StampName

EVENTS_PER_ANCHOR = 5
"""Events that an anchor is the best of. The host sees an event some microseconds late."""


class DeviceClock:
    """The time of events of one device, by :func:`chunk_times.now`.

    Attributes:
        error_ns: how far all times may be off, half of the time that waiting for the anchor took.
    """

    def __init__(self, device: torch.device) -> None:
        # A CUDA stream of its own: the anchor must not wait for what a model computes.
        self._cuda_stream = torch.cuda.Stream(device)
        self._anchor = torch.cuda.Event(enable_timing=True)
        self._anchor_ns = 0
        self.error_ns = 0

    def set(self) -> None:
        """Make a new anchor. It waits for the device, so it is called outside any clock."""
        anchors: list[tuple[int, int, torch.cuda.Event]] = []
        for _ in range(EVENTS_PER_ANCHOR):
            event = torch.cuda.Event(enable_timing=True)
            began_ns = chunk_times.now()
            event.record(self._cuda_stream)
            event.synchronize()
            anchors.append((chunk_times.now() - began_ns, began_ns, event))
        waited_ns, began_ns, self._anchor = min(anchors, key=itemgetter(0))
        self.error_ns = waited_ns // 2
        self._anchor_ns = began_ns + self.error_ns

    def time_of(self, event: torch.cuda.Event) -> int:
        """Return when the device has reached a timed event, which must be so by now."""
        return self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6)


class DeviceMarks:
    """The events of one transfer, which become stamps once it is complete.

    Args:
        ready_event: event after which the chunk's keys and values are in place.
    """

    def __init__(self, clock: DeviceClock, ready_event: torch.cuda.Event) -> None:
        self._clock = clock
        self._events: list[tuple[StampName, torch.cuda.Event]] = [("ready", ready_event)]

    def add(self, name: StampName, event: torch.cuda.Event) -> None:
        """Let a timed event that is recorded already be a stamp."""
        self._events.append((name, event))

    def record(self, name: StampName, cuda_stream: torch.cuda.Stream) -> torch.cuda.Event:
        """Record a stamp on a CUDA stream; return its event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(cuda_stream)
        self.add(name, event)
        return event

    def fill(self, stamps: array[int], first_stamp: int) -> None:
        """Turn all events into stamps. All have been reached: the chunk is complete.

        Args:
            stamps, first_stamp: the chunk's row of times: an array, and where it begins.
        """
        (_, ready_event), *later_events = self._events
        ready_ns = self._clock.time_of(ready_event)
        stamps[first_stamp + READY] = ready_ns
        for name, event in later_events:
            # CUDA gives a single-precision float: over a short time its error is small.
            stamps[first_stamp + STAMPS.index(name)] = ready_ns + round(
                ready_event.elapsed_time(event) * 1e6
            )
