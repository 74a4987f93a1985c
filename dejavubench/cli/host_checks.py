"""Checks of a process's limits and environment before a run starts."""

from __future__ import annotations

import os
import re
import resource
import warnings

from dejavubench.cli.errors import exit_without_mpi
from dejavubench.errors import UsageError
from dejavubench.machine.launcher import read_local_rank, read_rank
from dejavubench.values import format_one_line

LEAST_FILES = 64
"""Open files that a rank needs; about 40 were measured: sockets, libraries, records, streams."""

REQUESTED_FILE_COUNT = 4096
"""Open files that a rank asks for, if the hard limit allows as many."""

NUMBA_THREADS = "NUMBA_NUM_THREADS"
"""Environment variable that numba reads as it is imported."""


def find_problem() -> str | None:
    """Return why libraries of this rank, such as numba, would fail in its environment, or None."""
    try:
        os.getcwd()
    except OSError as error:
        return (
            f"the current folder cannot be used ({error.strerror}): it may have been removed. "
            "Change to another one"
        )
    text = os.environ.get(NUMBA_THREADS)
    if text is not None and not re.fullmatch("0*[1-9][0-9]{0,5}", text):
        return (
            f"{NUMBA_THREADS}={text[:40]!r} must be a positive whole number: numba reads it. Unset "
            "it, or set it to 1"
        )
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        try:
            import numba
        except Exception as error:  # noqa: BLE001 - whatever its variables make of it
            return f"numba cannot be imported: {format_one_line(str(error))}"
    unread_options = [
        str(warning.message)
        for warning in caught_warnings
        if "could not be parsed" in str(warning.message)
    ]
    if unread_options:
        return f"{unread_options[0].splitlines()[0]} Unset it."
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, so the kernels cannot be compiled. Unset it"
    return None


def raise_file_limit() -> None:
    """Let this process open as many files as it may. Call it before MPI starts.

    Under a launcher the process ends here if they are too few: MPI itself could not start. The
    first rank of each host says why.

    Raises:
        UsageError: they are too few, and there is no launcher.
    """
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    most_files = (
        REQUESTED_FILE_COUNT
        if hard_limit == resource.RLIM_INFINITY
        else min(hard_limit, REQUESTED_FILE_COUNT)
    )
    if soft_limit != resource.RLIM_INFINITY and soft_limit < most_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, hard_limit))
        soft_limit = most_files
    if soft_limit == resource.RLIM_INFINITY or soft_limit >= LEAST_FILES:
        return
    message = (
        f"a rank may open {soft_limit} files but needs {LEAST_FILES}. Raise the limit with "
        f"ulimit -n {LEAST_FILES}"
    )
    if read_rank() is None:
        raise UsageError(message)
    exit_without_mpi(f"Error: {message}", speaks=read_local_rank() == 0)
