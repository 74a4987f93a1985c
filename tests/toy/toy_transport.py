"""The benchmark's part of ``toy``: this is the module that an entry point or the variable
``DEJAVUBENCH_PLUGINS`` names. Importing it loads neither torch nor MPI, and registers ``toy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.transports.base import (
    LINK_HELD_AGAINST,
    LINK_OVERHEAD_OF,
    PlotStyle,
    ProbeNames,
    Transport,
)
from dejavubench.transports.connector import RankConnector
from dejavubench.transports.contexts import RankContext, SinkContext, SourceContext
from dejavubench.transports.registry import register

if TYPE_CHECKING:
    from toy_destination import ToyDestination, ToySink


class ToyConnector(RankConnector):
    """One rank's part in a run. ``comm`` is a communicator that only ``toy`` uses."""

    def open_source(self, context: SourceContext) -> ToyDestination:
        from toy_destination import ToyDestination

        return ToyDestination(self.comm)

    def open_sink(self, context: SinkContext) -> ToySink:
        from toy_destination import ToySink

        return ToySink(self.comm)


class ToyTransport(Transport):
    entry = DestinationEntry("toy", remote=True)
    label = "toy by MPI"
    help = "an example: a remote deque"
    style = PlotStyle("#332288", "||")
    copy_s = 2e-5
    # The raw loop of MPI bounds it; every destination between ranks has it among its probes.
    probe_names = ProbeNames(
        ceiling="mpi-windowed",
        ceiling_on_gpu="mpi-windowed",
        held_against=LINK_HELD_AGAINST,
        overhead_of=LINK_OVERHEAD_OF,
    )

    def connector(self, rank: RankContext) -> ToyConnector:
        return ToyConnector(rank)


register(ToyTransport())
