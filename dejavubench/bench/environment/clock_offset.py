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

ROUND_TRIP_COUNT = 100
"""The shortest of them counts: it bounds the error best."""


class RoundTrip(NamedTuple):
    """One round trip: when it began and ended by this host's clock, and rank 0's time between."""

    sent_ns: int
    rank_0_ns: int
    back_ns: int


def estimate_offset(reference: str, trips: Sequence[RoundTrip]) -> HostClock:
    """Return the offset that is to be added to this host's times, from the shortest round trip."""
    shortest_trip = min(trips, key=lambda trip: trip.back_ns - trip.sent_ns)
    middle_ns, odd_ns = divmod(shortest_trip.sent_ns + shortest_trip.back_ns, 2)
    return HostClock(
        reference=reference,
        offset_ns=shortest_trip.rank_0_ns - middle_ns,
        # Rounded up, so that the true offset is never outside.
        error_ns=(shortest_trip.back_ns - shortest_trip.sent_ns + 1) // 2 + odd_ns,
        at_ns=middle_ns,
        round_trips=len(trips),
    )


def measure(comm: MPI.Intracomm, hosts: Sequence[str]) -> dict[str, Any]:
    """Return the fact ``clock`` of this rank's host. Collective, and outside every clock.

    Args:
        hosts: the host of each rank.
    """
    # One rank per host measures. The hosts take turns: a second one would make rank 0 answer late.
    own_leader = hosts.index(hosts[comm.rank])
    reference = hosts[0]
    leaders = sorted({hosts.index(host) for host in hosts} - {0})
    host_clock = HostClock(
        reference=reference, offset_ns=0, error_ns=0, at_ns=perf_counter_ns(), round_trips=0
    )
    for leader in leaders:
        if comm.rank == 0:
            _answer_trips(comm, leader)
        elif comm.rank == leader:
            host_clock = estimate_offset(reference, list(_measure_trips(comm)))
    if leaders:  # the first rank of each host has measured for the others
        host_clock = comm.allgather(host_clock)[own_leader]
    return {"clock": host_clock.model_dump()}


def _measure_trips(comm: MPI.Intracomm) -> Iterator[RoundTrip]:
    rank_0_ns = array("q", [0])
    for _ in range(ROUND_TRIP_COUNT):
        sent_ns = perf_counter_ns()
        comm.Send(rank_0_ns, 0)
        comm.Recv(rank_0_ns, 0)
        yield RoundTrip(sent_ns, rank_0_ns[0], perf_counter_ns())


def _answer_trips(comm: MPI.Intracomm, leader: int) -> None:
    own_ns = array("q", [0])
    for _ in range(ROUND_TRIP_COUNT):
        comm.Recv(own_ns, leader)
        own_ns[0] = perf_counter_ns()
        comm.Send(own_ns, leader)
