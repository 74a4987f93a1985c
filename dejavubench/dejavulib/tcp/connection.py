"""What one source streams to a ``tcp`` sink: frame by frame into the caches that it has announced."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dejavubench.dejavulib.copies import aligned_buffer, scatter
from dejavubench.dejavulib.kvcache import BOTH, Region, Span
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import Chunk
from dejavubench.dejavulib.tcp.handshake import Setup, schedules
from dejavubench.dejavulib.tcp.held import HeldStream, RefusalError
from dejavubench.dejavulib.tcp.wire import DIFFERENCE, REGION, Frame, Kind, Wire


class Connection:
    """What one source streams, once it has been let in.

    Raises:
        RefusalError: its setup is not one that can be.

    Attributes:
        nbytes, chunks: what has arrived.
    """

    def __init__(self, wire: Wire, setup: Setup) -> None:
        self._wire = wire
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
            Kind.FETCH: self._fetch,
            Kind.CHECK: self._check,
            Kind.RAW: self._raw,
        }
        while True:
            self._wire.wait_readable()  # a model may compute for long, or load another
            frame = self._wire.receive_head()
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

    def _reply(self, kind: Kind, frame: Frame, payload: memoryview | bytes = b"") -> None:
        self._wire.send_frame(frame._replace(kind=kind, nbytes=len(payload)), payload)

    def _begin(self, frame: Frame, held: HeldStream) -> None:
        if frame.number > 255 or frame.nbytes:
            raise RefusalError(f"{frame.number} is no byte to fill with")
        held.begin(frame.microbatch, frame.number)
        self._reply(Kind.BEGUN, frame)

    def _chunk(self, frame: Frame, held: HeldStream) -> None:
        chunk = held.chunk(frame.number, frame.nbytes)
        places = held.places(chunk)
        if places is None:
            packed = self._staging(frame.nbytes)
            if not self._wire.receive_payload(frame, [packed.numpy().data]):
                raise RefusalError(_corrupt(held, chunk))
            scatter(packed, held.cache, chunk.region)
        elif not self._wire.receive_payload(frame, places):
            raise RefusalError(_corrupt(held, chunk))
        self._complete(frame, held, chunk.nbytes)

    def _run(self, frame: Frame, held: HeldStream) -> None:
        place, last = held.run(frame.number, frame.nbytes)
        if not self._wire.receive_payload(frame, [place]):
            raise RefusalError(
                f"run {held.runs - 1} of chunk {frame.number} of stream {held.id}: its hash does not agree with its "
                "bytes"
            )
        if frame.kind == Kind.RUN:
            self._reply(Kind.TAKEN, frame)
        if last:
            self._complete(frame, held, held.schedule.step_nbytes(frame.number))

    def _complete(self, frame: Frame, held: HeldStream, nbytes: int) -> None:
        held.arrived(nbytes)
        self.nbytes += nbytes
        self.chunks += 1
        self._reply(Kind.COMPLETE, frame)

    def _fetch(self, frame: Frame, held: HeldStream) -> None:
        edges = bytearray(REGION.size)
        if frame.nbytes != len(edges) or not self._wire.receive_payload(frame, [memoryview(edges)]):
            raise RefusalError("what is to be fetched is not told by a region")
        numbers = REGION.unpack(edges)
        try:
            region = Region(*(Span(*numbers[at : at + 2]) for at in range(0, len(numbers), 2)))
        except ValueError as error:
            raise RefusalError(str(error)) from None
        self._reply(
            Kind.HELD, frame, held.packed(region, self._staging(self._slot_nbytes)).numpy().data
        )

    def _check(self, frame: Frame, held: HeldStream) -> None:
        found = held.outside()
        self._reply(
            Kind.CHECKED,
            frame,
            b"" if found is None else DIFFERENCE.pack(BOTH.index(found[0]), *found[1:]),
        )

    def _raw(self, frame: Frame, held: HeldStream) -> None:
        """What a socket can do: as many bytes to the same places, by a loop that knows nothing of frames and hashes."""
        connected = self._wire.socket
        for chunk in held.schedule.all_chunks(LEVELS["3"]):
            for place in held.places(chunk) or iter([self._staging(chunk.nbytes).numpy().data]):
                got = 0
                while got < len(place):
                    count = connected.recv_into(place[got:])
                    if not count:
                        raise RefusalError("it closed in the middle of a raw loop")
                    got += count
        self._reply(Kind.RAW, frame)

    def _staging(self, nbytes: int) -> torch.Tensor:
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
