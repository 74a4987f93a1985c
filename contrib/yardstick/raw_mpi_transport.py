"""``raw-mpi``: a yardstick for ``mpi``, as an arm of the same rounds.

    PYTHONPATH=contrib/yardstick DEJAVUBENCH_PLUGINS=raw_mpi_transport \\
        mpirun -n 2 dejavubench run configs/cpu/fig25.toml --streaming none,mpi,raw-mpi

It sends as many bytes in the same chunks, beside the same model, with as little as possible: one
thread on the source and one MPI message per chunk. Compared with ``mpi``, it does *not*

- gather: a chunk's bytes come from a buffer, not from the cache;
- scatter: the sink leaves them in the buffer that they were received in;
- acknowledge: a chunk counts as complete once its buffer is free on the source. So the drain does
  not wait for the sink;
- carry keys and values: nothing can be verified, and its arms never are.

What it costs is what the link and the second process cost by themselves. Three destinations take
less and less of it, at the buffered levels, on a CPU:

- ``raw-mpi`` blocks in ``MPI_Send``;
- ``raw-mpi-posted`` begins to send, and looks only when the next chunk comes;
- ``raw-nothing`` moves nothing and has no sink. It wakes the helper thread for each chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dejavubench.dejavulib.destinations.registry import DestinationEntry
from dejavubench.transports.base import PlotStyle, Transport
from dejavubench.transports.connector import Connector, RankConnector
from dejavubench.transports.contexts import Options, RankContext, SinkContext, SourceContext
from dejavubench.transports.registry import register

if TYPE_CHECKING:
    from raw_mpi_destination import Nothing, RawDestination, RawSink

BLOCKING = DestinationEntry("raw-mpi", remote=True, moves_cache=False)
POSTED = DestinationEntry("raw-mpi-posted", remote=True, moves_cache=False)
NOTHING_ENTRY = DestinationEntry("raw-nothing", moves_cache=False)

UNBUFFERED = ("0", "0-batched")


class RawConnector(RankConnector):
    """One rank's part in a run. ``comm`` is a communicator of its own."""

    def open_source(self, context: SourceContext) -> RawDestination:
        """Return the source's end with blocking sends."""
        from raw_mpi_destination import BlockingDestination

        return BlockingDestination(self.comm)

    def open_sink(self, context: SinkContext) -> RawSink:
        """Return the sink's end, which acknowledges nothing."""
        from raw_mpi_destination import RawSink

        return RawSink(self.comm)


class PostedConnector(RawConnector):
    """The ends of ``raw-mpi`` with sends that are posted."""

    def open_source(self, context: SourceContext) -> RawDestination:
        """Return the source's end with posted sends."""
        from raw_mpi_destination import PostedDestination

        return PostedDestination(self.comm)


class NothingConnector(Connector):
    """The source's end of the arm that moves nothing."""

    def open_source(self, context: SourceContext) -> Nothing:
        """Return a destination that moves nothing."""
        from raw_mpi_destination import Nothing

        return Nothing()


class RawTransport(Transport):
    """The variant that blocks in ``MPI_Send``."""

    entry = BLOCKING
    label = "raw loop of MPI"
    help = "a yardstick"
    style = PlotStyle("#117733", "--")
    order = 200
    connector_type: ClassVar[type[Connector]] = RawConnector

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Refuse a GPU, and levels that move single extents."""
        if options.device != "cpu":
            return f"--streaming {self.name} needs --device cpu"
        if set(UNBUFFERED) & set(options.value("level")):
            return f"--streaming {self.name} moves whole chunks: use --level 1, 2 or 3"
        return None

    def connector(self, rank: RankContext) -> Connector:
        """Return this rank's part, of the class that the transport names."""
        return self.connector_type(rank)


class PostedTransport(RawTransport):
    """The variant that only begins to send."""

    entry = POSTED
    label = "raw loop of MPI, posted"
    style = PlotStyle("#999933", "++")
    order = 201
    connector_type = PostedConnector


class NothingTransport(RawTransport):
    """The variant that wakes the helper thread alone."""

    entry = NOTHING_ENTRY
    label = "helper thread alone"
    style = PlotStyle("#88CCEE", "oo")
    order = 202
    connector_type = NothingConnector


register(RawTransport())
register(PostedTransport())
register(NothingTransport())
