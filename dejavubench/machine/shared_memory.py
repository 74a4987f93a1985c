"""Is /dev/shm large enough for MPI to start?

MPICH keeps a segment for each rank in ``/dev/shm`` and touches its pages when it starts. Without
room for them the kernel kills the rank with a bus error, without a message. Containers have 64 MiB
by default.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dejavubench.machine.launcher import WAIT_FOR_RANK_0_S, read_local_rank, read_local_rank_count

SHARED_MEMORY_FOLDER = Path("/dev/shm")
"""Folder of POSIX shared memory."""

NEEDED_NBYTES_PER_RANK = 1.1 * 2**20
"""Bytes per rank: MPICH 5.0.2 took 1.06 MB with 1 to 4 ranks."""


def find_shortage(
    environment: Mapping[str, str], folder: Path = SHARED_MEMORY_FOLDER
) -> str | None:
    """Return a warning that MPI will hardly start here; None if there is room.

    Call this before MPI is imported. Only the first rank of a host returns the warning.
    """
    free_nbytes, needed_nbytes = measure_free_and_needed(environment, folder)
    if free_nbytes >= needed_nbytes or read_local_rank(environment) != 0:
        return None
    return (
        f"{folder} has {free_nbytes / 2**20:.1f} MiB left, and MPI may need "
        f"{needed_nbytes / 2**20:.1f} MiB there for the ranks of this host: they may die of a bus "
        f"error. Make it larger (docker run --shm-size=1g), or remove the files that ended "
        f"jobs have left in it"
    )


def measure_free_and_needed(
    environment: Mapping[str, str], folder: Path = SHARED_MEMORY_FOLDER
) -> tuple[float, float]:
    """Return the free bytes, and the bytes that MPI may need for the ranks of this host."""
    try:
        file_system = os.statvfs(folder)
    except OSError:
        return 0.0, 0.0  # an MPI that needs the folder will say so
    return file_system.f_bavail * file_system.f_frsize, read_local_rank_count(
        environment
    ) * NEEDED_NBYTES_PER_RANK


def say_shortage_and_wait(
    environment: Mapping[str, str], say: Callable[[str], None], folder: Path = SHARED_MEMORY_FOLDER
) -> None:
    """Print the warning by one rank of a host. All ranks wait until it has been passed on."""
    if (note := find_shortage(environment, folder)) is not None:
        say(note)
    free_nbytes, needed_nbytes = measure_free_and_needed(environment, folder)
    if free_nbytes < needed_nbytes:
        time.sleep(WAIT_FOR_RANK_0_S)
