"""``nixl``: chunks written by NVIDIA NIXL into a sink's memory, as serving engines move caches.

Writes are one-sided, so the sink names its memory beforehand: it has a bounded number of slots per
stream, and names a free one to the source for each chunk to come. The source writes the chunk there
from a slot of its own; a notification behind the last byte says so. The chunk is complete when the
sink has scattered it and has acknowledged *that*. Only then the sink names the slot again.

At the unbuffered levels no slot is needed. Both sides derive the extents from the schedule, so the
sink sends once the schedule and the address of its cache, and the source writes each extent from
its own cache into its place in the sink's. At level 0 an extent is a write of its own, done
before the next begins. At ``0-batched`` up to ``MOST_EXTENTS_PER_WRITE`` extents are one write; all
are issued, then waited for.

Memory goes from host to host, or from device to device, as the caches are: everything registered is
of one kind. A CUDA event tells when a packed chunk may be read on the source. On a device, the sink
scatters chunks on a CUDA stream of the endpoint's own.
"""

from .sink import NIXLSinkEndpoint
from .source import NIXLDestination

__all__ = ["NIXLDestination", "NIXLSinkEndpoint"]
