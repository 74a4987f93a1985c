"""``disk``: a file per stream, how it is laid out, written and read back."""

from dejavubench.dejavulib.destinations.disk.destination import DiskDestination

__all__ = ["DiskDestination"]
