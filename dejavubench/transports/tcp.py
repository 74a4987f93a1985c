"""``tcp``: a plain socket to ``dejavubench sink``, a program that is no part of the MPI job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import TCP
from dejavubench.transports.base import Crossing, PlotStyle, ProbeNames, Transport, Unavailable
from dejavubench.transports.connector import Connector
from dejavubench.transports.contexts import (
    Options,
    OutsideWrite,
    PointContext,
    ProbeContext,
    RankContext,
    SourceContext,
)

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination, Stream
    from dejavubench.transports.loops.tcp_peer import TCPPeer
    from dejavubench.transports.probe import Probe


class TCPConnector(Connector):
    """One source's connection to a sink outside the job; sinks of the job have no part in it.

    Attributes:
        peer: the sink that this source streams to; None on a rank that is no source.
    """

    peer: TCPPeer | None = None

    def find_peers(self) -> None:
        """Find the sink of this source at ``--peer``.

        Raises:
            UsageError: nothing listens there, or it is no sink of this version.
        """
        from dejavubench.transports.loops.tcp_peer import TCPPeer

        if self.rank.is_source:
            read_option = self.rank.options.value
            peers = read_option("peer")
            # One address for all sources, or one for each, by the source's number.
            peer = peers[self.rank.worker % len(peers)]
            self.peer = TCPPeer.find(
                peer, read_option("drain_timeout"), read_option("tcp_checksums")
            )

    def refusal(self, point: PointContext, reservations: ExitStack) -> str | None:
        """Ask the sink for room for the point's caches, and for those of the probes."""
        if self.peer is None:
            return None
        import torch

        from dejavubench.transports.loops.tcp import make_large_messages, make_small_messages

        cache_requests = [(list(point.streams), point.dtype)]
        if point.probes:  # their caches need room at the same time
            cache_requests += [
                ([stream], torch.float32)
                for stream in (make_large_messages(), make_small_messages())
            ]
        # All are asked, also after a refusal: each reserves room until `reservations` is closed.
        refusals = (
            self.peer.refusal(*cache_request, reservations) for cache_request in cache_requests
        )
        return next((reason for reason in list(refusals) if reason is not None), None)

    def open_source(self, context: SourceContext) -> Destination:
        """Return a destination on a new connection to the sink."""
        assert self.peer is not None
        streams = [stream for microbatch in context.streams for stream in microbatch]
        return self.peer.connect(streams, context.caches[0].k.dtype)

    def find_outside_write(
        self, destination: Destination, stream: Stream, byte: int
    ) -> OutsideWrite | None:
        """Ask the sink to compare its cache outside the stream's region."""
        from dejavubench.transports.loops.tcp_services import MeasuredTCPDestination

        assert isinstance(destination, MeasuredTCPDestination)
        return destination.find_outside_write(stream, byte)

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the raw loops over connections of their own."""
        if self.peer is None:
            return ()
        from dejavubench.transports.loops.tcp import TCPLoops

        loops = TCPLoops(self.peer.connect)
        context.open_probes.callback(loops.close)
        return loops.probes()

    def facts(self) -> dict[str, object]:
        """Return the sink's description of itself, for the rank's record."""
        return {} if self.peer is None else {"tcp_sink": asdict(self.peer)}


class TCPTransport(Transport):
    """Streaming over sockets to a sink that is no part of the MPI job."""

    entry = TCP
    order = 60
    help = "a remote CPU, no MPI"
    style = PlotStyle("#F0E442", "--")
    options = ("peer", "tcp_checksums")
    copy_s = 3e-5  # a frame to a sink within the host, and its answer
    probe_names = ProbeNames(
        ceiling="tcp-raw",
        ceiling_on_gpu="tcp-raw",
        link_rate="tcp-raw",
        message="tcp-message",
        held_against={"tcp-destination": "tcp-raw"},
    )
    # A socket goes through an interface in any case; within a host it is the loopback one.
    crossing = Crossing(between_hosts=True, on_one_host=True)

    def connector(self, rank: RankContext) -> TCPConnector:
        """Return this rank's part; the sink is looked for later, by ``find_peers``."""
        return TCPConnector(rank)

    def missing(self, options: Options) -> Unavailable | None:
        """Refuse unless ``--peer`` is given."""
        if options.value("peer"):
            return None
        return Unavailable(
            "no --peer",
            "--streaming tcp needs --peer ADDR:PORT, where 'dejavubench sink' listens",
        )

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Refuse a number of peers that is neither 1 nor the number of sources."""
        peer_count = len(options.value("peer"))  # 0: missing() says so
        if peer_count in (0, 1, options.sources):
            return None
        return (
            f"--peer gives {peer_count} addresses: give one for all sources, or one for each of "
            f"the {options.sources} sources"
        )


TRANSPORT = TCPTransport()
