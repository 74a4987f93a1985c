"""Memory of a host: what is free, what is limited, and what processes may share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.cgroups import read_memory_room
from dejavubench.machine.memory import measure_available_nbytes
from dejavubench.machine.shared_memory import SHARED_MEMORY_FOLDER, measure_free_and_needed

ROOT = Path("/")


@dataclass(frozen=True)
class MemoryFacts:
    """Memory of a host, in bytes.

    Attributes:
        available: bytes that this process may still allocate.
        total: memory of the host.
        group_room: bytes left in the tightest control group; None without a limit.
        huge_pages: the kernel's policy, such as ``madvise``; None if it has none.
        shm_size, shm_free: size and free bytes of ``/dev/shm``.
        shm_needed: bytes that MPI may need there for the ranks of this host.
        ptrace_scope: Yama's setting; None if the kernel has no Yama.
    """

    available: int
    total: int
    group_room: int | None
    huge_pages: str | None
    shm_size: int
    shm_free: int
    shm_needed: int
    ptrace_scope: int | None


def read_memory_facts(
    environment: Mapping[str, str] = os.environ,
    root: Path = ROOT,
    shared_memory_folder: Path = SHARED_MEMORY_FOLDER,
) -> MemoryFacts:
    """Read the memory of this host."""
    free_nbytes, needed_nbytes = measure_free_and_needed(environment, shared_memory_folder)
    try:
        status = os.statvfs(shared_memory_folder)
        shm_nbytes = status.f_blocks * status.f_frsize
    except OSError:
        shm_nbytes = 0
    # Absent, not 0, in kernels without Yama: then any process of this user may read another.
    scope_text = _read_text(root / "proc/sys/kernel/yama/ptrace_scope")
    total_nbytes = _read_total(root)
    group_rooms = read_memory_room(root)
    return MemoryFacts(
        available=measure_available_nbytes(root),
        total=total_nbytes,
        # Version 1 of control groups writes a number of exabytes where there is no limit.
        group_room=min((room for room in group_rooms if room < total_nbytes), default=None),
        huge_pages=_find_chosen(_read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        shm_size=shm_nbytes,
        shm_free=int(free_nbytes),
        shm_needed=int(needed_nbytes),
        ptrace_scope=int(scope_text) if scope_text is not None and scope_text.isdecimal() else None,
    )


def _read_total(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemTotal")


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _find_chosen(policies: str | None) -> str | None:
    """Return the policy in brackets, as in ``always [madvise] never``."""
    text_before, _, text_after = (policies or "").partition("[")
    return text_after.partition("]")[0] or text_before.strip() or None
