"""The errors that the command line turns into one line and an exit status."""


class UsageError(Exception):
    """The command cannot run as asked. The message is one line: the key, flag or file, and why."""


class DataError(Exception):
    """Input turned out to be unusable during a run. The message needs no traceback beside it."""


class OutputError(Exception):
    """Standard output cannot be written. The message is one line; the cause is the OSError.

    This is not an OSError itself: code that handles failing files must not catch it.
    """


BROKEN_PIPE = 141
"""Exit status of a process that SIGPIPE ends, as shells count: 128 + 13."""
