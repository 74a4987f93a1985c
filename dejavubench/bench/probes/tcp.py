"""What a socket to a ``tcp`` sink can do, and what of that the destination reaches: from and to the same places."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dejavubench.bench.probes.ceilings import (
    MESSAGE,
    PACED_BY,
    WINDOW,
    Sample,
    message_stream,
    paced,
    size_text,
)
from dejavubench.dejavulib.copies import aligned_buffer
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp import TCPDestination
from dejavubench.dejavulib.kvcache import KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.tcp.wire import WireError

MESSAGES = 8
RUNS = 2000
"""Messages of 16 bytes in one measurement of them, an even number: half are of K, half of V."""

Connect = Callable[[list[Stream], torch.dtype], TCPDestination]


def tcp_messages(nbytes: int = MESSAGE) -> Stream:
    """What the probes stream."""
    return message_stream(MESSAGES, nbytes=nbytes)


def tcp_runs() -> Stream:
    """One step whose runs are of 16 bytes: as many heads of four numbers in fp32, the next step's place in between."""
    geometry = KVGeometry(1, 1, RUNS // 2, 2, 4, 4)
    return Stream(
        0, StreamSchedule(geometry, geometry.whole, 1, 0, geometry.region_nbytes(geometry.whole))
    )


class TCPLink:
    """Bandwidth between one source and its sink, on a connection of its own, and the time of a message on another.

    Args:
        connect: makes a destination for streams, of caches of the given type.
    """

    def __init__(self, connect: Connect) -> None:
        self._message = _message_nbytes(connect)
        self._stream = tcp_messages(self._message)
        self._chunks = list(self._stream.schedule.all_chunks(LEVELS["3"]))
        self._destination = connect([self._stream], torch.float32)
        self._slots = [aligned_buffer(self._message).fill_(slot) for slot in range(WINDOW)]
        self._runs = tcp_runs()
        self._naive = connect([self._runs], torch.float32)

    def raw(self) -> list[Sample]:
        """The raw loop: whole messages with nothing between them, then a word back."""
        self._destination.begin(self._stream)
        began = time.perf_counter()
        self._destination.raw(
            self._stream, [self._slots[chunk.index % WINDOW] for chunk in self._chunks]
        )
        return self._sample(time.perf_counter() - began)

    def destination(self) -> list[Sample]:
        """The destination's flush, and the sink's receipt and acknowledgement, of the same bytes to the same places."""
        destination, stream = self._destination, self._stream
        destination.begin(stream)
        began = time.perf_counter()
        for chunk in self._chunks:
            _wait(destination, stream, chunk.index - WINDOW)
            destination.flush(stream, chunk, self._slots[chunk.index % WINDOW])
        _wait(destination, stream, len(self._chunks) - 1)
        return self._sample(time.perf_counter() - began)

    def message(self) -> list[Sample]:
        """Microseconds of the naive loop's one run of 16 bytes: a frame that the sink has answered."""
        run = self._slots[0].numpy().data[:16]
        (chunk,) = self._runs.schedule.all_chunks(LEVELS["0"])
        self._naive.begin(self._runs)
        began = time.perf_counter()
        self._naive.flush_runs(self._runs, chunk, [run] * RUNS, each_complete=True)
        _wait(self._naive, self._runs, chunk.index)
        return [((time.perf_counter() - began) / RUNS * 1e6, "16 B, answered")]

    def _sample(self, seconds: float) -> list[Sample]:
        return [
            (
                MESSAGES * self._message / seconds / 1e9,
                f"{MESSAGES} × {size_text(self._message)} messages",
            )
        ]

    def close(self) -> None:
        self._destination.close()
        self._naive.close()


def _wait(destination: TCPDestination, stream: Stream, chunk: int) -> None:
    """Until a chunk is complete, testing without sleep, as long as the sink may be silent."""
    wire = destination.wire
    deadline = time.monotonic() + wire.timeout
    while destination.completed(stream) <= chunk:
        if time.monotonic() > deadline:
            raise WireError(f"{wire.peer} has been silent for {wire.timeout:g} s")


def _message_nbytes(connect: Connect) -> int:
    """Bytes of the probes' messages, by how long a first one takes on a connection of its own."""
    stream = message_stream(1, nbytes=PACED_BY)
    destination = connect([stream], torch.float32)
    destination.begin(stream)
    began = time.perf_counter()
    destination.raw(stream, [aligned_buffer(PACED_BY).fill_(1)])
    took = time.perf_counter() - began
    destination.close()
    return paced(PACED_BY / took, MESSAGES)
