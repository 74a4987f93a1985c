"""``nccl``: from a source's GPU to its sink's, by NVIDIA's NCCL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import NCCL
from dejavubench.transports.base import (
    LINK_HELD_AGAINST,
    LINK_OVERHEAD_OF,
    Crossing,
    LoopbackVariant,
    PlotStyle,
    ProbeNames,
    Transport,
    Unavailable,
)
from dejavubench.transports.connector import RankConnector
from dejavubench.transports.contexts import (
    Options,
    PointContext,
    ProbeContext,
    RankContext,
    SinkContext,
    SourceContext,
)

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination
    from dejavubench.dejavulib.destinations.nccl import NCCLSinkEndpoint
    from dejavubench.parallel.nccl_pairs import NCCLPair
    from dejavubench.transports.probe import Probe


class NCCLConnector(RankConnector):
    """One rank's NCCL links, made anew for each point of a sweep.

    Attributes:
        links: links to the ranks of the other side at the current point, by rank.
    """

    links: Mapping[int, NCCLPair]

    def connect(self, point: PointContext) -> None:
        """Make the NCCL links between this point's sources and sinks. Collective over these."""
        from dejavubench.parallel.nccl_pairs import connect_pairs

        # Anew for each point, as its setup may pair other ranks.
        self.links = connect_pairs(self.rank.world, list(point.pairs), self.rank.device)

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's end of the point's links."""
        from dejavubench.dejavulib.destinations.nccl import NCCLDestination

        return NCCLDestination(self.comm, self.links, context.timeout)

    def open_sink(self, context: SinkContext) -> NCCLSinkEndpoint:
        """Return the sink's end of the point's links."""
        from dejavubench.dejavulib.destinations.nccl import NCCLSinkEndpoint

        receives_ahead = int(self.rank.options.value("nccl_receives_ahead"))
        most_ahead = dict.fromkeys(context.peers, receives_ahead)
        return NCCLSinkEndpoint(self.comm, self.links, context.timeout, most_ahead)

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the MPI loops, and a raw NCCL loop if the two ranks are linked."""
        from dejavubench.transports.loops.nccl import NCCLLoop

        probes = list(super().probes(context))
        rank_pair = context.rank_pair
        if rank_pair is not None and rank_pair.peer in self.links:
            probes += NCCLLoop(rank_pair, self.links[rank_pair.peer], context.device).probes()
        return probes


class NCCLTransport(Transport):
    """Streaming from GPU to GPU by NCCL."""

    entry = NCCL
    order = 40
    label = "remote GPU (NCCL)"
    help = "a remote GPU"
    style = PlotStyle("#CC79A7", "xx")
    options = ("nccl_loopback", "nccl_receives_ahead")
    copy_s = 1e-5  # a send kernel, and the grant before it
    hands_over = True
    loopback = LoopbackVariant(
        "nccl_loopback", "nccl-loopback", "loopback on one GPU (NCCL)", PlotStyle("#D55E00", "oo")
    )
    library = "nccl"
    probe_names = ProbeNames(
        ceiling_on_gpu="nccl-send",
        held_against=LINK_HELD_AGAINST,
        overhead_of=LINK_OVERHEAD_OF,
    )
    # Within a host NCCL goes by NVLink, PCIe or shared memory.
    crossing = Crossing(between_hosts=True, on_one_host=False)

    def connector(self, rank: RankContext) -> NCCLConnector:
        """Return this rank's part; NCCL is not loaded yet."""
        return NCCLConnector(rank)

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Refuse receives ahead that would take from a model or come in no known order."""
        waiting = "a receive that waits takes from the model on its GPU"
        several = "a source then has several streams to a sink, in no known order"
        reasons = {
            "nccl_loopback": waiting,
            "handoff": waiting,
            "sink_pipeline_para_size": several,
            "sink_ubatch_size": several,
        }
        if options.value("nccl_receives_ahead"):
            for key, reason in reasons.items():
                if options.value(key):
                    return (
                        f"--nccl-receives-ahead cannot be combined with --{key.replace('_', '-')}: "
                        f"{reason}. Drop one of them"
                    )
            if options.value("pipeline_para_size") > 1:
                return f"--nccl-receives-ahead needs --pipeline-para-size 1: {several}"
        return super().conflict(options, chosen)

    def missing(self, options: Options) -> Unavailable | None:
        """Refuse a model that is not on a CUDA device."""
        if options.device == "cuda":
            return None
        # By the option: whether this host has a device is asked later, on each rank.
        return Unavailable(
            "no CUDA device",
            "--streaming nccl moves the cache from GPU to GPU: it needs a CUDA device",
        )


TRANSPORT = NCCLTransport()
