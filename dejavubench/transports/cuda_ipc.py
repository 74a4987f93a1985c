"""``cuda-ipc``: from a source's GPU into the memory of another GPU of the same host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dejavubench.dejavulib.destinations.registry import CUDA_IPC
from dejavubench.errors import UsageError
from dejavubench.machine import gpu
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
    from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCSinkEndpoint
    from dejavubench.transports.probe import Probe

NO_CUPY = "cupy is not installed: pip install 'dejavubench[cuda]'"
NO_PEERS = "no GPU of this host can access the memory of another (no peer access)"
"""Reasons of a SKIPPED arm."""


class CudaIPCConnector(RankConnector):
    """One rank's GPU memory, shared once an arm needs it.

    Attributes:
        bus_ids: PCI bus id of each rank's GPU, in order of ranks.
    """

    bus_ids: Sequence[str]

    def load(self) -> None:
        """Load cupy, so that a rank without it is refused before the run begins.

        Raises:
            UsageError: it cannot be loaded on this rank.
        """
        try:
            from cupy.cuda import runtime  # noqa: F401 - loaded here, and used by the library
        except ImportError as error:
            raise UsageError(
                f"streaming cuda-ipc: rank {self.rank.world.rank} on {self.rank.host}: {error}"
            ) from None

    def find_peers(self) -> None:
        """Exchange the GPUs of all ranks. Collective.

        Raises:
            UsageError: the ranks are on several hosts.
        """
        from dejavubench.dejavulib.destinations.peers.gpu_memory import read_bus_id

        super().find_peers()
        own_gpu = self.rank.host, read_bus_id(self.rank.device.index)
        gpus_of_ranks = self.comm.allgather(own_gpu)
        hosts = sorted({host for host, _ in gpus_of_ranks})
        if len(hosts) > 1:
            raise UsageError(
                f"--streaming cuda-ipc needs all ranks on one host, not on {', '.join(hosts)}"
            )
        self.bus_ids = [bus_id for _, bus_id in gpus_of_ranks]

    def refusal(self, point: PointContext, reservations: ExitStack) -> str | None:
        """Return why this source's GPU cannot write to the memory of a sink's, or None."""
        from dejavubench.dejavulib.destinations.peers.gpu_memory import find_peer_access_problem

        own_rank = self.rank.world.rank
        refusals = (
            find_peer_access_problem(self.rank.device.index, self.bus_ids[sink])
            for source, sink in point.pairs
            if source == own_rank
        )
        reason = next((reason for reason in refusals if reason is not None), None)
        return None if reason is None else f"streaming cuda-ipc: {reason}"

    def open_source(self, context: SourceContext) -> Destination:
        """Return the source's end, with the sinks' memory mapped."""
        from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCDestination

        return CudaIPCDestination.connect(self.comm, context.peers, context.device, context.timeout)

    def open_sink(self, context: SinkContext) -> CudaIPCSinkEndpoint:
        """Return the sink's end, with caches and slots shared."""
        from dejavubench.dejavulib.destinations.cuda_ipc import CudaIPCSinkEndpoint

        # By identity: streams of several sources fill one cache, which is shared once.
        distinct_caches = {id(cache): cache for cache, _ in context.streams}.values()
        caches = [tensor for cache in distinct_caches for tensor in (cache.k, cache.v)]
        memory = [*caches, *(slot for slots in context.make_slots() for slot in slots)]
        return CudaIPCSinkEndpoint.connect(self.comm, context.peers, memory, context.streams)

    def probes(self, context: ProbeContext) -> Iterable[Probe]:
        """Return the MPI loops, and the raw loop of copies in memory of its own."""
        from dejavubench.transports.loops.cuda_ipc import CudaIPCLoops

        probes = list(super().probes(context))
        if context.rank_pair is not None:
            loops = CudaIPCLoops(self.comm, context.rank_pair, context.device)
            context.open_probes.callback(loops.close)
            probes += loops.probes()
        return probes


class CudaIPCTransport(Transport):
    """Streaming from GPU to GPU of one host by the copy engines."""

    entry = CUDA_IPC
    order = 70
    label = "GPU of this host (CUDA IPC)"
    help = "another GPU of this host"
    style = PlotStyle("#882255", "||")
    options = ("nccl_loopback",)
    copy_s = 1e-5  # a copy of a few bytes to a peer, until it is seen to be done
    hands_over = True
    loopback = LoopbackVariant(
        "nccl_loopback",
        "cuda-ipc-loopback",
        "loopback on one GPU (CUDA IPC)",
        PlotStyle("#999933", "o."),
    )
    probe_names = ProbeNames(
        ceiling_on_gpu="cuda-ipc-raw",
        held_against={"cuda-ipc-destination": "cuda-ipc-raw", **LINK_HELD_AGAINST},
        overhead_of=LINK_OVERHEAD_OF,
    )
    crossing = Crossing(on_one_host=False)

    def connector(self, rank: RankContext) -> CudaIPCConnector:
        """Return this rank's part; no memory is shared yet."""
        return CudaIPCConnector(rank)

    def missing(self, options: Options) -> Unavailable | None:
        """Refuse a model that is not on a CUDA device, and a host without cupy or peer access."""
        if options.device != "cuda":
            return Unavailable(
                "no CUDA device",
                "--streaming cuda-ipc moves the cache from GPU to GPU: it needs a CUDA device",
            )
        if find_spec("cupy") is None:
            return Unavailable(NO_CUPY, f"--streaming cuda-ipc: {NO_CUPY}")
        # Which GPUs the ranks get is not known here: one pair with access is enough for now.
        if (
            len(gpu.list_cuda_devices()) > 1
            and not gpu.find_peer_pairs()
            and not self.is_loopback(options)
        ):
            return Unavailable(
                NO_PEERS,
                f"--streaming cuda-ipc: {NO_PEERS}. --nccl-loopback lets a source and its sink "
                "share one",
            )
        return None


TRANSPORT = CudaIPCTransport()
