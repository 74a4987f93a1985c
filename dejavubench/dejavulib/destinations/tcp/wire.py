"""Frames over the socket of a ``tcp`` stream, once both sides have proven that they know the token.

A frame is a head (kind, stream, microbatch, number u32; nbytes u64; xxh3-64 of the payload u64;
little-endian), then exactly nbytes of payload.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import xxhash

from ..base import StreamingError

_HEAD = struct.Struct("<IIIIQQ")

REGION = struct.Struct("<8I")
"""Payload of READ: start and stop of layers, requests, heads and positions."""

MOST_TEXT_NBYTES = 512 << 10
"""Bytes of the longest text: an offer, a reason for refusal, or the answer of a service."""

SOCKET_BUFFER_NBYTES = 1 << 20
"""Asked of the kernel for each direction. Several times as much would outgrow the CPU's caches."""

MOST_RECEIVED_NBYTES = 1 << 20
"""Most bytes received at a time, so that they are hashed while the CPU caches hold them."""

DURATION_NBYTES = 8
"""Bytes of the payload of COMPLETE: a duration in nanoseconds."""

LEAST_BYTES_PER_S = 1 << 20
"""Bytes per second that a peer must reach in a payload that it has begun to send."""


class FrameKind(IntEnum):
    """Kinds of frames. ``number`` is that of the chunk unless said otherwise."""

    OFFER = 1  # source: JSON; the sink answers ACCEPTED
    ACCEPTED = 2
    REFUSED = 3  # sink: the reason, as text; it ends the connection
    BEGIN = 4  # source: a microbatch begins; the sink answers BEGUN
    BEGUN = 5
    CHUNK = 6  # source: a packed chunk; the sink answers COMPLETE once it is in its place
    EXTENT = 7  # source: the chunk's next extent; the sink answers TAKEN, and COMPLETE at the last
    BATCHED_EXTENT = 8  # source: likewise; the sink answers COMPLETE at the last one only
    TAKEN = 9
    COMPLETE = 10  # nanoseconds from the chunk's last byte until it was in its place
    READ = 11  # source: a region; the sink answers CONTENT, with the region's bytes, packed
    CONTENT = 12
    BYE = 13  # source: the end; the sink releases its memory, then closes


FIRST_SERVICE = 64
"""First kind of the frames of services that a sink's owner adds; an answer has the same kind."""


class Frame(NamedTuple):
    """The head of a frame. ``hash`` is of the payload; 0 if the sender computes none."""

    kind: int
    stream_id: int = 0
    microbatch: int = 0
    number: int = 0
    nbytes: int = 0
    hash: int = 0


class WireError(StreamingError):
    """The other side cannot be reached, is silent, has closed, or violates the protocol."""


class ClosedError(WireError):
    """The other side has closed the connection."""


class RefusedError(WireError):
    """The sink has refused and said why."""


class TokenError(WireError):
    """The two sides do not have the same token."""


