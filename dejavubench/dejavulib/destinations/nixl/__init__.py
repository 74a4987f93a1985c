"""``nixl``: chunks written by NVIDIA NIXL into a sink's memory."""

from dejavubench.dejavulib.destinations.nixl.sink import NIXLSinkEndpoint
from dejavubench.dejavulib.destinations.nixl.source import NIXLDestination

__all__ = ["NIXLDestination", "NIXLSinkEndpoint"]
