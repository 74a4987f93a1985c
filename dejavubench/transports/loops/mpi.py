"""The ``mpi`` destination beside raw loops of MPI between the same two ranks."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.mpi import MPIDestination, MPISinkEndpoint
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import aligned_buffer
from dejavubench.transports.loops.rank_pair import RankPair
from dejavubench.transports.probe import (
    MESSAGE_COUNT,
    MESSAGE_NBYTES,
    PACING_NBYTES,
    WINDOW,
    Probe,
    Sample,
    choose_message_nbytes,
    format_size,
    make_message_stream,
    time_call,
)

NAIVE_MESSAGE_COUNT = 2000
"""Messages of 16 bytes in one measurement of them."""


class MPILoops:
    """Bandwidth between one source and its sink; each method runs on both.

    Only the source has a sample.
    """

    def __init__(self, rank_pair: RankPair) -> None:
        self._rank_pair = rank_pair
        self._comm = rank_pair.comm
        self._peer = rank_pair.peer
        self._is_source = rank_pair.is_source
        self._slots = [aligned_buffer(MESSAGE_NBYTES).fill_(slot) for slot in range(WINDOW)]
        self._message_nbytes = 0  # not known before the first probe

    def probes(self) -> list[Probe]:
        """Return the raw loops, the destination, and the loop of naive messages."""
        return [
            Probe("mpi-ping-pong", "GB/s", self.time_ping_pong),
            Probe("mpi-windowed", "GB/s", self.time_windows),
            Probe("mpi-destination", "GB/s", self.time_destination),
            Probe("mpi-message", "us", self.time_message),
            Probe("mpi-message-overhead", "us", self.time_message_overhead),
        ]

    def _choose_message_nbytes(self) -> int:
        """Return the bytes of a message.

        The source tries the link once and tells the sink how large messages will be.
        """
        if not self._message_nbytes:
            # Both sides must know the size before the first message of it.
            pacing_message = self._slots[0].numpy()[:PACING_NBYTES]
            answer = bytearray(8)
            self._rank_pair.begin()
            if self._is_source:
                began_s = time.perf_counter()
                self._comm.Send(pacing_message, self._peer)
                self._comm.Recv(bytearray(1), self._peer)
                self._message_nbytes = choose_message_nbytes(
                    PACING_NBYTES / (time.perf_counter() - began_s), MESSAGE_COUNT
                )
                self._comm.Send(self._message_nbytes.to_bytes(8, "little"), self._peer)
            else:
                self._comm.Recv(pacing_message, self._peer)
                self._comm.Send(bytearray(1), self._peer)
                self._comm.Recv(answer, self._peer)
                self._message_nbytes = int.from_bytes(answer, "little")
        return self._message_nbytes

    def _cut_window(self) -> list[np.ndarray]:
        """Return a window of messages."""
        nbytes = self._choose_message_nbytes()
        return [slot.numpy()[:nbytes] for slot in self._slots]

    def time_ping_pong(self) -> list[Sample]:
        """Send one message back and forth."""
        samples = []
        largest_nbytes = self._choose_message_nbytes()
        for nbytes, exchange_count in ((64 << 10, 50), (1 << 20, 20), (MESSAGE_NBYTES, 4)):
            if nbytes > largest_nbytes:
                break
            message = self._slots[0].numpy()[:nbytes]  # any content will do
            self._rank_pair.begin()
            began_s = time.perf_counter()
            for _ in range(exchange_count):
                if self._is_source:
                    self._comm.Send(message, self._peer)
                    self._comm.Recv(message, self._peer)
                else:
                    self._comm.Recv(message, self._peer)
                    self._comm.Send(message, self._peer)
            # Both directions count: at any time one message is under way.
            rate_gb_s = 2 * exchange_count * nbytes / (time.perf_counter() - began_s) / 1e9
            samples.append((rate_gb_s, f"{nbytes >> 10} KiB"))
        return samples if self._is_source else []

    def time_windows(self) -> list[Sample]:
        """Run the raw loop: windows of messages issued at once, then one byte back, as osu_bw."""
        answer = bytearray(1)
        messages = self._cut_window()
        self._rank_pair.begin()
        began_s = time.perf_counter()
        # The byte back keeps the source from running ahead: eager sends would measure a copy.
        for _ in range(MESSAGE_COUNT // WINDOW):
            if self._is_source:
                MPI.Request.Waitall([self._comm.Isend(message, self._peer) for message in messages])
                self._comm.Recv(answer, self._peer)
            else:
                MPI.Request.Waitall([self._comm.Irecv(message, self._peer) for message in messages])
                self._comm.Send(answer, self._peer)
        return self._make_samples(time.perf_counter() - began_s)

    def time_destination(self) -> list[Sample]:
        """Run the destination: flush on this side, receive and acknowledge on the other."""
        nbytes = self._choose_message_nbytes()
        stream = make_message_stream(MESSAGE_COUNT, self._peer, nbytes)
        slots = [slot[:nbytes] for slot in self._slots]
        chunks = list(stream.schedule.all_chunks(LEVELS["2"]))
        self._rank_pair.begin()
        began_s = time.perf_counter()
        if self._is_source:
            destination = MPIDestination(self._comm)
            destination.begin(stream)
            for chunk_index, chunk in enumerate(chunks):
                # Polled without sleep, like the raw loop's Waitall: a nap would lower the ceiling.
                while chunk_index - destination.poll_completed(stream) >= WINDOW:
                    pass
                destination.flush(stream, chunk, slots[chunk_index % WINDOW])
            while destination.poll_completed(stream) < len(chunks):
                pass
        else:
            endpoint = MPISinkEndpoint(self._comm)
            receives = deque(
                endpoint.receive(stream, slots[chunk_index % WINDOW], _leave_in_slot)
                for chunk_index in range(WINDOW)
            )
            for chunk_index in range(len(chunks)):
                while not receives[0].poll():
                    pass
                receives.popleft()
                endpoint.acknowledge(stream)
                if chunk_index + WINDOW < len(chunks):
                    receives.append(
                        endpoint.receive(stream, slots[chunk_index % WINDOW], _leave_in_slot)
                    )
            endpoint.finish()
        return self._make_samples(time.perf_counter() - began_s)

    def time_message(self) -> list[Sample]:
        """Time one 16-byte message of the naive loop, in microseconds."""
        extent = self._slots[0].numpy().data[:16]
        self._rank_pair.begin()
        if not self._is_source:
            for _ in range(NAIVE_MESSAGE_COUNT):
                self._comm.Recv(extent, self._peer)
            return []
        # Synchronous, as the naive level: an eager send returns before the sink has the bytes.
        send = self._comm.Ssend
        began_s = time.perf_counter()
        for _ in range(NAIVE_MESSAGE_COUNT):
            send(extent, self._peer)
        return [((time.perf_counter() - began_s) / NAIVE_MESSAGE_COUNT * 1e6, "16 B, MPI_Ssend")]

    def time_message_overhead(self) -> list[Sample]:
        """Time the same message to nobody, in microseconds: the loop, the view and mpi4py."""
        # A send to MPI_PROC_NULL goes through everything but the MPI library's transport.
        extent = self._slots[0].numpy().data[:16]
        send = self._comm.Ssend
        duration_s = time_call(
            lambda: [send(extent, MPI.PROC_NULL) for _ in range(NAIVE_MESSAGE_COUNT)]
        )
        return (
            [(duration_s / NAIVE_MESSAGE_COUNT * 1e6, "16 B to MPI_PROC_NULL")]
            if self._is_source
            else []
        )

    def _make_samples(self, duration_s: float) -> list[Sample]:
        if not self._is_source:
            return []
        shape = f"{format_size(self._message_nbytes)} messages, window {WINDOW}"
        return [(MESSAGE_COUNT * self._message_nbytes / duration_s / 1e9, shape)]


def _leave_in_slot(packed: torch.Tensor) -> None:
    """Leave a chunk in its slot: the probe has no cache to scatter it into."""
