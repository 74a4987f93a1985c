"""``tcp``: chunks over a plain socket to a sink that is no part of the MPI job.

Everything goes over one connection, in order: frames of :mod:`~dejavubench.dejavulib.destinations.tcp.wire` to the sink, and back
what it says of them. A chunk is complete when the sink has said that it is where it belongs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import ValidationError

from dejavubench.dejavulib.destinations.base import Capabilities, RemoteDestination, Stream
from dejavubench.dejavulib.destinations.tcp.handshake import (
    Address,
    Setup,
    announce,
    connect,
    leave,
)
from dejavubench.dejavulib.destinations.tcp.wire import (
    MOST_TEXT,
    REGION,
    Frame,
    Kind,
    RefusedError,
    WireError,
)
from dejavubench.dejavulib.schedule import Chunk

_STREAMED = (Kind.CHUNK, Kind.RUN, Kind.BATCHED_RUN)


class TCPDestination(RemoteDestination[int]):
    """The source's side.

    Args:
        address: where the sink listens.
        token: what both sides know.
        streams: all that will be begun, of caches of one geometry and of type ``dtype``.
        timeout: seconds that the sink may be silent when an answer is due.
        checksums: hash what is streamed at both ends, so that the sink refuses bytes that came wrong. TCP has one of
            its own, of 16 bits; ours costs a third of the bandwidth where the CPU is the limit.

    Raises:
        RefusedError: the sink takes no such caches.
        WireError: it cannot be reached, or does not know the token.
    """

    name = "tcp"
    capabilities = Capabilities(remote=True)

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
            setup = Setup.of(streams, dtype)
        except ValidationError as error:
            raise RefusedError(
                f"no sink takes such caches: {error.errors(include_url=False)[0]['msg']}"
            ) from None
        self.wire = connect(address, token, timeout)
        self._keys = {stream.id: stream.key for stream in streams}
        self._microbatch = dict.fromkeys(self._keys, 0)
        self._alone = (
            threading.Lock()
        )  # a microbatch may begin while another's chunks are on their way
        self._given_up = False
        try:
            announce(self.wire, setup)
        except BaseException:
            self.wire.close()
            raise

    def begin(self, stream: Stream, tokens: np.ndarray | None = None) -> None:
        with self._alone:
            super().begin(stream)
            self._microbatch[stream.id] += 1
            self._ask(Kind.BEGIN, stream, 0)
            self._await(Kind.BEGUN, stream)

    # ---- sending ----

    def flush(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        with self._alone:
            self._under_way[stream.key].append(chunk.index)
            self._ask(Kind.CHUNK, stream, chunk.index, packed.numpy().data)

    def flush_runs(
        self, stream: Stream, chunk: Chunk, runs: Sequence[memoryview], each_complete: bool
    ) -> None:
        kind, number = Kind.RUN if each_complete else Kind.BATCHED_RUN, chunk.index
        with self._alone:
            self._under_way[stream.key].append(number)
            for block in self.counted(runs):
                for run in block:
                    self._ask(kind, stream, number, run)
                    if each_complete:
                        self._await(Kind.TAKEN, stream)

    def completed(self, stream: Stream) -> int:
        with self._alone:
            while self.wire.readable:
                self._reply()
            return self._completed[stream.key]

    # ---- what the sink holds ----

    def fetch(self, stream: Stream, chunk: Chunk, packed: torch.Tensor) -> None:
        """Read back what the sink's cache holds where the chunk belongs. Raises WireError: other bytes came."""
        with self._alone:
            spans = vars(chunk.region).values()
            self._ask(
                Kind.READ,
                stream,
                chunk.index,
                REGION.pack(*(edge for span in spans for edge in span)),
            )
            self._receive(self._await(Kind.CONTENT, stream), packed.numpy().data)

    # ---- services of the sink's owner ----

    def request(
        self, stream: Stream, kind: int, number: int = 0, bare: Sequence[memoryview] = ()
    ) -> bytes:
        """Ask for a service that the sink's owner has added, about a stream that has begun, and wait for the answer.

        Args:
            kind: of the service's frames, from ``FIRST_SERVICE`` on.
            number: 32 bits for the service.
            bare: bytes that follow the frame with no head of their own, if the service takes any.

        Raises:
            RefusedError: the sink has no such service, or it refuses.
            WireError: the connection broke, or other bytes came than the answer announced.
        """
        with self._alone:
            self._ask(kind, stream, number)
            for part in bare:
                self.wire.send(part)
            answer = self._await(kind, stream)
            if answer.nbytes > MOST_TEXT:
                raise WireError(
                    f"{self.wire.peer} answers with {answer.nbytes} bytes; {MOST_TEXT} are allowed"
                )
            payload = bytearray(answer.nbytes)
            if payload:
                self._receive(answer, memoryview(payload))
            return bytes(payload)

    # ---- the connection ----

    def _ask(
        self, kind: int, stream: Stream, number: int, payload: memoryview | bytes = b""
    ) -> None:
        frame = Frame(kind, stream.id, self._microbatch[stream.id], number, len(payload))
        try:
            self.wire.send_frame(frame, payload, self._checksums or kind not in _STREAMED)
        except WireError:
            while self.wire.readable:  # why it has closed says more than that it has
                self._reply()
            raise

    def _await(self, kind: int, stream: Stream) -> Frame:
        """The next reply of a kind to a stream; what it says of other chunks is noted on the way."""
        while True:
            reply = self._reply()
            if reply.kind == kind and reply.stream == stream.id:
                return reply

    def _reply(self) -> Frame:
        reply = self.wire.receive_reply()
        if reply.kind == Kind.COMPLETE:
            key = self._keys.get(reply.stream, (None, -1))
            under_way = self._under_way.get(key)
            if not under_way or (reply.microbatch, reply.number) != (
                self._microbatch[reply.stream],
                under_way[0],
            ):
                raise WireError(f"{self.wire.peer} acknowledges what it was not sent: {reply}")
            under_way.popleft()
            self._completed[key] += 1
        return reply

    def _receive(self, reply: Frame, into: memoryview) -> None:
        if reply.nbytes != len(into) or not self.wire.receive_payload(reply, [into]):
            raise WireError(
                f"{self.wire.peer} sent other bytes back than it said, or than were asked for: {reply}"
            )

    def give_up(self) -> None:
        self._given_up = True
        self.wire.shutdown()

    def close(self) -> None:
        if not self._given_up:
            leave(self.wire)
        self.wire.close()
