"""Errors that end a job: their messages, the record of them, and the end of all ranks."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import NoReturn

from mpi4py import MPI

from dejavubench.bench.recording.recorder import Recorder
from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.waiting import DeadlineError
from dejavubench.errors import DataError, ExitStatus, OutputError
from dejavubench.machine.launcher import abort_job
from dejavubench.records import RankFailure, RecordError


def describe_error(error: BaseException) -> str:
    """Return in one line what is wrong, with the file if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def is_expected(error: BaseException) -> bool:
    """Return whether a traceback would add nothing.

    A disk, a network, another process or a user can cause such an error.
    """
    # A helper thread's error comes wrapped: what it stems from decides.
    if isinstance(error, StreamingError) and error.__cause__ is not None:
        return is_expected(error.__cause__)
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, StreamingError | DeadlineError | RecordError | DataError)


def describe_failure(error: BaseException, rank: int, phase: str) -> str:
    """Return the lines for stderr."""
    if isinstance(error, KeyboardInterrupt):
        return f"dejavubench: rank {rank} interrupted in phase {phase}\n"
    if isinstance(error, OutputError):  # standard output, which a user closed or filled
        output_message = (
            f"dejavubench: rank {rank} failed in phase {phase}: cannot write to {error}\n"
        )
        return "" if _has_reader_left(error) else output_message
    traceback_text = "" if is_expected(error) else "".join(traceback.format_exception(error))
    message = f"dejavubench: rank {rank} failed in phase {phase}: {describe_error(error)}\n"
    return traceback_text + message


def choose_status(error: BaseException) -> int:
    """Return the exit status of a job that the error ends."""
    if isinstance(error, KeyboardInterrupt):
        return ExitStatus.INTERRUPTED
    reader_left = isinstance(error, OutputError) and _has_reader_left(error)
    return ExitStatus.BROKEN_PIPE if reader_left else ExitStatus.FAILED


def _has_reader_left(error: OutputError) -> bool:
    return isinstance(error.__cause__, BrokenPipeError)


def abort(recorder: Recorder, error: BaseException) -> NoReturn:
    """Record which phase failed, unless the record is complete, and end every rank at once."""
    if recorder.closed:
        abort_all(error, "end")
    phase = recorder.phase_name
    try:
        recorder.write(RankFailure(phase=phase, error=describe_error(error)))
    except OSError as second_error:  # the disk may be what failed
        reason = describe_error(second_error)
        write_on_stderr(f"dejavubench: rank {recorder.rank} cannot record its failure: {reason}\n")
    abort_all(error, phase)


def abort_all(error: BaseException, phase: str) -> NoReturn:
    """Print which rank failed in which phase, and end every rank's process at once.

    Also if this is the only rank: threads of a failed session must not keep the process alive.
    """
    world = MPI.COMM_WORLD
    status = choose_status(error)
    write_on_stderr(describe_failure(error, world.rank, phase))
    if isinstance(error, OutputError):
        # So that the interpreter does not try to write again as it ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    abort_job(world, status)
    raise SystemExit(status)  # not reached; for the type checker


def write_on_stderr(text: str) -> None:
    """Write on stderr, if anybody still reads it."""
    # Python has no sys.stderr where it was closed.
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()
