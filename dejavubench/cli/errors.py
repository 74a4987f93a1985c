"""Usage errors of a job of many ranks: one message, exit 2 on every rank, no traceback."""

from __future__ import annotations

import re
import sys
import time
from typing import NoReturn

from dejavubench.machine.launcher import PASS_ON_S, launched_rank


def fail_usage(message: str, command: str | None = None, label: str = "Error: ") -> NoReturn:
    """Print ``message`` on rank 0's stderr and exit with status 2.

    Every rank must come here. Only now, and only under a launcher, is MPI asked who rank 0 is; all ranks then leave
    MPI in good order, so that the launcher has nothing to add.
    """
    hint = f" (see {command} --help)" if command else ""
    text = f"{label}{_readable(message)}{hint}"
    rank = launched_rank()
    if rank is None:
        _print(text)
        sys.exit(2)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # no MPI to ask, which is not the error to report
        if rank == 0:
            _print(text)
        sys.exit(2)
    if MPI.COMM_WORLD.rank == 0 and (
        rank == 0 or MPI.COMM_WORLD.size > 1
    ):  # each is alone under another's launcher
        _print(text)
    MPI.Finalize()
    sys.exit(2)


def end_all_ranks(status: int) -> NoReturn:
    """Exit with ``status``, and take the other ranks along if this is one of several.

    A rank that just leaves would wait in MPI's finalisation for ranks that wait for it elsewhere.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if (
        mpi is not None
        and mpi.Is_initialized()
        and not mpi.Is_finalized()
        and mpi.COMM_WORLD.size > 1
    ):
        time.sleep(PASS_ON_S)
        mpi.COMM_WORLD.Abort(status)
    sys.exit(status)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _readable(message: str) -> str:
    """A message without words that nobody reads to their end: values of thousands of characters."""
    return re.sub(r"\S{200,}", lambda found: f"{found[0][:80]}…{found[0][-40:]}", message)
