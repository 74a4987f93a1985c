"""MPI: library, launcher, thread level, hosts, and equal software on all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.doctor.checks.check import JobCheck, RankCheck
from dejavubench.doctor.facts.job import Job, RankFacts
from dejavubench.doctor.findings import Finding, bad, format_ranks, ok, warn
from dejavubench.units import format_count_of

THREAD_LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
"""Names by MPI's numbers, as mpi4py has them."""


def judge_library(rank: RankFacts) -> Iterator[Finding]:
    """Name the MPI library, or why it cannot be loaded."""
    mpi = rank.mpi
    if mpi.problem is not None:
        yield bad(mpi.problem, "Until then only destinations that need one rank can run.")
    else:
        yield ok(mpi.vendor + (f", device {mpi.device}" if mpi.device else ""))


def judge_launcher(rank: RankFacts) -> Iterator[Finding]:
    """Judge whether the launcher belongs to the MPI library that mpi4py loads."""
    mpi = rank.mpi
    program = mpi.launcher
    if mpi.problem is not None:
        return
    if program is None:
        yield ok("none: started alone, as one rank")
        return
    name = mpi.vendor.rpartition(" ")[0]
    advice = f"Start the ranks with the mpirun of {mpi.vendor}, which mpi4py uses here."
    # A launcher of several MPIs, such as srun, names none: then the count below decides.
    if program.vendors and name not in program.vendors:
        count = (
            "" if mpi.started is None else f" It started {format_count_of(mpi.started, 'rank')}."
        )
        yield bad(
            f"{program.name} does not belong to {mpi.vendor}: each rank ends at once, or is a "
            f"world of its own.{count} MPI was not started",
            advice,
        )
    elif mpi.started is not None and mpi.started > mpi.size:
        yield bad(
            f"{program.name} started {format_count_of(mpi.started, 'rank')}, but {mpi.vendor} "
            f"knows {mpi.size}: each rank is a world of its own",
            advice,
        )
    else:
        yield ok(f"{program.name}: {format_count_of(mpi.size, 'rank')}")


def judge_thread_level(rank: RankFacts) -> Iterator[Finding]:
    """Judge whether the helper thread may call MPI beside the model."""
    if rank.mpi.thread_level is None:
        return
    name = f"MPI_THREAD_{THREAD_LEVELS[rank.mpi.thread_level]}"
    if name.endswith(THREAD_LEVELS[-1]):
        yield ok(name)
    else:
        yield bad(
            f"{name}: the helper thread may not call MPI beside the model",
            "Unset MPI4PY_RC_THREAD_LEVEL, or use an MPI library with MPI_THREAD_MULTIPLE.",
        )


def judge_hosts(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """List the hosts and their ranks; warn if two hosts are one machine."""
    if not job.ranks:
        return
    ranks_of_host: dict[str, list[int]] = defaultdict(list)
    for rank in job.ranks:
        ranks_of_host[rank.host].append(rank.rank)
    rank_count = len(job.ranks)
    has_several_hosts = len(ranks_of_host) > 1
    # One more than there are, so that ranks are listed by number and never as "all".
    hosts_text = ", ".join(
        f"{host} ({format_ranks(ranks, rank_count + 1)})" if has_several_hosts else host
        for host, ranks in ranks_of_host.items()
    )
    noun = f"{len(ranks_of_host)} hosts" if has_several_hosts else "1 host"
    reading = f"{format_count_of(rank_count, 'rank')} on {noun}: {hosts_text}"
    hosts_of_machine: dict[str, set[str]] = defaultdict(set)
    for rank in job.ranks:
        hosts_of_machine[rank.machine].add(rank.host)
    hosts_of_shared_machines = [
        sorted(machine_hosts)
        for machine_hosts in hosts_of_machine.values()
        if len(machine_hosts) > 1
    ]
    if hosts_of_shared_machines:
        host_names = " and ".join(hosts_of_shared_machines[0])
        yield (
            job.everyone,
            warn(
                f"{reading}; {host_names} are one machine (containers, or emulated hosts)",
                "They share cores, memory and disks. Do not read results as those of two machines.",
            ),
        )
    else:
        yield job.everyone, ok(reading)


def judge_software(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge whether all ranks have the same versions of Python and its packages."""
    if not job.ranks:
        return
    # Objects travel between ranks by pickle, and compiled kernels differ by version.
    expected_versions = job.ranks[0].software.versions
    for rank in job.ranks:
        versions = rank.software.versions
        missing_packages = [name for name, version in versions.items() if version == "missing"]
        differing_packages = [
            f"{name} {version} (rank 0: {expected_versions.get(name)})"
            for name, version in versions.items()
            if version != expected_versions.get(name)
        ]
        if missing_packages:
            advice = "Install dejavubench with its dependencies in this environment."
            yield (rank.rank,), bad(f"missing: {', '.join(missing_packages)}", advice)
        elif differing_packages:
            advice = "Use the same environment on all hosts."
            yield (rank.rank,), bad(", ".join(differing_packages), advice)
        else:
            yield (
                (rank.rank,),
                ok(", ".join(f"{name} {version}" for name, version in versions.items())),
            )


CHECKS = (
    RankCheck("MPI library", judge_library),
    RankCheck("launcher", judge_launcher),
    RankCheck("thread level", judge_thread_level),
    JobCheck("ranks and hosts", judge_hosts),
    JobCheck("software", judge_software),
)
