"""One source's connection to a ``tcp`` sink: its frames go into the caches that it announced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from ... import chunk_times
from ...packing import aligned_buffer, scatter
from ...regions import Region, Span
from ...schedule import Chunk
from .offer import TCPOffer, make_schedules
from .sink_stream import RefusalError, SinkStream
from .wire import DURATION_NBYTES, REGION, Frame, FrameKind, Wire

Service = Callable[["Connection", Frame, SinkStream], None]
"""Handler of a kind of frames that the owner of a sink adds to the protocol.

It answers by :meth:`Connection.reply`, raises RefusalError for a frame that it does not take, and
needs less memory than ``CONNECTION_NBYTES``.
"""


class Connection:
    """The sink's side of one source, once the source has been let in.

    Args:
        services: handlers by the kind of their frames, from ``FIRST_SERVICE`` on.

    Raises:
        RefusalError: the numbers of the offer do not fit together.

    Attributes:
        wire: this side's end of the connection.
        summary: the caches, in words.
        nbytes, chunk_count: counters of what has come.
    """

    def __init__(self, wire: Wire, offer: TCPOffer, services: Mapping[int, Service]) -> None:
        self.wire = wire
        self._services = services
        try:
            by_stream = make_schedules(offer)
            dtype = offer.torch_dtype()
        except ValueError as error:
            raise RefusalError(f"offer: {error}") from None
        self._streams = {
            stream_id: SinkStream(stream_id, schedule, dtype)
            for stream_id, schedule in by_stream.items()
        }
        largest_stream_nbytes = max(schedule.nbytes for schedule in by_stream.values())
        self._slot_nbytes = min(offer.slot_nbytes, largest_stream_nbytes)
        self._slot: torch.Tensor | None = None
        self.nbytes = 0
        self.chunk_count = 0
        self._received_ns = 0  # when the chunk under way had come, or the first of its extents
        streams = "1 stream" if len(by_stream) == 1 else f"{len(by_stream)} streams"
        self.summary = (
            f"{streams}, caches of {offer.geometry.layout} {offer.dtype}, {offer.nbytes >> 20} MiB"
        )

    def serve(self) -> None:
        """Handle frames until the source says BYE.

        Raises:
            RefusalError: a frame cannot come now.
            WireError: the connection broke.
        """
        handlers: dict[int, Callable[[Frame, SinkStream], None]] = {
            FrameKind.BEGIN: self._begin,
            FrameKind.CHUNK: self._receive_chunk,
            FrameKind.EXTENT: self._receive_extent,
            FrameKind.BATCHED_EXTENT: self._receive_extent,
            FrameKind.READ: self._read,
            **{kind: partial(serve, self) for kind, serve in self._services.items()},
        }
        while True:
            self.wire.wait_readable()  # however long: a model may compute, or load another one
            frame = self.wire.receive_head()
            if frame.kind == FrameKind.BYE:
                return
            stream = self._streams.get(frame.stream_id)
            if stream is None or frame.kind not in handlers:
                raise RefusalError(
                    f"this sink has no use for frames of kind {frame.kind} for stream "
                    f"{frame.stream_id}"
                )
            # BEGIN starts the next microbatch; every other frame belongs to the one under way. So a
            # frame that was delayed or repeated cannot write into a later microbatch's cache.
            expected_microbatch = stream.microbatch + (frame.kind == FrameKind.BEGIN)
            if frame.microbatch != expected_microbatch or not expected_microbatch:
                raise RefusalError(
                    f"stream {stream.id} is at microbatch {stream.microbatch}, "
                    f"not {frame.microbatch}"
                )
            handlers[frame.kind](frame, stream)

    def reply(self, kind: int, frame: Frame, payload: memoryview | bytes = b"") -> None:
        """Answer a frame, with its stream, microbatch and number."""
        self.wire.send_frame(frame._replace(kind=kind, nbytes=len(payload)), payload)

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return the first ``nbytes`` bytes of the connection's staging slot."""
        # Made when it is first needed: streams whose chunks go straight into the cache need none.
        if self._slot is None:
            self._slot = aligned_buffer(self._slot_nbytes)
        return self._slot[:nbytes]

    def _begin(self, frame: Frame, stream: SinkStream) -> None:
        if frame.nbytes:
            raise RefusalError(f"BEGIN carries {frame.nbytes} bytes; it has no payload")
        stream.begin(frame.microbatch)
        self.reply(FrameKind.BEGUN, frame)

    def _receive_chunk(self, frame: Frame, stream: SinkStream) -> None:
        """Receive a packed chunk, straight into the cache where its extents are long enough."""
        chunk = stream.chunk(frame.number, frame.nbytes)
        extent_views = stream.walk_chunk(chunk)
        if extent_views is None:
            packed = self.staging(frame.nbytes)
            if not self.wire.receive_payload(frame, [packed.numpy().data]):
                raise RefusalError(_describe_corruption(stream, chunk))
            self._received_ns = chunk_times.now()
            scatter(packed, stream.cache, chunk.region)
        elif self.wire.receive_payload(frame, extent_views):
            self._received_ns = chunk_times.now()
        else:
            raise RefusalError(_describe_corruption(stream, chunk))
        self._complete_chunk(frame, stream, chunk.nbytes)

    def _receive_extent(self, frame: Frame, stream: SinkStream) -> None:
        """Receive one extent into its place; the last one completes the chunk."""
        extent_view, is_last = stream.extent(frame.number, frame.nbytes)
        if not self.wire.receive_payload(frame, [extent_view]):
            raise RefusalError(
                f"extent {stream.extent_count - 1} of chunk {frame.number} of stream {stream.id}: "
                "its hash does not agree with its bytes"
            )
        if stream.extent_count == 1:
            self._received_ns = chunk_times.now()
        if frame.kind == FrameKind.EXTENT:
            self.reply(FrameKind.TAKEN, frame)
        if is_last:
            step = stream.schedule.last_step(frame.number)  # chunk n is group n: unbuffered
            self._complete_chunk(frame, stream, stream.schedule.step_nbytes(step))

    def _complete_chunk(self, frame: Frame, stream: SinkStream, nbytes: int) -> None:
        stream.note_arrival(nbytes)
        self.nbytes += nbytes
        self.chunk_count += 1
        sink_ns = chunk_times.now() - self._received_ns
        self.reply(FrameKind.COMPLETE, frame, sink_ns.to_bytes(DURATION_NBYTES, "little"))

    def _read(self, frame: Frame, stream: SinkStream) -> None:
        """Answer with the bytes of a region; whether it lies in the stream is checked first."""
        packed_region = bytearray(REGION.size)
        if frame.nbytes != len(packed_region) or not self.wire.receive_payload(
            frame, [memoryview(packed_region)]
        ):
            raise RefusalError("READ does not carry a region")
        edges = REGION.unpack(packed_region)
        try:
            region = Region(
                *(
                    Span(*edges[edge_index : edge_index + 2])
                    for edge_index in range(0, len(edges), 2)
                )
            )
        except ValueError as error:
            raise RefusalError(str(error)) from None
        packed = stream.pack(region, self.staging(self._slot_nbytes))
        self.reply(FrameKind.CONTENT, frame, packed.numpy().data)


def _describe_corruption(stream: SinkStream, chunk: Chunk) -> str:
    layers, requests, heads, positions = (
        f"[{span.start}, {span.stop})" for span in vars(chunk.region).values()
    )
    return (
        f"chunk {chunk.index} (step {chunk.step}) of stream {stream.id}: its hash does not agree "
        f"with its bytes, layers {layers}, requests {requests}, heads {heads}, "
        f"positions {positions}"
    )
