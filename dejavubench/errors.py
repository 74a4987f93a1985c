"""Ground floor: what a person did wrong, told apart from what went wrong."""


class UsageError(Exception):
    """What was asked for cannot be run; the message is one line and names the key, flag or file."""
