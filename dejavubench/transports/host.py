"""``host``: the source's own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import HOST
from dejavubench.transports.base import Crossing, PlotStyle, ProbeNames, Transport
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import RankContext, SourceContext

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination


class HostConnector(Connector):
    """One source's buffers in its own memory."""

    def open_source(self, context: SourceContext) -> Destination:
        """Return a destination in host memory, page-locked if the model is on a GPU."""
        from dejavubench.dejavulib.destinations.host import HostDestination

        # A copy from a GPU into pageable memory would wait for the host.
        return HostDestination(pinned=context.device.type == "cuda")


class HostTransport(Transport):
    """Streaming to the source's own memory, which crosses no link but PCIe."""

    entry = HOST
    order = 10
    help = "this rank's memory"
    style = PlotStyle("#56B4E9", "//")
    copy_s = 1e-6  # one slice assignment of a memoryview
    swapped_label = "swapped to host memory"
    probe_names = ProbeNames(ceiling="memory-copy", ceiling_on_gpu="pcie-d2h")
    crossing = Crossing(on_one_host=False)

    def connector(self, rank: RankContext) -> Connector:
        """Return this rank's part; no memory is allocated yet."""
        return HostConnector(rank)


TRANSPORT = HostTransport()
