"""The caches that swapped microbatches take turns in: how they are filled, and how a model waits.

Two threads use them. The model's thread enters and leaves a place; the fetcher's fills it. On a
CUDA device neither waits for what the device does: places are filled on a CUDA stream of their own,
behind the turn that was there, and the model's CUDA stream waits until its place is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from .. import chunk_times
from ..device_times import DeviceClock
from ..kv_cache import KVCache
from ..upload import DeviceUpload


class Wait(Protocol):
    """One wait of the model for a place."""

    def span(self) -> tuple[int, int]:
        """Return its begin and end by :func:`.chunk_times.now`; called when its turn is over."""


class Residents(Protocol):
    """The caches in place. A *place* is the number of one of them."""

    def begin(self) -> None:
        """Forget the turns of earlier microbatches; called while neither thread is at work."""

    # ---- the model's thread ----

    def arrive(self) -> Callable[[int], Wait]:
        """Note that the model is ready for its next place.

        Returns:
            A function that enters the place, once its filling has been issued. What the model
            computes from then on finds the place filled.
        """

    def leave(self, place: int) -> None:
        """Let the place be filled again behind what the model has computed so far."""

    # ---- the fetcher's thread ----

    def begin_fill(self, place: int) -> None:
        """Begin to fill a place, whose last turn is streamed out."""

    def put(self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]) -> None:
        """Put packed bytes of host memory in the place.

        Args:
            packed: uint8. Page-locked memory stays as it is until the place is filled.
            scatter: puts bytes that are in the memory of the caches in their place.
        """

    def end_fill(self, place: int) -> None:
        """Note that all was put: the model may enter the place."""

    def is_filled(self, place: int) -> bool:
        """Return whether every byte that was put is in the place."""


def make_residents(caches: Sequence[KVCache], nbytes: int) -> Residents:
    """Return the places of caches on one device; ``nbytes``: most bytes that are put at once."""
    return DeviceResidents(caches, nbytes) if caches[0].k.is_cuda else HostResidents()


class _HostWait(NamedTuple):
    began_ns: int
    ended_ns: int

    def span(self) -> tuple[int, int]:
        return self.began_ns, self.ended_ns


class HostResidents:
    """Caches in host memory: what a thread does there is done when it goes on."""

    def begin(self) -> None:
        """Do nothing: no turn has left anything."""

    def arrive(self) -> Callable[[int], _HostWait]:
        """Return the function that notes the end of the wait that begins now."""
        began_ns = chunk_times.now()
        return lambda place: _HostWait(began_ns, chunk_times.now())

    def leave(self, place: int) -> None:
        """Do nothing: the turn has been computed."""

    def begin_fill(self, place: int) -> None:
        """Do nothing: the last turn has been computed and streamed out."""

    def put(self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]) -> None:
        """Scatter at once."""
        scatter(packed)

    def end_fill(self, place: int) -> None:
        """Do nothing: all is in the place."""

    def is_filled(self, place: int) -> bool:
        """Return True: what was put is in the place."""
        return True


class _DeviceWait(NamedTuple):
    """A wait of the model's CUDA stream, between two of its events.

    Attributes:
        asked_ns: when the model's thread asked for the place. The wait begins then, or later: when
            the device has computed what was launched before.
    """

    clock: DeviceClock
    asked_ns: int
    arrived_event: torch.cuda.Event
    entered_event: torch.cuda.Event

    def span(self) -> tuple[int, int]:
        # The device's clock is some microseconds off, so it may show times before the question.
        began_ns = max(self.asked_ns, self.clock.time_of(self.arrived_event))
        return began_ns, max(began_ns, self.clock.time_of(self.entered_event))


class DeviceResidents:
    """Caches on a CUDA device, which are filled beside the model."""

    def __init__(self, caches: Sequence[KVCache], nbytes: int) -> None:
        device = caches[0].k.device
        self._upload = DeviceUpload(device, nbytes)
        self._clock = DeviceClock(device)
        self._left_events: list[torch.cuda.Event | None] = [None] * len(caches)
        self._filled_events: list[torch.cuda.Event | None] = [None] * len(caches)

    def begin(self) -> None:
        """Forget all events, and relate the device's clock to the host's."""
        self._left_events = [None] * len(self._left_events)
        self._filled_events = [None] * len(self._filled_events)
        self._clock.set()

    def arrive(self) -> Callable[[int], _DeviceWait]:
        """Mark the model's CUDA stream; return the function that lets it wait for a place."""
        asked_ns = chunk_times.now()
        arrived_event = torch.cuda.Event(enable_timing=True)
        arrived_event.record()

        def enter(place: int) -> _DeviceWait:
            filled_event = self._filled_events[place]
            if filled_event is not None:
                torch.cuda.current_stream().wait_event(filled_event)
            entered_event = torch.cuda.Event(enable_timing=True)
            entered_event.record()
            return _DeviceWait(self._clock, asked_ns, arrived_event, entered_event)

        return enter

    def leave(self, place: int) -> None:
        """Mark the end of the turn on the model's CUDA stream."""
        # A prompt is streamed out before its last layer has read it: only this mark tells when the
        # model has done with the place.
        left_event = torch.cuda.Event()
        left_event.record()
        self._left_events[place] = left_event

    def begin_fill(self, place: int) -> None:
        """Let the filling begin behind the end of the last turn."""
        left_event = self._left_events[place]
        if left_event is not None:
            self._upload.wait_for(left_event)

    def put(self, packed: torch.Tensor, scatter: Callable[[torch.Tensor], None]) -> None:
        """Issue the upload and the scatter."""
        self._upload.put(packed, scatter)

    def end_fill(self, place: int) -> None:
        """Mark the end of the filling."""
        self._filled_events[place] = self._upload.mark()

    def is_filled(self, place: int) -> bool:
        """Return whether the filling has ended."""
        filled_event = self._filled_events[place]
        return filled_event is None or filled_event.query()
