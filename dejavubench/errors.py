"""The errors that the command line turns into one line and an exit status."""

from enum import IntEnum


class UsageError(Exception):
    """The command cannot run as asked. The message is one line: the key, flag or file, and why."""


class DataError(Exception):
    """Input turned out to be unusable during a run. The message needs no traceback beside it."""


class OutputError(Exception):
    """Standard output cannot be written. The message is one line; the cause is the OSError.

    This is not an OSError itself: code that handles failing files must not catch it.
    """


class ExitStatus(IntEnum):
    """All exit statuses; docs/reference/exit-statuses.md says what each command means by them.

    Signals are counted as shells do: 128 + SIGINT, 128 + SIGPIPE.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    UNRESOLVED = 3
    WORSE = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141
