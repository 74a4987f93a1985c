"""Sampling of a host's conditions around each iteration, on the first rank of each host.

Counters are read before the barrier that starts an iteration, and again once all ranks have ended
it. Nothing is read while a clock runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from dejavubench.bench.environment.snapshot import Snapshot
from dejavubench.bench.recording.microbatches import IterationId
from dejavubench.machine.readings.listeners import find_listening_pids
from dejavubench.machine.readings.not_readable import NotReadableError
from dejavubench.machine.readings.nvml import GpuReader
from dejavubench.machine.readings.processes import read_pid_namespace
from dejavubench.parallel.collectives import sleeping_barrier
from dejavubench.records.conditions import HostInfo, Window, format_condition_line
from dejavubench.records.line_writer import LineWriter
from dejavubench.records.names import name_conditions_file

if TYPE_CHECKING:
    from mpi4py import MPI


class IdleWindow(TypedDict):
    """The point of a window in which the job does nothing."""

    point: str


@dataclass(frozen=True)
class Member:
    """One rank, as the samplers of all hosts see it.

    Attributes:
        machine: equal for hosts that are one machine, such as containers of it.
        namespace: the namespace of its process number; None if unknown.
        pids: its process, and programs outside the job that it found to serve the job.
        cores: processors that it was granted.
        gpu: identifier of its CUDA device; None without one.
    """

    host: str
    machine: str
    namespace: str | None
    pids: frozenset[int]
    cores: frozenset[int]
    gpu: str | None

    @classmethod
    def of_this_process(
        cls, host: str, machine: str, cores: frozenset[int], gpu: str | None, ports: Sequence[int]
    ) -> Member:
        """Describe this process.

        Args:
            ports: ports of sinks outside the job. One that listens here is part of what is
                measured, so its CPU time is no other program's.
        """
        try:
            namespace = read_pid_namespace()
        except NotReadableError:
            namespace = None
        pids = {os.getpid()} | find_listening_pids(ports)
        return cls(host, machine, namespace, frozenset(pids), cores, gpu)


class ConditionsSampler:
    """Samples nothing. This is the part of all ranks but the first of each host."""

    def begin_window(self) -> None:
        """Read the counters; call this right before the barrier that starts an iteration."""

    def end_window(self, window_id: IterationId | IdleWindow) -> None:
        """Read them again and write the window; call this once all ranks have ended."""

    def record_idle(self, world: MPI.Intracomm, point_id: str, seconds: float) -> None:
        """Write a window of some seconds in which the job does nothing. Collective."""
        sleeping_barrier(world, "idle window")
        self.begin_window()
        time.sleep(seconds)
        self.end_window(IdleWindow(point=point_id))

    @property
    def seal(self) -> dict[str, str]:
        """The digest of the file by its name; empty if this rank writes none."""
        return {}

    def close(self) -> None:
        """Close the file."""


class HostSampler(ConditionsSampler):
    """Writes the conditions of a host.

    Args:
        folder: the run's folder on this host.
        rank: number of this rank, the first of its host.
        members: all ranks, in their order.
        session: number of the session of the run.
    """

    def __init__(
        self, folder: Path, run_id: str, rank: int, members: Sequence[Member], session: int = 1
    ) -> None:
        own_member = members[rank]
        self._unread_reasons: dict[str, str] = {}
        # Ranks of other hosts that are this machine compute on the same processors.
        neighbours = [member for member in members if member.machine == own_member.machine]
        self._cpus = sorted(frozenset[int]().union(*(member.cores for member in neighbours)))
        self._pids = self._find_job_processes(own_member, neighbours)
        ranks = [
            member_rank
            for member_rank, member in enumerate(members)
            if member.host == own_member.host
        ]
        self._gpus = self._open_gpu_reader(
            {gpu for member_rank in ranks if (gpu := members[member_rank].gpu) is not None}
        )
        # The first reading shows what cannot be read at all: said once, and not in every window.
        self._snapshot_before = self._take_snapshot()
        self._unread_reasons |= self._snapshot_before.unreadable
        self._lines = LineWriter(folder / name_conditions_file(rank, session))
        self._write(
            HostInfo(
                run_id=run_id,
                session=session,
                host=own_member.host,
                ranks=ranks,
                cpus=self._cpus,
                unreadable=self._unread_reasons,
            )
        )

    def begin_window(self) -> None:
        """Keep a snapshot of the host's counters, which the window begins with."""
        self._snapshot_before = self._take_snapshot()

    def end_window(self, window_id: IterationId | IdleWindow) -> None:
        """Append the window since :meth:`begin_window` to the file, with what could not be read."""
        snapshot = self._take_snapshot()
        newly_unreadable = {
            subject: reason
            for subject, reason in snapshot.unreadable.items()
            if subject not in self._unread_reasons
        }
        self._write(
            Window(
                **window_id, **snapshot.since(self._snapshot_before), unreadable=newly_unreadable
            )
        )

    @property
    def seal(self) -> dict[str, str]:
        """The digest of the lines written so far, by the file's name."""
        return self._lines.seal

    def close(self) -> None:
        """Close the file of conditions."""
        self._lines.close()

    def _find_job_processes(
        self, own_member: Member, neighbours: Sequence[Member]
    ) -> frozenset[int]:
        """Return the job's processes on this machine; none if their numbers mean nothing here."""
        # A process number means another process in another namespace, whose time would be counted.
        if own_member.namespace is None or {member.namespace for member in neighbours} != {
            own_member.namespace
        }:
            self._unread_reasons["CPU time of the job"] = (
                "its ranks on this machine are in different process namespaces"
            )
            return frozenset()
        return frozenset[int]().union(*(member.pids for member in neighbours))

    def _open_gpu_reader(self, uuids: set[str]) -> GpuReader | None:
        if not uuids:
            return None
        try:
            return GpuReader(sorted(uuids))
        except NotReadableError as error:
            self._unread_reasons["GPU"] = str(error)
            return None

    def _take_snapshot(self) -> Snapshot:
        return Snapshot.take(self._cpus, self._pids, self._gpus)

    def _write(self, line: HostInfo | Window) -> None:
        self._lines.write(format_condition_line(line))


def make_sampler(
    folder: Path, run_id: str, rank: int, members: Sequence[Member], session: int = 1
) -> ConditionsSampler:
    """Return this rank's sampler."""
    own_host = members[rank].host
    first_here = min(
        member_rank for member_rank, member in enumerate(members) if member.host == own_host
    )
    if rank != first_here:
        return ConditionsSampler()
    return HostSampler(folder, run_id, rank, members, session)
