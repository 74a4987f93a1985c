"""Usage errors of a job of many ranks: one message, exit 2 on every rank, no traceback."""

from __future__ import annotations

import re
import sys
import time
from typing import NoReturn

from dejavubench.errors import ExitStatus
from dejavubench.machine.launcher import WAIT_FOR_RANK_0_S, abort_job, read_rank
from dejavubench.machine.mpi_library import find_ending_library


def fail_usage(message: str, command: str | None = None, label: str = "Error: ") -> NoReturn:
    """Print ``message`` on rank 0's stderr and exit with status 2.

    Every rank must call this. Under a launcher, all ranks finalise MPI first: a launcher would
    report a rank that exits without it, below the message.
    """
    hint = f" (see {command} --help)" if command else ""
    text = f"{label}{_shorten_words(message)}{hint}"
    rank = read_rank()
    if rank is None:
        _print(text)
        sys.exit(ExitStatus.USAGE)
    if "mpi4py.MPI" not in sys.modules and find_ending_library() is not None:
        exit_without_mpi(text, speaks=rank == 0)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # without MPI, the message still counts
        if rank == 0:
            _print(text)
        sys.exit(ExitStatus.USAGE)
    # Under the launcher of another MPI each rank is alone, and rank 0 of its own world.
    if MPI.COMM_WORLD.rank == 0 and (rank == 0 or MPI.COMM_WORLD.size > 1):
        _print(text)
    MPI.Finalize()
    sys.exit(ExitStatus.USAGE)


def exit_without_mpi(text: str, speaks: bool) -> NoReturn:
    """Exit with status 2 under a launcher, where MPI cannot start and so no rank can be asked.

    Args:
        speaks: this rank prints the text.
    """
    if speaks:
        _print(text)
    else:
        # A launcher ends all ranks with the first one: the text must have been passed on by then.
        time.sleep(WAIT_FOR_RANK_0_S)
    sys.exit(ExitStatus.USAGE)


def end_all_ranks(status: int) -> NoReturn:
    """Exit with ``status``, and end the other ranks if this is one of several.

    For commands that may have no MPI. A rank that just exits would wait in MPI's finalisation for
    ranks that wait for it elsewhere.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if (
        mpi is not None
        and mpi.Is_initialized()
        and not mpi.Is_finalized()
        and mpi.COMM_WORLD.size > 1
    ):
        abort_job(mpi.COMM_WORLD, status)
    sys.exit(status)


def share_status(status: int) -> int:
    """Return rank 0's status on every rank: some launchers report a rank that differs."""
    mpi = sys.modules.get("mpi4py.MPI")
    return status if mpi is None else int(mpi.COMM_WORLD.bcast(status))


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _shorten_words(message: str) -> str:
    """Return a message with words of hundreds of characters shortened."""
    return re.sub(r"\S{200,}", lambda match: f"{match[0][:80]}…{match[0][-40:]}", message)
