"""Probe of the link between two ranks by MPI: latency and bandwidth, each within a deadline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dejavubench.dejavulib.waiting import DeadlineError, wait_asleep
from dejavubench.doctor.bounded_collectives import wait_busy
from dejavubench.transports.probe import LEAST_MESSAGE_NBYTES, WINDOW

if TYPE_CHECKING:
    from mpi4py import MPI

SMALL_MESSAGE_NBYTES = 8
"""Bytes of a ping-pong message. The first one says whether another exchange follows."""

LATENCY_S = 0.1
"""Seconds of ping-pong, after as many exchanges as :data:`WARM_EXCHANGE_COUNT`."""

WARM_EXCHANGE_COUNT = 20
"""First exchanges, which do not count: they make the connection and wake both cores."""

BANDWIDTH_S = 0.15
"""Seconds of large messages in each direction."""

WINDOW_COUNT = 4
"""Windows that fit this time on a slow link, whose messages are smaller. The fastest one counts:
TCP begins slowly and waits 0.2 s for a lost packet, and other programs can only slow a window.
"""

LARGE_MESSAGE_NBYTES = 4 << 20
"""Bytes of a large message, on a link that is fast enough for it."""

PACING_NBYTES = 1 << 20
"""Bytes that are sent to find out how fast a link is."""

ANSWER_S = 5.0
"""Seconds without an answer after which a link is given up."""

MOST_PAIRS = 15
"""Pairs that are probed. More ranks than 6 have more pairs: then some are chosen."""


@dataclass(frozen=True)
class Link:
    """The link between two ranks, as their messages found it.

    Attributes:
        ranks: the two ranks.
        hosts: their hosts.
        latency_us: half of a ping-pong's time, the median.
        least_us: half of the shortest one's: that of the way, whatever else the cores had to do.
        gb_s: GB/s from the first rank to the second, and back: the fastest window of messages.
        nbytes: bytes of a large message.
        problem: why there are no numbers.
    """

    ranks: tuple[int, int]
    hosts: tuple[str, str]
    latency_us: float = 0.0
    least_us: float = 0.0
    gb_s: tuple[float, float] = (0.0, 0.0)
    nbytes: int = 0
    problem: str | None = None

    @property
    def same_host(self) -> bool:
        """Whether both ranks are on one host."""
        return self.hosts[0] == self.hosts[1]


def choose_pairs(hosts: Sequence[str], most_pair_count: int = MOST_PAIRS) -> list[tuple[int, int]]:
    """Return the pairs of ranks to probe: all, or for many ranks a choice.

    The choice has rank 0 with the first rank of each other host, then each rank with the next one.

    Args:
        hosts: the host of each rank.
    """
    ranks = range(len(hosts))
    all_pairs = [(rank, peer) for rank in ranks for peer in ranks if rank < peer]
    if len(all_pairs) <= most_pair_count:
        return all_pairs
    # Every host is in it, and every pair of neighbours: stages of a pipeline are neighbours.
    first_ranks = [hosts.index(host) for host in dict.fromkeys(hosts)]
    chosen_pairs = [(0, first_rank) for first_rank in first_ranks if first_rank]
    chosen_pairs += [(rank, rank + 1) for rank in ranks[:-1]]
    return sorted(
        dict.fromkeys(chosen_pairs).keys()
        if len(chosen_pairs) <= most_pair_count
        else chosen_pairs[:most_pair_count]
    )


class LinkProbe:
    """One rank's part in probing links.

    Args:
        comm: nothing else may be under way there.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._large_buffer = bytearray(WINDOW * LARGE_MESSAGE_NBYTES)

    def measure(self, rank_pair: tuple[int, int], hosts: tuple[str, str]) -> Link | None:
        """Probe a link; both ranks call this at the same time. The first one returns the link."""
        is_first = self._comm.rank == rank_pair[0]
        peer = rank_pair[1] if is_first else rank_pair[0]
        try:
            self._begin(peer)
            # Both ranks take the same steps: a deadline on either of them ends the probe of both.
            exchange_times_s = self._time_exchanges(peer, is_first)
            nbytes = self._choose_nbytes(peer, is_first)
            gb_s_forth = self._measure_rate(peer, is_first, nbytes)
            gb_s_back = self._measure_rate(peer, not is_first, nbytes)
        except DeadlineError:
            problem = f"no answer within {ANSWER_S:g} s"
            return Link(rank_pair, hosts, problem=problem) if is_first else None
        if not is_first:
            return None
        # Half of a round trip: the times of two hosts are never subtracted.
        latency_us, least_latency_us = (
            1e6 * round_s / 2
            for round_s in (statistics.median(exchange_times_s), min(exchange_times_s))
        )
        return Link(rank_pair, hosts, latency_us, least_latency_us, (gb_s_forth, gb_s_back), nbytes)

    def _begin(self, peer: int) -> None:
        """Sleep until the other rank has come."""
        requests = [
            self._comm.Isend(bytearray(1), peer),
            self._comm.Irecv(bytearray(1), peer),
        ]
        wait_asleep(lambda: _are_done(requests), "the other rank of a link", ANSWER_S)

    def _send(self, buffer: bytearray | memoryview, peer: int) -> None:
        request = self._comm.Isend(buffer, peer)
        wait_busy(lambda: bool(request.Test()), ANSWER_S)

    def _receive(self, buffer: bytearray | memoryview, peer: int) -> None:
        request = self._comm.Irecv(buffer, peer)
        wait_busy(lambda: bool(request.Test()), ANSWER_S)

    def _time_exchanges(self, peer: int, is_leader: bool) -> list[float]:
        """Return the time of each exchange; none on the rank that answers."""
        buffer = bytearray(SMALL_MESSAGE_NBYTES)
        if not is_leader:
            while True:
                self._receive(buffer, peer)
                self._send(buffer, peer)
                if not buffer[0]:
                    return []
        exchange_times_s: list[float] = []
        deadline_s = time.perf_counter() + LATENCY_S
        goes_on = True
        while goes_on:
            began_s = time.perf_counter()
            goes_on = began_s < deadline_s or len(exchange_times_s) <= WARM_EXCHANGE_COUNT
            buffer[0] = goes_on  # the answering rank has no clock of its own to end by
            self._send(buffer, peer)
            self._receive(buffer, peer)
            exchange_times_s.append(time.perf_counter() - began_s)
        return exchange_times_s[WARM_EXCHANGE_COUNT:]

    def _choose_nbytes(self, peer: int, is_leader: bool) -> int:
        """Return the bytes of a large message. :data:`WINDOW_COUNT` windows of it fit the time."""
        payload = memoryview(self._large_buffer)[:PACING_NBYTES]
        nbytes_message = bytearray(8)
        bytes_per_s = 0.0
        for _ in range(2):  # the second one counts: TCP begins slowly
            began_s = time.perf_counter()
            if is_leader:
                self._send(payload, peer)
                self._receive(bytearray(1), peer)
            else:
                self._receive(payload, peer)
                self._send(bytearray(1), peer)
            bytes_per_s = PACING_NBYTES / (time.perf_counter() - began_s)
        if not is_leader:
            self._receive(nbytes_message, peer)
            return int.from_bytes(nbytes_message, "little")
        nbytes = LARGE_MESSAGE_NBYTES
        while (
            nbytes > LEAST_MESSAGE_NBYTES
            and WINDOW_COUNT * WINDOW * nbytes > bytes_per_s * BANDWIDTH_S
        ):
            nbytes //= 2
        self._send(bytearray(nbytes.to_bytes(8, "little")), peer)
        return nbytes

    def _measure_rate(self, peer: int, is_sender: bool, nbytes: int) -> float:
        """Send windows of messages, each answered by one byte; return GB/s on both ranks."""
        messages = [
            memoryview(self._large_buffer)[message_index * LARGE_MESSAGE_NBYTES :][:nbytes]
            for message_index in range(WINDOW)
        ]
        send_or_receive = self._comm.Isend if is_sender else self._comm.Irecv
        window_times_s: list[float] = []
        goes_on = bytearray(b"\1")
        deadline_s = time.perf_counter() + BANDWIDTH_S
        while goes_on[0]:
            began_s = time.perf_counter()
            requests = [send_or_receive(message, peer) for message in messages]
            wait_busy(partial(_are_done, requests), ANSWER_S)
            if is_sender:
                self._receive(goes_on, peer)
            else:
                goes_on[0] = (
                    time.perf_counter() < deadline_s or len(window_times_s) < WINDOW_COUNT - 1
                )
                self._send(goes_on, peer)
            window_times_s.append(time.perf_counter() - began_s)
        # The first window may still connect; WINDOWS of them are sent in any case.
        return WINDOW * nbytes / min(window_times_s[1:]) / 1e9


def _are_done(requests: list[MPI.Request]) -> bool:
    from mpi4py import MPI

    return bool(MPI.Request.Testall(requests))
