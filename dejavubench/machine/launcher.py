"""Ground floor: what MPI's launcher says of this process in its environment. MPI itself is not asked.

Needs the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

LAUNCHED = (
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PALS_RANKID",
    "MV2_COMM_WORLD_RANK",
    "SLURM_PROCID",
)
"""Variables in which launchers number every rank."""

RANKS = {
    "PMI_RANK": "PMI_SIZE",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK": "MV2_COMM_WORLD_SIZE",
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
}
"""Variables that say how many ranks a launcher has started, by the one that numbers them."""

LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID")
"""Variables in which launchers number the ranks of one host."""

LOCAL_RANKS = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables that say how many ranks a launcher has started on this host."""

SAID_S = 1.0
"""Seconds that ranks leave to the one that speaks for them: a rank that ends takes along all others."""

PASS_ON_S = 0.3
"""Seconds for the launcher to pass on what a rank has printed: told that the rank ends the job, it may drop that."""


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return this rank's number; None without a launcher."""
    return _first(environment, LAUNCHED)


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many ranks the launcher has started; None if it does not say."""
    return _first(
        environment,
        [ranks for rank, ranks in RANKS.items() if _first(environment, [rank]) is not None],
    )


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this rank's number among those of its host; 0 if the launcher does not say."""
    return _first(environment, LOCAL_RANK) or 0


def local_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the launcher has started on this host; 1 if it does not say."""
    return _first(environment, LOCAL_RANKS) or 1


def _first(environment: Mapping[str, str], variables: Iterable[str]) -> int | None:
    """Return the number in the first of the variables that holds one."""
    texts = (environment.get(variable, "") for variable in variables)
    return next((int(text) for text in texts if re.fullmatch("[0-9]{1,9}", text)), None)
