"""How far the clocks of a run's hosts are apart, by messages between the measurements.

The ranks of one host read one clock, because ``perf_counter`` is ``CLOCK_MONOTONIC`` on Linux. For
each other host, one of its ranks sends rank 0 a message and gets rank 0's time back. Rank 0 has
read its clock at some moment between the two. So the middle of the two is wrong by half of the
round trip at most, however unequal the two ways are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from dejavubench.records import HostClock

if TYPE_CHECKING:
    from mpi4py import MPI

ROUND_TRIPS = 100
"""The shortest of them counts: it bounds the error best."""


class RoundTrip(NamedTuple):
    """One round trip: when it began and ended by this host's clock, and rank 0's time between."""

    sent: int
    theirs: int
    back: int


def offset_of(reference: str, trips: Sequence[RoundTrip]) -> HostClock:
    """Return the offset that is to be added to this host's times, from the shortest round trip."""
    best = min(trips, key=lambda trip: trip.back - trip.sent)
    middle, odd = divmod(best.sent + best.back, 2)
    return HostClock(
        reference=reference,
        offset_ns=best.theirs - middle,
        # Rounded up, so that the true offset is never outside.
        error_ns=(best.back - best.sent + 1) // 2 + odd,
        at_ns=middle,
        round_trips=len(trips),
    )


def measure(comm: MPI.Intracomm, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the fact ``clock`` of this rank's host. Collective, and outside every clock.

    Args:
        hosts: the host of each rank.
    """
    # One rank per host measures. The hosts take turns: a second one would make rank 0 answer late.
    leader_here, reference = hosts.index(hosts[comm.rank]), hosts[0]
    leaders = sorted({hosts.index(host) for host in hosts} - {0})
    host_clock = HostClock(
        reference=reference, offset_ns=0, error_ns=0, at_ns=perf_counter_ns(), round_trips=0
    )
    for leader in leaders:
        if comm.rank == 0:
            _answer(comm, leader)
        elif comm.rank == leader:
            host_clock = offset_of(reference, list(_trips(comm)))
    if leaders:  # the first rank of each host has measured for the others
        host_clock = comm.allgather(host_clock)[leader_here]
    return {"clock": host_clock.model_dump()}


def _trips(comm: MPI.Intracomm) -> Iterator[RoundTrip]:
    theirs = array("q", [0])
    for _ in range(ROUND_TRIPS):
        sent = perf_counter_ns()
        comm.Send(theirs, 0)
        comm.Recv(theirs, 0)
        yield RoundTrip(sent, theirs[0], perf_counter_ns())


def _answer(comm: MPI.Intracomm, leader: int) -> None:
    own = array("q", [0])
    for _ in range(ROUND_TRIPS):
        comm.Recv(own, leader)
        own[0] = perf_counter_ns()
        comm.Send(own, leader)
