"""The import of MPI, which starts it and waits for the other ranks, bounded in time."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from dejavubench.errors import UsageError
from dejavubench.watchdog import heartbeat

if TYPE_CHECKING:
    from dejavubench.watchdog.heartbeat import Heartbeat


def import_mpi(rank_heartbeat: Heartbeat, timeout_s: float) -> None:
    """Import MPI, which starts it. End this process if that takes too long.

    Args:
        rank_heartbeat: this process's heartbeat. It goes on with the deadline after the import.
        timeout_s: seconds; 0: no deadline.

    Raises:
        UsageError: there is no MPI library that can be loaded.
    """
    try:
        with heartbeat.end_at_interrupt(timeout_s), warnings.catch_warnings():
            # Callers find the same mistake, and say what to do.
            warnings.filterwarnings("ignore", "suspicious MPI execution", RuntimeWarning)
            from mpi4py import MPI  # noqa: F401 - the import is what is wanted
    except (ImportError, RuntimeError) as error:
        problem = str(error).splitlines()[0] if str(error) else "mpi4py cannot be imported"
        raise UsageError(
            f"no MPI library: {problem}. Use pip install 'dejavubench[mpich]', or load a system MPI"
        ) from None
    if timeout_s:
        rank_heartbeat.give_up_at(
            time.monotonic() + timeout_s, f"has waited {timeout_s:g} s for the others to start"
        )
