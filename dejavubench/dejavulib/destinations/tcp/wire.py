"""What goes over the socket of a ``tcp`` stream, either way, once both sides have proven to know the token: frames.

A frame is a head (kind, stream, microbatch, number u32; nbytes u64; xxh3-64 of what follows u64; little-endian), then
exactly nbytes.
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

from dejavubench.dejavulib.destinations.base import StreamingError

_HEAD = struct.Struct("<IIIIQQ")

REGION = struct.Struct("<8I")
"""What READ carries: layers, requests, heads, positions, of each the first and the one behind the last."""

MOST_TEXT = 512 << 10
"""Bytes of the longest text: a setup, or why something was refused."""

SOCKET_BUFFER = 1 << 20
"""Asked of the kernel for each direction: several times this only moves more of the data out of the CPU's caches."""

PIECE = 1 << 20
"""Bytes received at a time at most, so that they are hashed while the CPU's caches still hold them."""

LEAST_RATE = 1 << 20
"""Bytes a second that a peer must reach in what it has begun to send."""


class Kind(IntEnum):
    """What a frame is. ``number`` is that of the chunk unless said otherwise."""

    SETUP = 1  # source: JSON; sink: ACCEPTED
    ACCEPTED = 2
    REFUSED = 3  # sink: why, in words; it ends the connection
    BEGIN = 4  # source: a microbatch; sink: BEGUN
    BEGUN = 5
    CHUNK = 6  # source: a packed chunk; sink: COMPLETE once it is where it belongs
    RUN = 7  # source: the chunk's next run; sink: TAKEN, and COMPLETE behind the last one
    BATCHED_RUN = 8  # source: the chunk's next run; sink: COMPLETE behind the last one
    TAKEN = 9
    COMPLETE = 10
    READ = 11  # source: a region; sink: CONTENT, with what it holds there, packed
    CONTENT = 12
    BYE = 13  # source: that was all; the sink gives its memory back, then closes


FIRST_SERVICE = 64
"""Kinds of frames from here on are those of services that a sink's owner adds; the reply is of the same kind."""


class Frame(NamedTuple):
    kind: int
    stream: int = 0
    microbatch: int = 0
    number: int = 0
    nbytes: int = 0
    hash: int = 0  # of the payload; 0: the sender computes none


class WireError(StreamingError):
    """The other side cannot be reached, does not answer in time, has closed, or does not keep to the protocol."""


class ClosedError(WireError):
    """The other side has closed the connection."""


class RefusedError(WireError):
    """The sink has said why it goes no further."""


