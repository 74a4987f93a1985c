"""``nccl``: chunks from a GPU's memory straight to a sink's.

NCCL matches messages of a pair by the order in which they are issued, and an issued kernel occupies
part of its GPU until the other side's kernel is there. So the source *announces* each chunk by a
small MPI message. The sink *grants* chunks in the order of the announcements and issues each
receive once it has room. The source issues the send only after the grant. So its kernels never
occupy the GPU while they wait, and pairs cannot deadlock. A chunk is complete when the sink has
scattered it and has acknowledged that by MPI.

A grant after each announcement costs a round trip by MPI per chunk. Where a source has one stream
to a sink, the schedule tells the order of its chunks. Such a sink may grant and issue some receives
*ahead* of their announcements; these then only say that a chunk must come. The receives occupy part
of the sink's GPU meanwhile, so nothing should compute there.

NCCL itself comes in from outside, as a :class:`~.link.NCCLLink` to each rank of the other side.
"""

from .link import NCCLLink
from .sink import NCCLSinkEndpoint
from .source import NCCLDestination

__all__ = ["NCCLDestination", "NCCLLink", "NCCLSinkEndpoint"]
