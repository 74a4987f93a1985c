"""The source's side of ``tcp``.

Everything goes over one connection, in order: frames of :mod:`.wire` to the sink, and its answers
back. A chunk is complete when the sink has answered that it is in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import ValidationError

from ...schedule import Chunk
from ..base import ReadableDestination, RemoteDestination, Stream
from ..registry import TCP
from .handshake import Address, connect, leave, make_offer
from .offer import TCPOffer
from .wire import (
    DURATION_NBYTES,
    MOST_TEXT_NBYTES,
    REGION,
    Frame,
    FrameKind,
    RefusedError,
    WireError,
)

_STREAMED_KINDS = (FrameKind.CHUNK, FrameKind.EXTENT, FrameKind.BATCHED_EXTENT)


class TCPDestination(RemoteDestination[int], ReadableDestination):
    """The source's side.

    Args:
        address: host and port that the sink listens on.
        token: the secret that both sides share.
        streams: all that will begin, of caches of one geometry and data type.
        dtype: element type of the caches.
        timeout: seconds that the sink may be silent when an answer is due.
        checksums: hash what is streamed on both sides, so that the sink refuses wrong bytes. TCP's
            own checksum has 16 bits. Ours takes a third of the bandwidth if the CPU is the limit.

    Raises:
        RefusedError: the sink does not take such caches.
        WireError: the sink cannot be reached, or does not know the token.

    Attributes:
        wire: this side's end of the connection.
    """

    entry = TCP

    def __init__(
        self,
        address: Address,
        token: bytes,
        streams: list[Stream],
        dtype: torch.dtype,
        timeout: float,
        checksums: bool = False,
    ) -> None:
        super().__init__()
        self._checksums = checksums
        try:
            offer = TCPOffer.for_streams(streams, dtype)
        except ValidationError as error:
            raise RefusedError(
                f"no sink takes such caches: {error.errors(include_url=False)[0]['msg']}"
            ) from None
        self.wire = connect(address, token, timeout)
        self._keys = {stream.id: stream.key for stream in streams}
        self._microbatch = dict.fromkeys(self._keys, 0)
        # The model's thread begins a microbatch while the helper moves chunks of another one.
        self._lock = threading.Lock()
        self._given_up = False
        try:
            make_offer(self.wire, offer)
        except BaseException:
            self.wire.close()
            raise

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        """Announce a microbatch and wait until the sink has made its memory ready.

        Raises:
            StreamingError: the sink refuses or is lost, or chunks of the last microbatch are on
                their way.
        """
        with self._lock:
            super().begin(stream)
            self._microbatch[stream.id] += 1
            self._send_frame(FrameKind.BEGIN, stream, 0)
            self._await(FrameKind.BEGUN, stream)

    # ---- sending ----

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Send a packed chunk in one frame; blocks until the kernel has taken its bytes.

        Raises:
            StreamingError: the connection is lost.
        """
        with self._lock:
            self._under_way[stream.key].append(chunk.index)
            self._send_frame(FrameKind.CHUNK, stream, chunk.index, packed.numpy().data)

    def flush_extents(
        self, stream: Stream, chunk: Chunk, extents: Sequence[memoryview], each_complete: bool
    ) -> None:
        """Send each extent in a frame of its own.

        At level 0 (``each_complete``) the sink's reply to an extent is awaited before the next one
        leaves.

        Raises:
            StreamingError: the connection is lost.
        """
        kind = FrameKind.EXTENT if each_complete else FrameKind.BATCHED_EXTENT
        chunk_index = chunk.index
        with self._lock:
            self._under_way[stream.key].append(chunk_index)
            for block in self.cut_and_count(extents):
                for extent in block:
                    self._send_frame(kind, stream, chunk_index, extent)
                    if each_complete:
                        self._await(FrameKind.TAKEN, stream)

    def poll_completed(self, stream: Stream) -> int:
        """Read the acknowledgements that have come; return the count of complete chunks."""
        with self._lock:
            # Only what is there already: poll_completed() must not wait for the sink.
            while self.wire.is_readable:
                self._receive_reply()
            return self._completed[stream.key]

    # ---- reading back ----

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Read the region of a complete chunk back from the sink's cache.

        Raises:
            WireError: the connection broke, or other bytes came than were announced.
        """
        edges = (edge for span in vars(chunk.region).values() for edge in span)
        with self._lock:
            self._send_frame(FrameKind.READ, stream, chunk.index, REGION.pack(*edges))
            self._receive(self._await(FrameKind.CONTENT, stream), packed.numpy().data)

    # ---- services of the sink's owner ----

    def request(
        self, stream: Stream, kind: int, number: int = 0, raw_buffers: Sequence[memoryview] = ()
    ) -> bytes:
        """Ask for a service that the sink's owner has added; return its answer.

        Args:
            stream: the service's subject; it has begun.
            kind: kind of the service's frames, from ``FIRST_SERVICE`` on.
            number: 32 bits for the service.
            raw_buffers: bytes behind the frame, without a head of their own, if the service
                takes any.

        Raises:
            RefusedError: the sink has no such service, or the service refuses.
            WireError: the connection broke, or other bytes came than were announced.
        """
        with self._lock:
            self._send_frame(kind, stream, number)
            for buffer in raw_buffers:
                self.wire.send(buffer)
            answer = self._await(kind, stream)
            if answer.nbytes > MOST_TEXT_NBYTES:
                raise WireError(
                    f"{self.wire.peer} answers with {answer.nbytes} bytes; "
                    f"{MOST_TEXT_NBYTES} are allowed"
                )
            payload = bytearray(answer.nbytes)
            if payload:
                self._receive(answer, memoryview(payload))
            return bytes(payload)

    # ---- the connection ----

    def _send_frame(
        self, kind: int, stream: Stream, number: int, payload: memoryview | bytes = b""
    ) -> None:
        """Send a frame. If the sink has refused, raise its reason and not the broken connection."""
        frame = Frame(
            kind=kind,
            stream_id=stream.id,
            microbatch=self._microbatch[stream.id],
            number=number,
            nbytes=len(payload),
        )
        try:
            self.wire.send_frame(frame, payload, self._checksums or kind not in _STREAMED_KINDS)
        except WireError:
            while self.wire.is_readable:  # the sink's reason says more than that it has closed
                self._receive_reply()
            raise

    def _await(self, kind: int, stream: Stream) -> Frame:
        """Return the next reply of a kind to a stream; note completed chunks on the way."""
        while True:
            reply = self._receive_reply()
            if reply.kind == kind and reply.stream_id == stream.id:
                return reply

    def _receive_reply(self) -> Frame:
        """Receive one reply; an acknowledgement is filed before it is returned."""
        reply = self.wire.receive_reply()
        if reply.kind == FrameKind.COMPLETE:
            key = self._keys.get(reply.stream_id, (None, -1))
            under_way = self._under_way.get(key)
            # Chunks complete in order; anything else means that the sink miscounts.
            if not under_way or (reply.microbatch, reply.number) != (
                self._microbatch[reply.stream_id],
                under_way[0],
            ):
                raise WireError(f"{self.wire.peer} acknowledges what it was not sent: {reply}")
            sink_ns_bytes = bytearray(DURATION_NBYTES)
            self._receive(reply, memoryview(sink_ns_bytes))
            under_way.popleft()
            self._completed[key] += 1
            if self.timed:
                self._receipts[key].append((None, int.from_bytes(sink_ns_bytes, "little")))
        return reply

    def _receive(self, reply: Frame, buffer: memoryview) -> None:
        if reply.nbytes != len(buffer) or not self.wire.receive_payload(reply, [buffer]):
            raise WireError(
                f"{self.wire.peer} sent other bytes than it announced, or than were asked for: "
                f"{reply}"
            )

    def give_up(self) -> None:
        """Shut the connection down, which ends any wait on it. From any thread."""
        self._given_up = True
        self.wire.shutdown()

    def close(self) -> None:
        """Leave in order, unless the destination was given up, and close the connection."""
        if not self._given_up:
            leave(self.wire)
        self.wire.close()
