"""Memory: free, huge pages, shared memory, and reading another rank's memory."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck, JobCheck
from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.findings import Finding, bad, ok, warn
from dejavubench.units import format_binary_nbytes

LEAST_NBYTES_PER_RANK = 512 << 20
"""Bytes that a rank takes before it has a model: Python, torch and MPI."""

SMALL_NBYTES_PER_RANK = 2 << 30
"""Bytes per rank that a small model takes, with its caches."""

NCCL_SHM_NBYTES = 512 << 20
"""Bytes of ``/dev/shm`` below which NCCL may fail: it takes tens of MiB per pair of GPUs there."""


def judge_memory(host: HostFacts) -> Iterator[Finding]:
    """Judge whether the host's free memory suffices for its ranks."""
    memory = host.memory
    rank_count = len(host.ranks)
    limit = ""
    if memory.group_room is not None:
        limit = f"; the control group leaves {format_binary_nbytes(memory.group_room)}"
    reading = (
        f"{format_binary_nbytes(memory.available)} available of "
        f"{format_binary_nbytes(memory.total)}{limit}"
    )
    advice = "Stop other programs, raise the container's memory limit, or start fewer ranks."
    if memory.available < rank_count * LEAST_NBYTES_PER_RANK:
        yield bad(f"{reading}: too little to start {rank_count} ranks", advice)
    elif memory.available < rank_count * SMALL_NBYTES_PER_RANK:
        yield warn(f"{reading}: room for small models only", advice)
    else:
        yield ok(reading)


def judge_huge_pages(host: HostFacts) -> Iterator[Finding]:
    """Judge whether the kernel grants huge pages to models and caches."""
    policy = host.memory.huge_pages
    if policy == "never":
        yield warn(
            "never: models and caches are read more slowly",
            "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled.",
        )
    else:
        yield ok("policy not shown by the kernel" if policy is None else policy)


def judge_shared_memory(host: HostFacts) -> Iterator[Finding]:
    """Judge whether ``/dev/shm`` has room for the messages of MPI and NCCL."""
    memory = host.memory
    reading = (
        f"{format_binary_nbytes(memory.shm_free)} free of {format_binary_nbytes(memory.shm_size)}"
    )
    advice = "Make it larger (docker run --shm-size=1g), or remove files of ended jobs in it."
    # The kernel grants pages of /dev/shm when they are touched. So a job starts in too small a
    # folder, and is killed in its first large message.
    if memory.shm_free < memory.shm_needed:
        needed_text = format_binary_nbytes(memory.shm_needed)
        yield bad(f"{reading}: MPI may need {needed_text}, or ranks die of a bus error", advice)
    elif host.gpus.gpus and memory.shm_free < NCCL_SHM_NBYTES:
        yield warn(f"{reading}: NCCL may need more between GPUs without peer access", advice)
    else:
        yield ok(reading)


def judge_cross_memory(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge whether a rank may read the memory of another rank of its host."""
    # Only ranks whose host was probed are judged: the others' kernels were not asked.
    scopes = {rank: host.memory.ptrace_scope for host in job.hosts for rank in host.ranks}
    for rank_facts in job.ranks:
        if rank_facts.rank in scopes:
            yield (rank_facts.rank,), _judge_rank_memory(rank_facts, scopes[rank_facts.rank])


def _judge_rank_memory(rank: RankFacts, scope: int | None) -> Finding:
    yama = "no Yama in this kernel" if scope is None else f"Yama's ptrace_scope is {scope}"
    if rank.cross_memory is None:
        return ok(f"{yama}; not tried, for want of a second rank on this host")
    _, problem = rank.cross_memory
    if problem is None:
        return ok(f"allowed: tried between ranks of this host; {yama}")
    return warn(
        f"not allowed: {problem}; {yama}. Messages within this host are copied twice",
        "sysctl kernel.yama.ptrace_scope=0; in containers also --cap-add SYS_PTRACE and one "
        "PID namespace.",
    )


CHECKS = (
    HostCheck("memory", judge_memory),
    HostCheck("huge pages", judge_huge_pages),
    HostCheck("/dev/shm", judge_shared_memory),
    JobCheck("CMA", judge_cross_memory),
)
