"""This machine's memory: how much is free, and how torch and oneDNN should use it."""

from __future__ import annotations

import os
from pathlib import Path

from dejavubench.machine.cgroups import read_memory_room

HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""Environment variable of torch."""


def prefer_huge_pages() -> None:
    """Make torch ask the kernel for huge pages. Call this before torch allocates anything.

    Models and caches are then read faster: a decode step took 0.85 of the time. The variable set
    to 0 turns this off.
    """
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


PRIMITIVE_CACHE_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables of oneDNN and torch: how many compiled products each keeps. Both default to 1024."""

KEPT_PRIMITIVE_COUNT = 64
"""A point of a sweep needs about ten: its linears, their activations, two numbers of rows."""


def bound_primitive_caches() -> None:
    """Make oneDNN and torch keep few compiled products. Call this before the first product.

    A product takes 0.3 MB in each cache, and each prompt length needs products of its own. With
    1024 of them a sweep of prompt lengths grows by 2 MB per point, up to 600 MB. A variable that
    is already set wins.
    """
    for name in PRIMITIVE_CACHE_VARIABLES:
        os.environ.setdefault(name, str(KEPT_PRIMITIVE_COUNT))


def measure_available_nbytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still allocate.

    That is the least of MemAvailable and the room in each of its control groups.

    Args:
        root: the folder of ``proc`` and ``sys``.

    Raises:
        OSError: there is no ``/proc/meminfo``.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free_nbytes = int(line.split()[1]) * 1024
            break
    else:
        raise OSError("/proc/meminfo has no MemAvailable")
    return min([free_nbytes, *read_memory_room(root)])
