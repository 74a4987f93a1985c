"""What a socket to a ``tcp`` sink can do, and what of that the destination reaches: from and to the same places."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dejavubench.bench.ceilings import MESSAGE, WINDOW, message_stream
from dejavubench.dejavulib.copies import aligned_buffer
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp import TCPDestination
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.tcp.wire import WireError

MESSAGES = 8


def tcp_messages() -> Stream:
    """What the probes stream."""
    return message_stream(MESSAGES)


class TCPLink:
    """Bandwidth between one source and its sink, on a connection of its own.

    Args:
        connect: makes a destination for streams, of caches of the given type.
    """

    def __init__(self, connect: Callable[[list[Stream], torch.dtype], TCPDestination]) -> None:
        self._stream = tcp_messages()
        self._chunks = list(self._stream.schedule.all_chunks(LEVELS["3"]))
        self._destination = connect([self._stream], torch.float32)
        self._slots = [aligned_buffer(MESSAGE).fill_(slot) for slot in range(WINDOW)]

    def raw(self) -> list[tuple[float, str]]:
        """The raw loop: whole messages with nothing between them, then a word back."""
        self._destination.begin(self._stream)
        began = time.perf_counter()
        self._destination.raw(self._stream, [self._slots[chunk.index % WINDOW] for chunk in self._chunks])
        return self._sample(time.perf_counter() - began)

    def destination(self) -> list[tuple[float, str]]:
        """The destination's flush, and the sink's receipt and acknowledgement, of the same bytes to the same places."""
        destination, stream = self._destination, self._stream
        destination.begin(stream)
        began = time.perf_counter()
        for chunk in self._chunks:
            self._wait(chunk.index - WINDOW)
            destination.flush(stream, chunk, self._slots[chunk.index % WINDOW])
        self._wait(len(self._chunks) - 1)
        return self._sample(time.perf_counter() - began)

    def _wait(self, chunk: int) -> None:
        """Until a chunk is complete, testing without sleep, as long as the sink may be silent."""
        wire = self._destination.wire
        deadline = time.monotonic() + wire.timeout
        while self._destination.completed(self._stream) <= chunk:
            if time.monotonic() > deadline:
                raise WireError(f"{wire.peer} has been silent for {wire.timeout:g} s")

    def _sample(self, seconds: float) -> list[tuple[float, str]]:
        return [(MESSAGES * MESSAGE / seconds / 1e9, f"{MESSAGES} × {MESSAGE >> 20} MiB messages")]

    def close(self) -> None:
        self._destination.close()
