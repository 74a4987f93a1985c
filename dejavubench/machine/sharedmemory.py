"""Ground floor: whether a host's shared memory is large enough for MPI to start in.

MPICH keeps a segment for each rank in ``/dev/shm``, and touches its pages as it starts. Where there is no room for
them, the kernel ends the rank by a bus error, and nothing says why. Containers have 64 MiB unless asked for more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dejavubench.machine.launcher import SAID_S, local_rank, local_ranks

FOLDER = Path("/dev/shm")

NEEDED = 1.1 * 2**20
"""Bytes of a rank: 1.06 MB with MPICH 5.0.2 on 1 to 4 ranks."""


def shortage(environment: Mapping[str, str], folder: Path = FOLDER) -> str | None:
    """Say that MPI will hardly start here; None if there is room, or another rank of this host says it.

    To be asked before MPI is imported.
    """
    free, needed = free_and_needed(environment, folder)
    if free >= needed or local_rank(environment) != 0:
        return None
    return (
        f"{folder} has {free / 2**20:.1f} MiB left, and MPI may need {needed / 2**20:.1f} MiB there for the "
        f"ranks of this host: they may die of a bus error. Make it larger (docker run --shm-size=1g), or remove the "
        f"files that ended jobs have left in it"
    )


def free_and_needed(environment: Mapping[str, str], folder: Path = FOLDER) -> tuple[float, float]:
    """Return the bytes that are free, and those that MPI may need for the ranks of this host."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return 0.0, 0.0  # an MPI that needs it says so by itself
    return room.f_bavail * room.f_frsize, local_ranks(environment) * NEEDED


def say_shortage(
    environment: Mapping[str, str], say: Callable[[str], None], folder: Path = FOLDER
) -> None:
    """Have one rank of a host say that MPI will hardly start here; all its ranks wait until that is read."""
    if (note := shortage(environment, folder)) is not None:
        say(note)
    free, needed = free_and_needed(environment, folder)
    if free < needed:
        time.sleep(SAID_S)
