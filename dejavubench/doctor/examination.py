"""The examination: every rank reads its facts, hosts and links are probed, rank 0 has it all."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dejavubench.config.experiment import Experiment
from dejavubench.doctor.bounded_collectives import BoundedCollectives, MissingRanksError
from dejavubench.doctor.facts.cpu import read_load_facts
from dejavubench.doctor.facts.cross_memory import (
    ReadableMemory,
    find_read_problem,
    locate_readable_bytes,
)
from dejavubench.doctor.facts.job import HostFacts, Job, PortCheck, RankFacts
from dejavubench.doctor.facts.limits import read_core_facts, read_limit_facts
from dejavubench.doctor.facts.mpi import (
    MPIFacts,
    make_facts_without_mpi,
    read_boot_id,
    read_foreign_mpi_facts,
    read_mpi_facts,
    read_software_facts,
)
from dejavubench.doctor.facts.ucx import UCXFacts, UCXLog
from dejavubench.doctor.host_probes import probe_folders, probe_ports, read_host_facts
from dejavubench.doctor.links import Link, LinkProbe, choose_pairs
from dejavubench.errors import UsageError
from dejavubench.machine.launcher import read_rank
from dejavubench.machine.shared_memory import say_shortage_and_wait
from dejavubench.transports.registry import list_transports
from dejavubench.watchdog import heartbeat
from dejavubench.watchdog.mpi_start import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

START_S = 60.0
"""Seconds for all ranks to start, as for a run."""

PHASE_S = 30.0
"""Seconds in which all ranks must come to the next phase."""

LONGEST_S = 120.0
"""Seconds after which a rank ends itself, whatever it waits for."""

LOAD_S = 1.0
"""Seconds in which all ranks sleep, so that other programs alone keep the cores busy."""

LINKS_S = 8.0
"""Seconds for all links together. Links that are left then are not probed."""


@dataclass(frozen=True)
class ExaminedSubjects:
    """The subjects that the user chooses.

    Attributes:
        folders: folders that a run would write to.
        port: TCP port that a sink would listen on.
    """

    folders: Sequence[Path]
    port: int


@dataclass(frozen=True)
class RankResults:
    """All that one rank has found."""

    rank: RankFacts
    host: HostFacts | None
    ports: tuple[PortCheck, ...]
    links: tuple[Link, ...]


def examine(subjects: ExaminedSubjects) -> Job | None:
    """Examine this job. Return everything on rank 0, None on other ranks. Collective.

    Under the launcher of another MPI each rank is alone: then rank 0, by the launcher's number,
    has it all.

    Raises:
        MissingRanksError: on other ranks than 0, where rank 0 does not answer.
    """
    say_shortage_and_wait(
        os.environ, lambda note: print(f"note: {note}", file=sys.stderr, flush=True)
    )
    # Before MPI starts: UCX reads its variables once, as it is loaded.
    log = UCXLog()
    heartbeat_of_rank = heartbeat.start_heartbeat(f"rank {read_rank() or 0}")
    facts_alone = read_foreign_mpi_facts()
    if facts_alone is None:
        try:
            import_mpi(heartbeat_of_rank, START_S)
        except UsageError as error:
            facts_alone = make_facts_without_mpi(str(error))
    log.unlink()
    heartbeat_of_rank.give_up_at(
        time.monotonic() + LONGEST_S, f"has waited {LONGEST_S:g} s for other ranks"
    )
    try:
        return _examine(subjects, log, facts_alone)
    finally:
        heartbeat_of_rank.give_up_at(None)


def _examine(subjects: ExaminedSubjects, log: UCXLog, facts_alone: MPIFacts | None) -> Job | None:
    """Examine, without MPI if ``facts_alone`` says why it does not run."""
    comm = None
    facts = facts_alone
    if facts is None:
        from mpi4py import MPI

        # Communicators of their own: no message of a phase meets one of another.
        comm = MPI.COMM_WORLD.Dup()
        facts = read_mpi_facts()
    collectives = BoundedCollectives(comm, PHASE_S)
    # A rank that another MPI's launcher has started is a world of its own, and its number in MPI is
    # 0. By the launcher's number all but one of them keep quiet.
    if collectives.size == 1 and read_rank():
        return None
    job_so_far = Job()  # what rank 0 can still report if a rank does not answer
    try:
        facts_of_rank = _read_own_facts(collectives, facts)
        facts_of_ranks = collectives.allgather((facts_of_rank, locate_readable_bytes()), "start")
        ranks = [rank_facts for rank_facts, _ in facts_of_ranks]
        job_so_far = Job(tuple(ranks))
        host_facts, ports = _probe_host(collectives, ranks, subjects)
        facts_of_rank = replace(
            facts_of_rank,
            cross_memory=_read_next(facts_of_rank, ranks, [memory for _, memory in facts_of_ranks]),
        )
        links = _probe_links(collectives, comm, [rank.host for rank in ranks])
        # Read last: UCX logs a connection when its first message makes it.
        ucx = log.read() if comm is not None else UCXFacts(False, unread="MPI was not started")
        own_results = RankResults(
            replace(facts_of_rank, ucx=ucx), host_facts, tuple(ports), tuple(links)
        )
        results_of_ranks = collectives.gather(own_results, "the end")
    except MissingRanksError as error:
        if collectives.rank:
            raise
        return replace(job_so_far, problem=str(error))
    return None if results_of_ranks is None else _join_results(results_of_ranks)


def _read_own_facts(collectives: BoundedCollectives, facts: MPIFacts) -> RankFacts:
    return RankFacts(
        collectives.rank,
        socket.gethostname(),
        read_boot_id(),
        facts,
        read_software_facts(),
        read_core_facts(),
        read_limit_facts(),
        UCXFacts(False, unread="the examination ended early"),
    )


def _probe_host(
    collectives: BoundedCollectives, ranks: Sequence[RankFacts], subjects: ExaminedSubjects
) -> tuple[HostFacts | None, list[PortCheck]]:
    """Probe this host, on the first of its ranks. The other ranks sleep meanwhile."""
    facts_of_rank = ranks[collectives.rank]
    ranks_of_host = [rank.rank for rank in ranks if rank.host == facts_of_rank.host]
    load = read_load_facts(LOAD_S)  # on every rank, so that all sleep
    folders = probe_folders(collectives, ranks, subjects.folders)
    listener, network, ports = probe_ports(collectives, ranks, subjects.port)
    # All probes above are collective. What follows is the first rank's alone, and may take a while.
    if facts_of_rank.rank != ranks_of_host[0]:
        collectives.barrier("probes of hosts")
        return None, ports
    host_facts = read_host_facts(
        facts_of_rank.host, ranks_of_host, load, folders, network, listener
    )
    collectives.barrier("probes of hosts")
    return host_facts, ports


def _read_next(
    facts_of_rank: RankFacts, ranks: Sequence[RankFacts], memories: Sequence[ReadableMemory]
) -> tuple[int, str | None] | None:
    """Read the memory of the next rank of this host."""
    ranks_of_host = [rank.rank for rank in ranks if rank.host == facts_of_rank.host]
    # In a ring, so that each rank is read once: a rank may be the only one that is protected.
    next_rank = ranks_of_host[(ranks_of_host.index(facts_of_rank.rank) + 1) % len(ranks_of_host)]
    return (
        None
        if next_rank == facts_of_rank.rank
        else (next_rank, find_read_problem(memories[next_rank]))
    )


def _probe_links(
    collectives: BoundedCollectives, comm: MPI.Intracomm | None, hosts: Sequence[str]
) -> list[Link]:
    """Probe the links one after the other. Ranks that have no part in one sleep meanwhile."""
    links: list[Link] = []
    if comm is None or comm.size == 1:
        return links
    probe = LinkProbe(comm.Dup())
    deadline_s = time.monotonic() + LINKS_S
    for rank_pair in choose_pairs(hosts):
        # Rank 0 decides for all: clocks of ranks differ, and a broken link ends the probes.
        goes_on = time.monotonic() < deadline_s and not any(link.problem for link in links)
        if not all(
            collectives.allgather(goes_on, f"link between ranks {rank_pair[0]} and {rank_pair[1]}")
        ):
            break
        if collectives.rank in rank_pair:
            link = probe.measure(rank_pair, (hosts[rank_pair[0]], hosts[rank_pair[1]]))
            links += [] if link is None else [link]
    return links


def _join_results(results_of_ranks: Sequence[RankResults]) -> Job:
    """Put the parts of all ranks together, on rank 0."""
    hosts = tuple(results.host for results in results_of_ranks if results.host is not None)
    return Job(
        tuple(results.rank for results in results_of_ranks),
        hosts,
        tuple(
            sorted(
                (link for results in results_of_ranks for link in results.links),
                key=lambda link: link.ranks,
            )
        ),
        tuple(port for results in results_of_ranks for port in results.ports),
        find_missing_destinations(len(results_of_ranks), bool(hosts[0].gpus.gpus)),
    )


def find_missing_destinations(rank_count: int, on_gpu: bool) -> dict[str, str | None]:
    """Return why each destination cannot run with these ranks, as its transport says."""
    options = Experiment(device="cuda" if on_gpu else "cpu")
    reasons: dict[str, str | None] = {}
    for transport in list_transports():
        missing_reason = transport.missing(options)
        reason = None if missing_reason is None else missing_reason.reason
        if reason is None and transport.entry.remote and rank_count < 2:
            reason = "needs 2 ranks"
        reasons[transport.name] = reason
    return reasons
