"""``nixl``: NVIDIA's NIXL, from host memory to host memory or from GPU to GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import NIXL
from dejavubench.errors import UsageError
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
    ProbeContext,
    RankContext,
    SinkContext,
    SourceContext,
)

if TYPE_CHECKING:
    from dejavubench.dejavulib.destinations.base import Destination
    from dejavubench.dejavulib.destinations.nixl import NIXLSinkEndpoint
    from dejavubench.transports.probe import Probe

NOT_INSTALLED = "nixl is not installed: pip install 'dejavubench[nixl]'"
"""Reason of a SKIPPED arm."""

LOOPBACK_OPTION = "nccl_loopback"
"""The experiment's option that lets ranks share a GPU."""


def has_nixl() -> bool:
    """Return True if NIXL's Python package is installed here. Does not import it."""
    return find_spec("nixl") is not None


class NIXLConnector(RankConnector):
    """One rank's NIXL agent, whose registered memory is known once an arm needs it."""

    def load(self) -> None:
        """Load NIXL, so that a rank without it is refused before the run begins.

        Raises:
            UsageError: it cannot be loaded on this rank.
        """
        from dejavubench.dejavulib.destinations.base import StreamingError
        from dejavubench.dejavulib.destinations.nixl.agent import load

        try:
            load()
        except StreamingError as error:
            rank_text = f"rank {self.rank.world.rank} on {self.rank.host}"
            raise UsageError(f"streaming nixl: {rank_text}: {error}") from None

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's end, with staging slots and caches registered."""
        from dejavubench.dejavulib.destinations.nixl import NIXLDestination

        # All memory that is read from must be registered; single extents lie in the caches.
        caches = [tensor for cache in context.caches for tensor in (cache.k, cache.v)]
        memory = [*context.make_slots(context.device.type), *caches]
        return NIXLDestination(self.comm, context.peers, memory)

    def open_sink(self, context: SinkContext) -> NIXLSinkEndpoint:
        """Return the sink's end, with caches and slots registered."""
        from dejavubench.dejavulib.destinations.nixl import NIXLSinkEndpoint

        # By identity: streams of several sources fill one cache, which is registered once.
        unique_caches = {id(cache): cache for cache, _ in context.streams}.values()
        caches = [tensor for cache in unique_caches for tensor in (cache.k, cache.v)]
        memory = [*caches, *(slot for slots in context.make_slots() for slot in slots)]
        return NIXLSinkEndpoint(self.comm, context.peers, memory, context.streams)

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the MPI loops, and the raw loop of NIXL with agents of its own."""
        from dejavubench.transports.loops.nixl import NIXLLoops

        probes = list(super().probes(context))
        # Agents of their own: the destination's notifications must not be taken for the probes'.
        if context.rank_pair is not None:
            loops = NIXLLoops(self.comm, context.rank_pair, context.device)
            context.open_probes.callback(loops.close)
            probes += loops.probes()
        return probes


class NIXLTransport(Transport):
    """Streaming by NIXL, between host memories or between GPUs."""

    entry = NIXL
    order = 50
    label = "NIXL"
    help = "by NVIDIA's NIXL: a remote CPU, or GPU to GPU"
    style = PlotStyle("#0072B2", "++")
    options = (LOOPBACK_OPTION,)
    copy_s = 1.5e-5  # a one-sided write by UCX, until it is done
    hands_over = True
    loopback = LoopbackVariant(
        LOOPBACK_OPTION, "nixl-loopback", "loopback on one GPU (NIXL)", PlotStyle("#44AA99", "+.")
    )
    probe_names = ProbeNames(
        ceiling="nixl-raw",
        ceiling_on_gpu="nixl-raw",
        held_against={"nixl-destination": "nixl-raw", **LINK_HELD_AGAINST},
        overhead_of=LINK_OVERHEAD_OF,
    )
    crossing = Crossing(between_hosts=True)

    def connector(self, rank: RankContext) -> NIXLConnector:
        """Return this rank's part; NIXL is loaded later, by ``load``."""
        return NIXLConnector(rank)

    def conflict(self, options: Options, chosen: Sequence[Transport]) -> str | None:
        """Refuse a loopback that nobody uses: between host memories no GPU is shared."""
        others = (transport for transport in chosen if transport is not self)
        if (
            options.value(LOOPBACK_OPTION)
            and options.device != "cuda"
            and not any(LOOPBACK_OPTION in transport.options for transport in others)
        ):
            return "--nccl-loopback with --streaming nixl needs --device cuda. Drop --nccl-loopback"
        return super().conflict(options, chosen)

    def is_loopback(self, options: Options) -> bool:
        """Whether this run's sources and sinks share a GPU; between host memories they cannot."""
        return options.device == "cuda" and super().is_loopback(options)

    def missing(self, options: Options) -> Unavailable | None:
        """Refuse unless the package ``nixl`` is installed."""
        return (
            None if has_nixl() else Unavailable(NOT_INSTALLED, f"--streaming nixl: {NOT_INSTALLED}")
        )


TRANSPORT = NIXLTransport()
