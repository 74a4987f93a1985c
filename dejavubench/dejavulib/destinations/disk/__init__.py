"""``disk``: a file per stream, how it is laid out, written, and read back by a later process."""

from .destination import DiskDestination
from .saved_stream import SavedStream

__all__ = ["DiskDestination", "SavedStream"]
