"""MPI's launchers: the ranks' numbers and counts that they set, and the end of a job."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

RANK_VARIABLES = (
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PALS_RANKID",
    "MV2_COMM_WORLD_RANK",
    "SLURM_PROCID",
)
"""Variables with the number of this rank."""

RANK_COUNT_VARIABLES = {
    "PMI_RANK": "PMI_SIZE",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK": "MV2_COMM_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
}
"""Variable with the number of ranks, for each variable with the rank's number."""

LOCAL_RANK_VARIABLES = (
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
)
"""Variables with the number of this rank among those of its host."""

LOCAL_RANK_COUNT_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables with the number of ranks on this host."""


@dataclass(frozen=True)
class Launcher:
    """A program that starts ranks.

    Attributes:
        name: a noun phrase for it.
        variables: it has started this process if all of these are set.
        vendors: MPI libraries, by mpi4py's names, whose ranks it can connect; empty: any.
        ends_foreign: whether another library ends its process as it starts. Off: it starts, and
            each rank is a world of its own.
    """

    name: str
    variables: tuple[str, ...]
    vendors: tuple[str, ...] = ()
    ends_foreign: bool = False


LAUNCHERS = (
    # MPICH finds Open MPI's PMIx server, cannot agree with it, and aborts.
    Launcher("Open MPI's mpirun", ("OMPI_COMM_WORLD_RANK",), ("Open MPI",), ends_foreign=True),
    Launcher("MVAPICH's launcher", ("MV2_COMM_WORLD_RANK",), ("MVAPICH", "MVAPICH2", "MPICH")),
    Launcher("PALS", ("PALS_RANKID",)),
    # Hydra may start its helpers by srun, whose variables are then there as well.
    Launcher(
        "Hydra (mpirun of MPICH or Intel MPI)",
        ("PMI_RANK", "MPI_LOCALNRANKS"),
        ("MPICH", "Intel MPI", "MVAPICH", "MVAPICH2"),
    ),
    Launcher("srun", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")),
    Launcher("a launcher with PMI", ("PMI_RANK",)),
    Launcher("a launcher with PMIx", ("PMIX_RANK",)),
)
"""The first one whose variables are set has started this process."""


WAIT_FOR_RANK_0_S = 1.0
"""Seconds that other ranks wait for rank 0 to speak: a rank that ends takes all along."""

PASS_ON_S = 0.3
"""Seconds for the launcher to pass on a rank's output, some of which it drops at an end."""


def read_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return this rank's number; None without a launcher."""
    return _read_number(environment, RANK_VARIABLES)


def read_rank_count(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of ranks of the job; None if the launcher does not say."""
    return _read_number(
        environment,
        [
            count_variable
            for rank_variable, count_variable in RANK_COUNT_VARIABLES.items()
            if _read_number(environment, [rank_variable]) is not None
        ],
    )


def find_launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher that started this process; None if it was started alone."""
    return next(
        (
            launcher
            for launcher in LAUNCHERS
            if all(name in environment for name in launcher.variables)
        ),
        None,
    )


def read_local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this rank's number on its host; 0 if the launcher does not say."""
    return _read_number(environment, LOCAL_RANK_VARIABLES) or 0


def read_local_rank_count(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this host; 1 if the launcher does not say."""
    return _read_number(environment, LOCAL_RANK_COUNT_VARIABLES) or 1


def abort_job(world: Intracomm, status: int) -> None:
    """End every rank's process, this one included, after this rank's last lines were passed on."""
    # Launchers kill at once and may drop output that is still under way.
    time.sleep(PASS_ON_S)
    world.Abort(status)


def _read_number(environment: Mapping[str, str], variables: Iterable[str]) -> int | None:
    """Return the number in the first of the variables that holds one."""
    texts = (environment.get(variable, "") for variable in variables)
    return next((int(text) for text in texts if re.fullmatch("[0-9]{1,9}", text)), None)