class Wire:
    """One end of a connection: exact reads and writes with deadlines; one thread at a time.

    Args:
        connected: a connected socket, which is this object's from now on.
        peer: the other side's address, for messages.
        timeout: seconds that the other side may be silent, or take nothing, in the middle of something.

    Attributes:
        same_machine: both ends are under one kernel; the source learns it in the handshake.
        same_host: both are in one network of it, so that nothing between them leaves it.
        until: when everything must be over, by ``time.monotonic``; None after the handshake.
    """

    def __init__(self, connected: socket.socket, peer: str, timeout: float) -> None:
        self.socket = connected
        self.peer = peer
        self.timeout = timeout
        self.same_machine = self.same_host = False
        self.until: float | None = time.monotonic() + timeout
        self._head = memoryview(bytearray(_HEAD.size))
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        connected.settimeout(timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(
            socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        )  # a host that is gone is told from an idle one
        for option, seconds in (
            (socket.TCP_KEEPIDLE, 15),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_KEEPCNT, 3),
        ):
            connected.setsockopt(socket.IPPROTO_TCP, option, seconds)

    # ---- bytes ----

    def receive_into(self, into: memoryview, hasher: xxhash.xxh3_64 | None = None) -> None:
        """Exactly ``len(into)`` bytes.

        Raises:
            ClosedError: the other side has closed before.
            WireError: it is silent or too slow, or the connection broke.
        """
        got, deadline = 0, time.monotonic() + self.timeout + len(into) / LEAST_RATE
        if self.until is not None:
            deadline = min(deadline, self.until)
        while got < len(into):
            if self.until is not None:
                self.socket.settimeout(max(self.until - time.monotonic(), 1e-3))
            try:
                count = self.socket.recv_into(into[got : got + PIECE])
            except TimeoutError:
                if got and self.until is not None:
                    raise WireError(_too_slow(self.peer, got, len(into))) from None
                raise WireError(f"{self.peer} has been silent for {self.timeout:g} s") from None
            except OSError as error:
                raise ClosedError(f"{self.peer}: {error.strerror or error}") from None
            if not count:
                raise ClosedError(f"{self.peer} has closed the connection")
            if hasher is not None:
                hasher.update(into[got : got + count])
            got += count
            if got < len(into) and time.monotonic() > deadline:
                raise WireError(_too_slow(self.peer, got, len(into)))

    def send(self, *parts: memoryview | bytes) -> None:
        """All bytes of all parts, copied by nobody but the kernel.

        Raises:
            WireError: the other side takes nothing, or has gone.
        """
        left = [memoryview(part) for part in parts]
        try:
            while left:
                sent = self.socket.sendmsg(left)  # not sendall, whose timeout is for all of it
                while left and sent >= len(left[0]):
                    sent -= len(left.pop(0))
                if left:
                    left[0] = left[0][sent:]
        except TimeoutError:
            raise WireError(f"{self.peer} has taken nothing for {self.timeout:g} s") from None
        except OSError as error:
            raise ClosedError(f"{self.peer}: {error.strerror or error}") from None

    @property
    def readable(self) -> bool:
        """Whether something has come, or the other side has closed."""
        return bool(self._readable.poll(0))

    def wait_readable(self) -> None:
        """Wait, however long, until something comes or the other side is gone."""
        self._readable.poll()

    # ---- frames ----

    def send_frame(
        self, frame: Frame, payload: memoryview | bytes = b"", hashed: bool = True
    ) -> None:
        """A head, with the hash of ``payload`` or without, and that: exactly ``frame.nbytes``."""
        if not frame.nbytes:
            self.send(_HEAD.pack(*frame))
            return
        if not hashed:
            self.send(_HEAD.pack(*frame), payload)
            return
        # before, as a whole: sent piece by piece beside their hashing, the same bytes cost the receiver twice the time
        self.send(_HEAD.pack(*frame[:-1], xxhash.xxh3_64_intdigest(payload)), payload)

    def receive_head(self) -> Frame:
        self.receive_into(self._head)
        return Frame(*_HEAD.unpack(self._head))

    def receive_reply(self) -> Frame:
        """What the sink says. Raises RefusedError: that it goes no further."""
        reply = self.receive_head()
        if reply.kind == Kind.REFUSED:
            raise RefusedError(f"{self.peer} refuses: {self.receive_text(reply)}")
        return reply

    def receive_payload(self, frame: Frame, into: Iterable[memoryview]) -> bool:
        """What follows a head, into ``into``, which is as large together; whether its hash, if it has one, agrees."""
        hasher = xxhash.xxh3_64() if frame.hash else None
        for view in into:
            self.receive_into(view, hasher)
        return hasher is None or hasher.intdigest() == frame.hash

    def receive_text(self, frame: Frame) -> str:
        """Raises:
        WireError: it is too long, or not what was sent.
        """
        if frame.nbytes > MOST_TEXT:
            raise WireError(
                f"{self.peer} announces a text of {frame.nbytes} bytes; {MOST_TEXT} are allowed"
            )
        text = bytearray(frame.nbytes)
        if frame.nbytes and not self.receive_payload(frame, [memoryview(text)]):
            raise WireError(f"{self.peer} sent a text whose hash does not agree")
        return text.decode(errors="replace")

    def proven(self, timeout: float) -> None:
        """End the handshake: from now on the other side may be silent for ``timeout`` s in the middle of something."""
        self.until, self.timeout = None, timeout
        self.socket.settimeout(timeout)

    # ---- ending ----

    def shutdown(self) -> None:
        """End whatever waits on this connection, in any thread, at either side."""
        with contextlib.suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.close()


def _too_slow(peer: str, got: int, wanted: int) -> str:
    return f"{peer} is too slow: {got} of {wanted} bytes came in time"


def set_buffers(unconnected: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        unconnected.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
