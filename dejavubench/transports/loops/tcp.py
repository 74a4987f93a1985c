"""The ``tcp`` destination beside a raw loop over a socket to the same sink.

Both move the same bytes from and to the same memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.tcp.wire import WireError
from dejavubench.dejavulib.kv_cache import KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import aligned_buffer
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.transports.loops.tcp_services import MeasuredTCPDestination
from dejavubench.transports.probe import (
    MESSAGE_NBYTES,
    PACING_NBYTES,
    WINDOW,
    Probe,
    Sample,
    choose_message_nbytes,
    format_size,
    make_message_stream,
)

LARGE_MESSAGE_COUNT = 8
"""Messages of one measurement."""

SMALL_MESSAGE_COUNT = 2000
"""Messages of 16 bytes in one measurement of them: half are of K, half of V."""

Connect = Callable[[list[Stream], torch.dtype], MeasuredTCPDestination]
"""Opens a destination for streams of caches of a type."""


def make_large_messages(nbytes: int = MESSAGE_NBYTES) -> Stream:
    """Return the stream whose chunks are whole messages."""
    return make_message_stream(LARGE_MESSAGE_COUNT, nbytes=nbytes)


def make_small_messages() -> Stream:
    """Return a stream of one step whose extents are of 16 bytes: a head of four numbers each."""
    # There are two positions, so that the next step's keys and values keep the extents apart.
    geometry = KVGeometry(
        layers=1, requests=1, heads=SMALL_MESSAGE_COUNT // 2, positions=2, head_size=4, itemsize=4
    )
    return Stream(
        0,
        StreamSchedule(
            geometry=geometry,
            region=geometry.whole,
            input_len=1,
            steps=0,
            slot_nbytes=geometry.region_nbytes(geometry.whole),
        ),
    )


class TCPLoops:
    """Bandwidth between one source and its sink, and the time of a message, on two connections.

    Args:
        connect: makes a destination for streams, of caches of the given type.
    """

    def __init__(self, connect: Connect) -> None:
        self._message_nbytes = _choose_message_nbytes(connect)
        self._stream = make_large_messages(self._message_nbytes)
        self._chunks = list(self._stream.schedule.all_chunks(LEVELS["3"]))
        self._destination = connect([self._stream], torch.float32)
        self._slots = [aligned_buffer(self._message_nbytes).fill_(slot) for slot in range(WINDOW)]
        self._small_messages = make_small_messages()
        self._small_destination = connect([self._small_messages], torch.float32)

    def probes(self) -> list[Probe]:
        """Return the raw loop, the destination, and the loop of naive messages."""
        return [
            Probe("tcp-raw", "GB/s", self.time_raw),
            Probe("tcp-destination", "GB/s", self.time_destination),
            Probe("tcp-message", "us", self.time_message),
        ]

    def time_raw(self) -> list[Sample]:
        """Run the raw loop: whole messages with nothing between them, then one byte back."""
        _begin_stream(self._destination, self._stream)
        began_s = time.perf_counter()
        self._destination.send_raw(
            self._stream, [self._slots[chunk.index % WINDOW] for chunk in self._chunks]
        )
        return self._make_samples(time.perf_counter() - began_s)

    def time_destination(self) -> list[Sample]:
        """Run the destination's flush, and the sink's receipt and acknowledgement."""
        destination, stream = self._destination, self._stream
        _begin_stream(destination, stream)
        began_s = time.perf_counter()
        # At most WINDOW chunks are under way: a slot is sent from until its chunk is complete.
        for chunk in self._chunks:
            _wait_for_chunk(destination, stream, chunk.index - WINDOW)
            destination.flush(stream, chunk, self._slots[chunk.index % WINDOW])
        _wait_for_chunk(destination, stream, len(self._chunks) - 1)
        return self._make_samples(time.perf_counter() - began_s)

    def time_message(self) -> list[Sample]:
        """Time one 16-byte message that the sink has answered, in microseconds."""
        extent = self._slots[0].numpy().data[:16]
        (chunk,) = self._small_messages.schedule.all_chunks(LEVELS["0"])
        _begin_stream(self._small_destination, self._small_messages)
        began_s = time.perf_counter()
        self._small_destination.flush_extents(
            self._small_messages, chunk, [extent] * SMALL_MESSAGE_COUNT, each_complete=True
        )
        _wait_for_chunk(self._small_destination, self._small_messages, chunk.index)
        return [((time.perf_counter() - began_s) / SMALL_MESSAGE_COUNT * 1e6, "16 B, answered")]

    def _make_samples(self, duration_s: float) -> list[Sample]:
        return [
            (
                LARGE_MESSAGE_COUNT * self._message_nbytes / duration_s / 1e9,
                f"{LARGE_MESSAGE_COUNT} × {format_size(self._message_nbytes)} messages",
            )
        ]

    def close(self) -> None:
        """Close both connections; the sink then frees the room of the probes' caches."""
        self._destination.close()
        self._small_destination.close()


def _begin_stream(destination: MeasuredTCPDestination, stream: Stream) -> None:
    """Begin a microbatch over a cache whose pages the sink has."""
    destination.begin(stream)
    for buffer in destination.buffers(stream):
        buffer.fill_(0)


def _wait_for_chunk(destination: MeasuredTCPDestination, stream: Stream, chunk_index: int) -> None:
    """Wait without sleep until a chunk is complete. Raises WireError: the sink is silent."""
    # A deadline, as a sink that hangs would hold up the whole run.
    wire = destination.wire
    deadline_s = time.monotonic() + wire.timeout_s
    while destination.poll_completed(stream) <= chunk_index:
        if time.monotonic() > deadline_s:
            raise WireError(f"{wire.peer} has been silent for {wire.timeout_s:g} s")


def _choose_message_nbytes(connect: Connect) -> int:
    """Return the bytes of a message, by how long a first one takes on its own connection."""
    stream = make_message_stream(1, nbytes=PACING_NBYTES)
    destination = connect([stream], torch.float32)
    _begin_stream(destination, stream)
    began_s = time.perf_counter()
    # Closed below: the message's size is part of a stream, and the real one is made from this rate.
    destination.send_raw(stream, [aligned_buffer(PACING_NBYTES).fill_(1)])
    duration_s = time.perf_counter() - began_s
    destination.close()
    return choose_message_nbytes(PACING_NBYTES / duration_s, LARGE_MESSAGE_COUNT)
