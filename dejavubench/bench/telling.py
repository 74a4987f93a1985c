"""Messages for errors that end a job: one line for what a user can cause, else a traceback as well."""

from __future__ import annotations

import traceback

from dejavubench.bench.watching.heart import INTERRUPTED
from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.dejavulib.waiting import DeadlineError
from dejavubench.errors import BROKEN_PIPE, DataError, OutputError
from dejavubench.records import RecordError


def in_words(error: BaseException) -> str:
    """One line: what is wrong, with the file if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def is_expected(error: BaseException) -> bool:
    """Return whether a disk, a network, another process or a user can cause it: then a traceback tells no more."""
    if isinstance(error, StreamingError) and error.__cause__ is not None:
        return is_expected(error.__cause__)
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, StreamingError | DeadlineError | RecordError | DataError)


def report(error: BaseException, rank: int, phase: str) -> str:
    """Lines for stderr."""
    if isinstance(error, KeyboardInterrupt):
        return f"dejavubench: rank {rank} interrupted in phase {phase}\n"
    if isinstance(error, OutputError):  # standard output, which a user closed or filled
        failed = f"dejavubench: rank {rank} failed in phase {phase}: cannot write to {error}\n"
        return "" if _reader_left(error) else failed
    before = "" if is_expected(error) else "".join(traceback.format_exception(error))
    return f"{before}dejavubench: rank {rank} failed in phase {phase}: {in_words(error)}\n"


def status_of(error: BaseException) -> int:
    """The exit status of a job that it ends."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return BROKEN_PIPE if isinstance(error, OutputError) and _reader_left(error) else 1


def _reader_left(error: OutputError) -> bool:
    return isinstance(error.__cause__, BrokenPipeError)
