"""Ground floor: what a person did wrong, told apart from what went wrong."""


class UsageError(Exception):
    """What was asked for cannot be run; the message is one line and names the key, flag or file."""


class DataError(Exception):
    """Input that turned out to be unusable while a run used it; the message says all, without a traceback."""


class OutputError(Exception):
    """Standard output takes no more; the message is one line. The cause is the system's error.

    It is no OSError: who handles failures of files must not take this one for theirs.
    """


BROKEN_PIPE = 141
"""The status of a tool that SIGPIPE ends, as shells count it: 128 + 13."""
