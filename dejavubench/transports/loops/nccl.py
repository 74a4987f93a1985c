"""A raw loop of NCCL between one source's GPU and its sink's."""

from __future__ import annotations

import time

import torch

from dejavubench.dejavulib.destinations.nccl.link import NCCLLink
from dejavubench.transports.loops.rank_pair import RankPair
from dejavubench.transports.probe import MESSAGE_NBYTES, WINDOW, Probe, Sample

SEND_MESSAGE_COUNT = 64
"""Messages of one measurement."""


class NCCLLoop:
    """Bandwidth between two GPUs; it runs on both sides, and only the source has a sample.

    Args:
        link: link between the same two ranks; nothing else is under way there meanwhile.
    """

    def __init__(self, rank_pair: RankPair, link: NCCLLink, device: torch.device) -> None:
        self._rank_pair = rank_pair
        self._link = link
        self._slots = [
            torch.zeros(MESSAGE_NBYTES, dtype=torch.uint8, device=device) for _ in range(WINDOW)
        ]
        torch.cuda.synchronize(device)  # the link's CUDA stream is not that of the zeros

    def probes(self) -> list[Probe]:
        """Return the one raw loop; the link itself stays open for the destination."""
        return [Probe("nccl-send", "GB/s", self.time_send)]

    def time_send(self) -> list[Sample]:
        """Run the raw loop: messages one behind the other, then one byte back by MPI."""
        send_or_receive = self._link.send if self._rank_pair.is_source else self._link.recv
        self._rank_pair.begin()
        began_s = time.perf_counter()
        for message_index in range(SEND_MESSAGE_COUNT):
            send_or_receive(self._slots[message_index % WINDOW].data_ptr(), MESSAGE_NBYTES)
        # A send kernel may end before the receiver's does: the sink's byte is the proof.
        self._link.synchronize()
        self._rank_pair.confirm()
        duration_s = time.perf_counter() - began_s
        if not self._rank_pair.is_source:
            return []
        return [
            (
                SEND_MESSAGE_COUNT * MESSAGE_NBYTES / duration_s / 1e9,
                f"{SEND_MESSAGE_COUNT} × {MESSAGE_NBYTES >> 20} MiB",
            )
        ]
