"""What is said of an error that ends a job: what a user can cause gets a sentence, all else a traceback as well."""

from __future__ import annotations

import traceback

from dejavubench.dejavulib.destinations.base import StreamingError
from dejavubench.records import RecordError
from dejavubench.waiting import DeadlineError


def in_words(error: BaseException) -> str:
    """One line: what is wrong, with the file if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def is_expected(error: BaseException) -> bool:
    """Whether disk, network, another process or a user can cause it, so that no traceback tells more."""
    if isinstance(error, StreamingError) and error.__cause__ is not None:
        return is_expected(error.__cause__)
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, StreamingError | DeadlineError | RecordError)


def report(error: BaseException, rank: int, phase: str) -> str:
    """Lines for stderr."""
    if isinstance(error, KeyboardInterrupt):
        return f"dejavubench: rank {rank} interrupted in phase {phase}\n"
    before = "" if is_expected(error) else "".join(traceback.format_exception(error))
    return f"{before}dejavubench: rank {rank} failed in phase {phase}: {in_words(error)}\n"
