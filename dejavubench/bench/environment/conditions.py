"""Cores, CPU time and file system of a rank's host, on which its numbers depend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavubench.machine.cgroups import Throttling, read_cpu_quota, read_cpu_throttling
from dejavubench.machine.cores import HostDemand, RankDemand
from dejavubench.machine.file_system import locate_folder

if TYPE_CHECKING:
    from mpi4py import MPI


class Conditions:
    """The conditions that one rank runs under. Making one is collective.

    Args:
        world: all ranks.
        hosts: the host of each rank.
        threads: numbers of this rank's computing threads that points have, the most last; as many
            on every rank. See :class:`RankDemand`.
        helper_count: number of its helper threads.
        cores: cores granted to this rank, before the program confined it to fewer.
        stream_dir: folder of its files; None if it streams to none.
    """

    def __init__(
        self,
        world: MPI.Intracomm,
        hosts: list[str],
        threads: Sequence[int],
        helper_count: int,
        cores: set[int],
        stream_dir: Path | None,
    ) -> None:
        self._stream_dir = stream_dir
        self._quota = read_cpu_quota()
        own_demands = [
            RankDemand(computing_threads, helper_count, frozenset(cores), self._quota)
            for computing_threads in threads
        ]
        by_rank = world.allgather(own_demands)
        self._host = hosts[world.rank]
        self._threads = threads
        self._demands = [_add_up_demands(hosts, demands) for demands in zip(*by_rank, strict=True)]
        self._throttling_before: Throttling | None = None
        self._throttling_after: Throttling | None = None
        self._measured_throttling = Throttling(0, 0.0)

    def facts(self) -> dict[str, Any]:
        """Return quota, demand and stream directory, for the rank's environment."""
        conditions: dict[str, Any] = {
            "cpu_quota": None if self._quota is None else self._quota.cpus,
            "cpu_demand": asdict(self.demands[-1]),
        }
        if self._stream_dir is not None:
            stream_folder = locate_folder(self._stream_dir)
            conditions["stream_dir"] = None if stream_folder is None else asdict(stream_folder)
        return conditions

    @property
    def demands(self) -> list[HostDemand]:
        """Demands of this rank's host, one for each number of threads."""
        return [by_host[self._host] for by_host in self._demands]

    def notes(self) -> list[str]:
        """Return the notes on crowded hosts, for rank 0 to print before the measurement."""
        has_several = len(self._threads) > 1
        return [
            (f"with --threads {threads}: " if has_several else "")
            + (f"{host}: {note}" if len(by_host) > 1 else note)
            for threads, by_host in zip(self._threads, self._demands, strict=True)
            for host, demand in by_host.items()
            if (note := demand.describe_shortage()) is not None
        ]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the throttling inside, by the control group's counters at both ends."""
        # Called once per point: what is throttled while models load between them does not count.
        throttling_before = read_cpu_throttling()
        # What the first reading says of the run is the reading ahead of its first point.
        self._throttling_before = self._throttling_before or throttling_before
        yield
        self._throttling_after = read_cpu_throttling()
        if throttling_before is not None and self._throttling_after is not None:
            point_throttling = self._throttling_after.since(throttling_before)
            self._measured_throttling = Throttling(
                self._measured_throttling.periods + point_throttling.periods,
                self._measured_throttling.seconds + point_throttling.seconds,
            )

    def outcome(self) -> dict[str, Any]:
        """Return the throttling before and after the measured points, and its sum within them."""
        if self._throttling_before is None or self._throttling_after is None:
            return {}
        throttlings = {
            "before": self._throttling_before,
            "after": self._throttling_after,
            "measured": self._measured_throttling,
        }
        return {
            "cpu_throttling": {
                moment: asdict(throttling) for moment, throttling in throttlings.items()
            }
        }


def _add_up_demands(hosts: Sequence[str], demands: Sequence[RankDemand]) -> dict[str, HostDemand]:
    """Add up the demands of each host's ranks."""
    return {
        host: HostDemand.of_ranks(
            [
                demand
                for demand, host_of_rank in zip(demands, hosts, strict=True)
                if host_of_rank == host
            ]
        )
        for host in dict.fromkeys(hosts)
    }
