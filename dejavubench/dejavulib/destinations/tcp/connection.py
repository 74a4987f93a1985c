"""What one source streams to a ``tcp`` sink: frame by frame into the caches that it has announced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from dejavubench.dejavulib.copies import aligned_buffer, scatter
from dejavubench.dejavulib.destinations.tcp.handshake import Setup, schedules
from dejavubench.dejavulib.destinations.tcp.held import HeldStream, RefusalError
from dejavubench.dejavulib.destinations.tcp.wire import REGION, Frame, Kind, Wire
from dejavubench.dejavulib.kvcache import Region, Span
from dejavubench.dejavulib.schedule import Chunk

Service = Callable[["Connection", Frame, HeldStream], None]
"""Answers a kind of frames that the owner of a sink adds to the protocol."""


class Connection:
    """What one source streams, once it has been let in.

    Args:
        services: handlers of further kinds of frames, from ``FIRST_SERVICE`` on; each replies by :meth:`reply`, raises
            RefusalError for what it does not take, and needs less than ``CONNECTION_NBYTES`` of memory.

    Raises:
        RefusalError: its setup is not one that can be.

    Attributes:
        wire: this side's end of the connection.
        nbytes, chunks: what has arrived.
    """

    def __init__(self, wire: Wire, setup: Setup, services: Mapping[int, Service]) -> None:
        self.wire = wire
        self._services = services
        try:
            found, dtype = schedules(setup), setup.torch_dtype()
        except ValueError as error:
            raise RefusalError(f"setup: {error}") from None
        self._streams = {id: HeldStream(id, schedule, dtype) for id, schedule in found.items()}
        self._slot_nbytes = min(
            setup.slot_nbytes, max(schedule.nbytes for schedule in found.values())
        )
        self._slot: torch.Tensor | None = None
        self.nbytes = self.chunks = 0
        self.what = f"{len(found)} streams, caches of {setup.geometry.layout} {setup.dtype}, {setup.nbytes >> 20} MiB"

    def serve(self) -> None:
        """Until the source says that there is nothing more."""
        take: dict[int, Callable[[Frame, HeldStream], None]] = {
            Kind.BEGIN: self._begin,
            Kind.CHUNK: self._chunk,
            Kind.RUN: self._run,
            Kind.BATCHED_RUN: self._run,
            Kind.READ: self._read,
            **{kind: partial(serve, self) for kind, serve in self._services.items()},
        }
        while True:
            self.wire.wait_readable()  # a model may compute for long, or load another
            frame = self.wire.receive_head()
            if frame.kind == Kind.BYE:
                return
            held = self._streams.get(frame.stream)
            if held is None or frame.kind not in take:
                raise RefusalError(
                    f"nothing is known of frames of kind {frame.kind} for stream {frame.stream}"
                )
            expected = held.microbatch + (frame.kind == Kind.BEGIN)
            if frame.microbatch != expected or not expected:
                raise RefusalError(
                    f"stream {held.id} is at microbatch {held.microbatch}, not {frame.microbatch}"
                )
            take[frame.kind](frame, held)

    def reply(self, kind: int, frame: Frame, payload: memoryview | bytes = b"") -> None:
        """Answer a frame, with its stream, microbatch and number."""
        self.wire.send_frame(frame._replace(kind=kind, nbytes=len(payload)), payload)

    def _begin(self, frame: Frame, held: HeldStream) -> None:
        if frame.nbytes:
            raise RefusalError(
                f"a microbatch begins with {frame.nbytes} bytes that nobody has asked for"
            )
        held.begin(frame.microbatch)
        self.reply(Kind.BEGUN, frame)

    def _chunk(self, frame: Frame, held: HeldStream) -> None:
        chunk = held.chunk(frame.number, frame.nbytes)
        places = held.places(chunk)
        if places is None:
            packed = self.staging(frame.nbytes)
            if not self.wire.receive_payload(frame, [packed.numpy().data]):
                raise RefusalError(_corrupt(held, chunk))
            scatter(packed, held.cache, chunk.region)
        elif not self.wire.receive_payload(frame, places):
            raise RefusalError(_corrupt(held, chunk))
        self._complete(frame, held, chunk.nbytes)

    def _run(self, frame: Frame, held: HeldStream) -> None:
        place, last = held.run(frame.number, frame.nbytes)
        if not self.wire.receive_payload(frame, [place]):
            raise RefusalError(
                f"run {held.runs - 1} of chunk {frame.number} of stream {held.id}: its hash does not agree with its "
                "bytes"
            )
        if frame.kind == Kind.RUN:
            self.reply(Kind.TAKEN, frame)
        if last:
            self._complete(frame, held, held.schedule.step_nbytes(frame.number))

    def _complete(self, frame: Frame, held: HeldStream, nbytes: int) -> None:
        held.arrived(nbytes)
        self.nbytes += nbytes
        self.chunks += 1
        self.reply(Kind.COMPLETE, frame)

    def _read(self, frame: Frame, held: HeldStream) -> None:
        edges = bytearray(REGION.size)
        if frame.nbytes != len(edges) or not self.wire.receive_payload(frame, [memoryview(edges)]):
            raise RefusalError("what is to be read is not told by a region")
        numbers = REGION.unpack(edges)
        try:
            region = Region(*(Span(*numbers[at : at + 2]) for at in range(0, len(numbers), 2)))
        except ValueError as error:
            raise RefusalError(str(error)) from None
        self.reply(
            Kind.CONTENT, frame, held.packed(region, self.staging(self._slot_nbytes)).numpy().data
        )

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return the first ``nbytes`` bytes of the connection's staging slot."""
        if self._slot is None:
            self._slot = aligned_buffer(self._slot_nbytes)
        return self._slot[:nbytes]


def _corrupt(held: HeldStream, chunk: Chunk) -> str:
    layers, requests, heads, positions = (
        f"[{span.start}, {span.stop})" for span in vars(chunk.region).values()
    )
    return (
        f"chunk {chunk.index} (step {chunk.step}) of stream {held.id}: its hash does not agree with its bytes, "
        f"layers {layers}, requests {requests}, heads {heads}, positions {positions}"
    )
