"""Ground floor: what a person did wrong, told apart from what went wrong."""


class UsageError(Exception):
    """What was asked for cannot be run; the message is one line and names the key, flag or file."""


class DataError(Exception):
    """What a run was given turned out to be unusable while it ran; the message says all, without a traceback."""
