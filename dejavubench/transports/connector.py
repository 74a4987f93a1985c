"""``Connector``: one rank's part in streaming to one destination, from start to end of a run.

Importing this loads neither torch nor MPI.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from dejavubench.transports.contexts import (
    OutsideWrite,
    PointContext,
    ProbeContext,
    RankContext,
    SinkContext,
    SourceContext,
)

if TYPE_CHECKING:
    from mpi4py import MPI

    from dejavubench.dejavulib.destinations.base import Destination, Stream
    from dejavubench.dejavulib.receiver import SinkEndpoint
    from dejavubench.transports.probe import Probe


class Connector:
    """One rank's part in streaming to one destination during a run.

    The methods are called in this order: :meth:`load`; :meth:`find_peers`; for each point
    :meth:`refusal`; then for each point :meth:`connect`, and :meth:`open_source` or
    :meth:`open_sink` when an arm first needs it, and :meth:`probes`. Every rank calls them in the
    same order, so each may be collective.
    """

    # No library is loaded here: connectors are made before it is known which of them can run.
    def __init__(self, rank: RankContext) -> None:
        self.rank = rank

    def load(self) -> None:
        """Load libraries, before any other library that streams is used.

        Raises:
            UsageError: they cannot be used on this rank.
        """

    def find_peers(self) -> None:
        """Find the other side.

        Raises:
            UsageError: it is not there.
        """

    def refusal(self, point: PointContext, reservations: ExitStack) -> str | None:
        """Return why the other side does not take what a point streams, or None.

        Args:
            reservations: the other side keeps room until this is closed.
        """
        return None

    def connect(self, point: PointContext) -> None:
        """Connect the ranks for one point of a sweep."""

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's side of the destination."""
        raise NotImplementedError(f"{type(self).__name__} has no open_source")

    def open_sink(self, context: SinkContext) -> SinkEndpoint:
        """Return the sink's side of a remote destination."""
        raise NotImplementedError(f"{type(self).__name__} has no open_sink")

    def stored_nbytes(self, stream: Stream) -> int:
        """Return the bytes of storage that a stream takes."""
        return 0

    def check(self, destination: Destination, stream: Stream) -> None:
        """Run the destination's own integrity check on a complete stream.

        Raises:
            WrongBytesError: it does not hold what was written.
        """

    def find_outside_write(
        self, destination: Destination, stream: Stream, byte: int
    ) -> OutsideWrite | None:
        """Return the first difference from ``byte`` outside the stream's region."""
        return None

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the raw loops that bound the destination, and its own code measured alone."""
        return ()

    def facts(self) -> dict[str, object]:
        """Return the facts on the destination for this rank's record."""
        return {}


class RankConnector(Connector):
    """A connector whose receivers are ranks of the job.

    Attributes:
        comm: this destination's own communicator of all ranks, so that its messages cannot match
            others. Set by :meth:`find_peers`.
    """

    comm: MPI.Intracomm

    def find_peers(self) -> None:
        """Duplicate the communicator of all ranks. Collective."""
        # Collective, so the order of the destinations must be the same on all ranks.
        self.comm = self.rank.world.Dup()

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the raw loops of MPI between two ranks, the link that all such destinations use.

        Where several destinations return the same probe, it is run once.
        """
        from dejavubench.transports.loops.mpi import MPILoops

        return () if context.rank_pair is None else MPILoops(context.rank_pair).probes()
