"""The ``nixl`` destination beside a raw loop of NIXL between the same two ranks."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from mpi4py import MPI

from dejavubench.dejavulib.destinations.nixl import NIXLDestination, NIXLSinkEndpoint
from dejavubench.dejavulib.destinations.nixl.agent import Notification
from dejavubench.dejavulib.destinations.nixl.sink import PackedReceive
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import aligned_buffer, device_staging
from dejavubench.transports.loops.rank_pair import RankPair
from dejavubench.transports.probe import (
    MESSAGE_COUNT,
    MESSAGE_NBYTES,
    WINDOW,
    Probe,
    Sample,
    make_message_stream,
)


class NIXLLoops:
    """Bandwidth between one source and its sink, by agents of their own; each method runs on both.

    Args:
        comm: names the ranks; nothing else may be on its way there while this is made.
        device: device of the memory that is written from, or to.
    """

    def __init__(self, comm: MPI.Intracomm, rank_pair: RankPair, device: torch.device) -> None:
        self._rank_pair = rank_pair
        peer, is_source = rank_pair.peer, rank_pair.is_source
        on_device = device.type == "cuda"
        self._slots = (
            device_staging(MESSAGE_NBYTES, WINDOW, device)
            if on_device
            else [aligned_buffer(MESSAGE_NBYTES) for _ in range(WINDOW)]
        )
        self._stream = make_message_stream(MESSAGE_COUNT, peer)
        # A stream of its own, so that its notifications are not taken for the destination's.
        self._raw_stream = replace(self._stream, id=1)
        self._raw_round_count = 0
        self._chunks = list(self._stream.schedule.all_chunks(LEVELS["2"]))
        self._destination = NIXLDestination(comm, [peer], self._slots) if is_source else None
        self._endpoint = None if is_source else NIXLSinkEndpoint(comm, [peer], self._slots)
        own_slots = [(slot.data_ptr(), MESSAGE_NBYTES) for slot in self._slots]
        # Each with the other side's: a write is one-sided, so its target must be known here.
        self._slot_pairs = list(
            zip(own_slots, comm.sendrecv(own_slots, peer, source=peer), strict=True)
        )

    def probes(self) -> list[Probe]:
        """Return the raw loop of writes, and the destination with the same sizes."""
        return [
            Probe("nixl-raw", "GB/s", self.time_raw),
            Probe("nixl-destination", "GB/s", self.time_destination),
        ]

    def time_raw(self) -> list[Sample]:
        """Run the raw loop: windows of writes, each waited for whole.

        Nothing is scattered or acknowledged.
        """
        self._rank_pair.begin()
        began_s = time.perf_counter()
        round_number = self._raw_round_count
        self._raw_round_count += 1
        if self._destination is not None:
            agent = self._destination.agent
            for _ in range(MESSAGE_COUNT // WINDOW):
                writes_under_way = [
                    agent.write(self._raw_stream, [source], [target])
                    for source, target in self._slot_pairs
                ]
                for write in writes_under_way:
                    while not agent.has_finished(write):
                        pass  # asking is what moves bytes: the agent has no thread
            agent.notify(self._raw_stream, Notification.WRITTEN, round_number)
        elif self._endpoint is not None:
            while not self._endpoint.take_written(self._raw_stream, round_number):
                pass  # asking is what lets NIXL move the bytes that it must move on this side
        return self._make_samples(time.perf_counter() - began_s)

    def time_destination(self) -> list[Sample]:
        """Run the destination: flush on this side, slots and acknowledgements from the other."""
        self._rank_pair.begin()
        began_s = time.perf_counter()
        if self._destination is not None:
            self._send(self._destination)
        elif self._endpoint is not None:
            self._receive(self._endpoint)
        return self._make_samples(time.perf_counter() - began_s)

    def _send(self, destination: NIXLDestination) -> None:
        destination.begin(self._stream)
        for chunk_index, chunk in enumerate(self._chunks):
            while chunk_index - destination.poll_completed(self._stream) >= WINDOW:
                pass
            destination.flush(self._stream, chunk, self._slots[chunk_index % WINDOW])
        while destination.poll_completed(self._stream) < len(self._chunks):
            pass

    def _receive(self, endpoint: NIXLSinkEndpoint) -> None:
        receives: list[PackedReceive] = [
            endpoint.receive(self._stream, slot) for slot in self._slots
        ]
        for chunk_index in range(len(self._chunks)):
            while not receives[chunk_index].poll():
                pass
            endpoint.acknowledge(self._stream)
            if chunk_index + WINDOW < len(self._chunks):
                receives.append(endpoint.receive(self._stream, self._slots[chunk_index % WINDOW]))
        endpoint.finish()

    def _make_samples(self, duration_s: float) -> list[Sample]:
        if self._destination is None:
            return []
        return [
            (
                MESSAGE_COUNT * MESSAGE_NBYTES / duration_s / 1e9,
                f"{MESSAGE_NBYTES >> 20} MiB messages, window {WINDOW}",
            )
        ]

    def close(self) -> None:
        """Close the ends that this rank has."""
        for own_side in (self._destination, self._endpoint):
            if own_side is not None:
                own_side.close()
