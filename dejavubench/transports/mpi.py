"""``mpi``: messages to a sink's host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import MPI
from dejavubench.transports.base import (
    LINK_HELD_AGAINST,
    LINK_OVERHEAD_OF,
    Crossing,
    PlotStyle,
    ProbeNames,
    Transport,
)
from dejavubench.transports.connector import RankConnector
from dejavubench.transports.contexts import RankContext, SinkContext, SourceContext

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination
    from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint


class MPIConnector(RankConnector):
    """One rank's end, on a communicator of the destination's own."""

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's end. It raises StreamingError without MPI_THREAD_MULTIPLE."""
        from dejavubench.dejavulib.destinations.mpi import MPIDestination

        return MPIDestination(self.comm)

    def open_sink(self, context: SinkContext) -> MPISinkEndpoint:
        """Return the sink's end."""
        from dejavubench.dejavulib.destinations.mpi import MPISinkEndpoint

        return MPISinkEndpoint(self.comm)


class MPITransport(Transport):
    """Streaming to a sink's host memory by MPI messages."""

    entry = MPI
    order = 30
    help = "a remote CPU"
    style = PlotStyle("#009E73", "..")
    copy_s = 1e-5  # a synchronous send of a few bytes within a host
    hands_over = True
    probe_names = ProbeNames(
        ceiling="mpi-windowed",
        ceiling_on_gpu="mpi-windowed",
        link_rate="mpi-windowed",
        message="mpi-message",
        held_against=LINK_HELD_AGAINST,
        overhead_of=LINK_OVERHEAD_OF,
    )
    # Within a host MPI chooses shared memory or a loopback device: no promise.
    crossing = Crossing(between_hosts=True)

    def connector(self, rank: RankContext) -> MPIConnector:
        """Return this rank's part; the communicator is made later, by ``find_peers``."""
        return MPIConnector(rank)


TRANSPORT = MPITransport()
