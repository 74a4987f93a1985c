"""Limits of a rank's process (``ulimit``)."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import JobCheck, RankCheck
from dejavubench.doctor.facts.job import Job, RankFacts
from dejavubench.doctor.facts.limits import UNLIMITED
from dejavubench.doctor.findings import Finding, bad, ok, warn
from dejavubench.units import format_binary_nbytes

LEAST_FILES = 64
"""Open files that a rank needs."""

SUFFICIENT_FILE_COUNT = 1024
"""Open files that suffice for many ranks and destinations: connections count, too."""

LEAST_PROCESSES = 512
"""Processes and threads of this user that a host of many ranks may need."""


def judge_open_files(rank: RankFacts) -> Iterator[Finding]:
    """Judge how many files and connections a rank may open."""
    # The hard limit counts: a process may raise its soft one up to that.
    soft_limit = rank.limits.files
    hard_limit = rank.limits.files_most
    reading = (
        _format_limit(soft_limit)
        if soft_limit == hard_limit
        else f"{_format_limit(soft_limit)}, may be raised to {_format_limit(hard_limit)}"
    )
    advice = f"Raise the hard limit: ulimit -Hn {SUFFICIENT_FILE_COUNT}, or in limits.conf."
    if hard_limit != UNLIMITED and hard_limit < LEAST_FILES:
        yield bad(f"{reading}: a rank needs {LEAST_FILES}", advice)
    elif hard_limit != UNLIMITED and hard_limit < SUFFICIENT_FILE_COUNT:
        yield warn(f"{reading}: few for many ranks or destinations", advice)
    else:
        yield ok(reading)


def judge_locked_memory(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge how much memory a rank may lock, where an RDMA adapter needs it."""
    # Only adapters that read memory by themselves need it locked. Elsewhere any limit is good.
    rdma = {rank for host in job.hosts if host.network.infiniband for rank in host.ranks}
    for rank_facts in job.ranks:
        limit = rank_facts.limits.locked
        reading = "unlimited" if limit == UNLIMITED else format_binary_nbytes(limit)
        if limit != UNLIMITED and rank_facts.rank in rdma:
            advice = "Set ulimit -l unlimited (docker run --ulimit memlock=-1): RDMA locks memory."
            yield (rank_facts.rank,), warn(reading, advice)
        else:
            yield (rank_facts.rank,), ok(reading)


def judge_processes(rank: RankFacts) -> Iterator[Finding]:
    """Judge how many processes and threads the user may have."""
    limit = rank.limits.processes
    if limit != UNLIMITED and limit < LEAST_PROCESSES:
        yield warn(f"{limit}: threads count as well", f"Set ulimit -u {LEAST_PROCESSES} or more.")
    else:
        yield ok(_format_limit(limit))


def _format_limit(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else str(limit)


CHECKS = (
    RankCheck("open files", judge_open_files),
    JobCheck("locked memory", judge_locked_memory),
    RankCheck("processes", judge_processes),
)
