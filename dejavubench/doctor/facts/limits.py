"""Cores, CPU time and other limits of one rank."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from dejavubench.machine.cgroups import Quota, Throttling, read_cpu_quota, read_cpu_throttling

UNLIMITED = -1
"""Stands for the kernel's RLIM_INFINITY, whose value differs between systems."""


@dataclass(frozen=True)
class CoreFacts:
    """Cores that a rank may run on.

    Attributes:
        granted: numbers of the cores.
        machine: number of cores of the host.
        quota: CPU time that the control group allows; None without a limit.
        throttling: how often the group had to wait so far; None if the kernel counts nothing.
    """

    granted: tuple[int, ...]
    machine: int
    quota: Quota | None
    throttling: Throttling | None


@dataclass(frozen=True)
class LimitFacts:
    """Limits of a process (``ulimit``), each −1 if unlimited.

    Attributes:
        files: open files.
        files_most: open files that it may raise this limit to.
        locked: bytes of memory that it may lock.
        processes: processes and threads of this user.
    """

    files: int
    files_most: int
    locked: int
    processes: int


def read_core_facts() -> CoreFacts:
    """Read the cores and CPU time granted to this process."""
    return CoreFacts(
        granted=tuple(sorted(os.sched_getaffinity(0))),
        machine=os.cpu_count() or 1,
        quota=read_cpu_quota(),
        throttling=read_cpu_throttling(),
    )


def read_limit_facts() -> LimitFacts:
    """Read the limits of this process."""

    def read_limit(resource_number: int, bound_index: int = 0) -> int:
        soft_or_hard = resource.getrlimit(resource_number)[bound_index]
        return UNLIMITED if soft_or_hard == resource.RLIM_INFINITY else soft_or_hard

    return LimitFacts(
        files=read_limit(resource.RLIMIT_NOFILE),
        files_most=read_limit(resource.RLIMIT_NOFILE, 1),
        locked=read_limit(resource.RLIMIT_MEMLOCK),
        processes=read_limit(resource.RLIMIT_NPROC),
    )
