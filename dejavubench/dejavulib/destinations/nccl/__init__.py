"""``nccl``: chunks from a GPU's memory to a sink's."""

from dejavubench.dejavulib.destinations.nccl.sink import NCCLSinkEndpoint
from dejavubench.dejavulib.destinations.nccl.source import NCCLDestination

__all__ = ["NCCLDestination", "NCCLSinkEndpoint"]