class Wire:
    """One end of a connection: exact reads and writes with deadlines. One thread at a time.

    Args:
        connected_socket: a connected socket, which this object owns from now on.
        peer: the other side's address, for messages.
        timeout_s: seconds that the other side may be silent, or take nothing, within a frame.

    Attributes:
        same_machine: both ends run under one kernel; known to the source after the handshake.
        same_host: both ends are in one network of that machine, so nothing between them leaves it.
        handshake_deadline_s: ``time.monotonic`` by which the handshake must be over; None after it.
    """

    def __init__(self, connected_socket: socket.socket, peer: str, timeout_s: float) -> None:
        self.socket = connected_socket
        self.peer = peer
        self.timeout_s = timeout_s
        self.same_machine = False
        self.same_host = False
        self.handshake_deadline_s: float | None = time.monotonic() + timeout_s
        self._head = memoryview(bytearray(_HEAD.size))
        self._readable_poll = select.poll()
        self._readable_poll.register(connected_socket, select.POLLIN)
        connected_socket.settimeout(timeout_s)
        # Without it, a small frame waits for the acknowledgement of the one before: up to 40 ms.
        connected_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Keep-alive tells a host that is gone from one that is idle, within 30 s.
        connected_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 15),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_KEEPCNT, 3),
        ):
            connected_socket.setsockopt(socket.IPPROTO_TCP, option, value)

    # ---- bytes ----

    def receive_into(self, buffer: memoryview, hasher: xxhash.xxh3_64 | None = None) -> None:
        """Receive exactly ``len(buffer)`` bytes.

        Raises:
            ClosedError: the other side has closed before.
            WireError: it is silent or too slow, or the connection broke.
        """
        # A peer that sends a byte now and then is never silent, so a least rate limits it as well.
        received_nbytes = 0
        deadline_s = time.monotonic() + self.timeout_s + len(buffer) / LEAST_BYTES_PER_S
        if self.handshake_deadline_s is not None:
            deadline_s = min(deadline_s, self.handshake_deadline_s)
        while received_nbytes < len(buffer):
            # The handshake ends as a whole, however its bytes are spread.
            if self.handshake_deadline_s is not None:
                self.socket.settimeout(max(self.handshake_deadline_s - time.monotonic(), 1e-3))
            try:
                new_nbytes = self.socket.recv_into(
                    buffer[received_nbytes : received_nbytes + MOST_RECEIVED_NBYTES]
                )
            except TimeoutError:
                if received_nbytes and self.handshake_deadline_s is not None:
                    raise WireError(
                        _describe_slow_peer(self.peer, received_nbytes, len(buffer))
                    ) from None
                raise WireError(f"{self.peer} has been silent for {self.timeout_s:g} s") from None
            except OSError as error:
                raise ClosedError(f"{self.peer}: {error.strerror or error}") from None
            if not new_nbytes:
                raise ClosedError(f"{self.peer} has closed the connection")
            if hasher is not None:
                hasher.update(buffer[received_nbytes : received_nbytes + new_nbytes])
            received_nbytes += new_nbytes
            if received_nbytes < len(buffer) and time.monotonic() > deadline_s:
                raise WireError(_describe_slow_peer(self.peer, received_nbytes, len(buffer)))

    def send(self, *buffers: memoryview | bytes) -> None:
        """Send all bytes of all buffers; only the kernel copies them.

        Raises:
            WireError: the other side takes nothing, or is gone.
        """
        unsent_buffers = [memoryview(buffer) for buffer in buffers]
        try:
            while unsent_buffers:
                # Not sendall(): its timeout covers the whole payload, not a time without progress.
                sent_nbytes = self.socket.sendmsg(unsent_buffers)
                while unsent_buffers and sent_nbytes >= len(unsent_buffers[0]):
                    sent_nbytes -= len(unsent_buffers.pop(0))
                if unsent_buffers:
                    unsent_buffers[0] = unsent_buffers[0][sent_nbytes:]
        except TimeoutError:
            raise WireError(f"{self.peer} has taken nothing for {self.timeout_s:g} s") from None
        except OSError as error:
            raise ClosedError(f"{self.peer}: {error.strerror or error}") from None

    @property
    def is_readable(self) -> bool:
        """Whether something has come, or the other side has closed."""
        return bool(self._readable_poll.poll(0))

    def wait_readable(self) -> None:
        """Wait, however long, until something comes or the other side is gone."""
        self._readable_poll.poll()

    # ---- frames ----

    def send_frame(
        self, frame: Frame, payload: memoryview | bytes = b"", hashed: bool = True
    ) -> None:
        """Send a head and its payload.

        Args:
            payload: exactly ``frame.nbytes`` bytes.
            hashed: compute the payload's hash and put it into the head.
        """
        if not frame.nbytes:
            self.send(_HEAD.pack(*frame))
            return
        if not hashed:
            self.send(_HEAD.pack(*frame), payload)
            return
        # Hashed as a whole before sending: sent piece by piece beside their hashing, the same bytes
        # cost the receiver twice the time.
        self.send(_HEAD.pack(*frame[:-1], xxhash.xxh3_64_intdigest(payload)), payload)

    def receive_head(self) -> Frame:
        """Receive the head of a frame."""
        self.receive_into(self._head)
        return Frame(*_HEAD.unpack(self._head))

    def receive_reply(self) -> Frame:
        """Receive the head of the sink's next frame.

        Raises:
            RefusedError: the sink refuses; the message has its reason.
        """
        reply = self.receive_head()
        if reply.kind == FrameKind.REFUSED:
            raise RefusedError(f"{self.peer} refuses: {self.receive_text(reply)}")
        return reply

    def receive_payload(self, frame: Frame, buffers: Iterable[memoryview]) -> bool:
        """Receive a frame's payload; return whether its hash, if it has one, agrees.

        Args:
            buffers: together as large as the payload.
        """
        hasher = xxhash.xxh3_64() if frame.hash else None
        for view in buffers:
            self.receive_into(view, hasher)
        return hasher is None or hasher.intdigest() == frame.hash

    def receive_text(self, frame: Frame) -> str:
        """Receive a frame's payload as text.

        Raises:
            WireError: it is too long, or damaged.
        """
        if frame.nbytes > MOST_TEXT_NBYTES:
            raise WireError(
                f"{self.peer} announces a text of {frame.nbytes} bytes; "
                f"{MOST_TEXT_NBYTES} are allowed"
            )
        text = bytearray(frame.nbytes)
        if frame.nbytes and not self.receive_payload(frame, [memoryview(text)]):
            raise WireError(f"{self.peer} sent a text whose hash does not agree")
        return text.decode(errors="replace")

    def end_handshake(self, timeout_s: float) -> None:
        """End the handshake: from now on ``timeout_s`` limits the silence within a frame alone."""
        self.handshake_deadline_s = None
        self.timeout_s = timeout_s
        self.socket.settimeout(timeout_s)

    # ---- ending ----

    def shutdown(self) -> None:
        """End whatever waits on this connection, in any thread, on either side."""
        with contextlib.suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def _describe_slow_peer(peer: str, received_nbytes: int, expected_nbytes: int) -> str:
    return f"{peer} is too slow: {received_nbytes} of {expected_nbytes} bytes came in time"


def set_socket_buffers(unconnected_socket: socket.socket) -> None:
    """Ask the kernel for buffers of :data:`SOCKET_BUFFER_NBYTES` bytes."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        unconnected_socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_NBYTES)
