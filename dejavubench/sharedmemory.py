"""Ground floor: whether a host's shared memory is large enough for MPI to start in.

MPICH keeps a segment for each rank in ``/dev/shm``, and touches its pages as it starts. Where there is no room for
them, the kernel ends the rank by a bus error, and nothing says why. Containers have 64 MiB unless asked for more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path("/dev/shm")

NEEDED = 1.1 * 2**20
"""Bytes of a rank: 1.06 MB with MPICH 5.0.2 on 1 to 4 ranks."""

LOCAL_RANKS = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Launchers' variables: how many ranks they have started on this host."""

LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
"""The number of this one among them."""


def shortage(environment: Mapping[str, str], folder: Path = FOLDER) -> str | None:
    """Say that MPI will hardly start here; None if there is room, or another rank of this host says it.

    To be asked before MPI is imported.
    """
    if _number(environment, LOCAL_RANK, 0) != 0:
        return None
    try:
        room = os.statvfs(folder)
    except OSError:
        return None  # an MPI that needs it says so by itself
    free, ranks = room.f_bavail * room.f_frsize, _number(environment, LOCAL_RANKS, 1)
    if free >= ranks * NEEDED:
        return None
    return (
        f"{folder} has {free / 2**20:.1f} MiB left, and MPI may need {ranks * NEEDED / 2**20:.1f} MiB there for the "
        f"ranks of this host: they may die of a bus error. Make it larger (docker run --shm-size=1g), or remove the "
        f"files that ended jobs have left in it"
    )


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdecimal()), default)
