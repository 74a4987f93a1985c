"""One worker's part in the plan of a point: its cache, and its streams to or from other ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dejavubench.config.points import Point, SetupSizes
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.exchange import Setup, stream_in, stream_out
from dejavubench.dejavulib.kv_cache import KVGeometry, Region
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.parallel.topology import Topology
from dejavubench.planning.setups import list_setups, make_geometry, make_setup, make_whole_region
from dejavubench.planning.staging import choose_slot_nbytes


@dataclass(frozen=True)
class WorkerView:
    """One worker's part in a point: its cache, and its streams to or from other ranks.

    Attributes:
        slot_nbytes: bytes of a staging slot: no chunk is larger.
    """

    point: Point
    topology: Topology
    slot_nbytes: int

    @property
    def is_source(self) -> bool:
        """Whether this worker runs the model."""
        return self.topology.role == "source"

    @property
    def sizes(self) -> SetupSizes:
        """Sizes of the setup of this worker's side."""
        return self.point.sources if self.is_source else self.point.sinks or self.point.sources

    @property
    def microbatch_count(self) -> int:
        """Number of microbatches that this side has in flight, each with a cache of its own."""
        return self.point.request_count // self.sizes.ubatch_size

    @property
    def setup(self) -> Setup:
        """Setup of this worker's side: PP × TP × batch."""
        return make_setup(self.point, self.sizes)

    @property
    def geometry(self) -> KVGeometry:
        """Geometry of this worker's cache of one microbatch."""
        return make_geometry(self.point, self.setup, self.topology.worker_index)

    def local_streams(self) -> list[list[Stream]]:
        """Return each microbatch's stream of this worker's whole cache to a place of its own."""
        return [
            [Stream(microbatch, self._schedule(self.geometry.whole))]
            for microbatch in range(self.microbatch_count)
        ]

    def remote_streams(self) -> list[list[Stream]]:
        """Return each microbatch's streams to the sinks, or on a sink those that it receives."""
        streams: list[list[Stream]] = [[] for _ in range(self.microbatch_count)]
        # A stream's id is its number among the streams between the same two ranks. Both ranks walk
        # the pairs in the same order, so they count alike without a message.
        stream_counts: Counter[int] = Counter()
        for microbatch, region, other_geometry, peer in self._region_pairs():
            streams[microbatch].append(
                Stream(stream_counts[peer], self._schedule(region, other_geometry), peer)
            )
            stream_counts[peer] += 1
        return streams

    def _region_pairs(self) -> Iterator[tuple[int, Region, KVGeometry, int]]:
        """Yield microbatch, region, the other side's geometry and its rank, in the plan's order."""
        point = self.point
        worker_index = self.topology.worker_index
        sources, sinks = list_setups(point)
        # stream_in mirrors stream_out: both sides derive the same pairs in the same order.
        if self.is_source:
            for outgoing_pair in stream_out(sources, sinks, worker_index, make_whole_region(point)):
                other_geometry = make_geometry(point, sinks, outgoing_pair.target)
                yield (
                    outgoing_pair.source_microbatch,
                    outgoing_pair.source_region,
                    other_geometry,
                    self.topology.sinks[outgoing_pair.target],
                )
        else:
            for incoming_pair in stream_in(sources, sinks, worker_index, make_whole_region(point)):
                other_geometry = make_geometry(point, sources, incoming_pair.source)
                yield (
                    incoming_pair.target_microbatch,
                    incoming_pair.target_region,
                    other_geometry,
                    incoming_pair.source,
                )

    def _schedule(self, region: Region, other_geometry: KVGeometry | None = None) -> StreamSchedule:
        """Cut a region of this worker's cache into chunks for a cache of ``other_geometry``."""
        point = self.point
        # One step less than tokens: the last token never goes into the model, so it has no K and V.
        return StreamSchedule(
            geometry=self.geometry,
            region=region,
            input_len=point.input_len,
            steps=point.generated_token_count - 1,
            slot_nbytes=self.slot_nbytes,
            other_geometry=other_geometry,
            flush_interval=point.flush_interval,
        )

    def peers(self) -> list[int]:
        """Return the ranks that this one streams to, or receives from; none without sinks."""
        if not self.topology.has_sinks:
            return []
        streams = [
            stream for microbatch_streams in self.remote_streams() for stream in microbatch_streams
        ]
        return sorted({stream.peer for stream in streams if stream.peer is not None})

    def locate(self, layer: int, head: int) -> tuple[int, int]:
        """Translate a local layer and head to the numbers of the whole model."""
        worker_index = self.topology.worker_index
        layers, heads = self.setup.layers(worker_index), self.setup.heads_of(worker_index)
        return layer + layers.start, head + heads.start


def make_worker_view(point: Point, topology: Topology, rank: int | None = None) -> WorkerView:
    """Return the part of this rank, or of another one, at a point."""
    # Another rank's part follows from its number alone, so no rank has to be asked.
    own_topology = topology if rank is None else replace(topology, rank=rank)
    return WorkerView(point, own_topology, choose_slot_nbytes(point))
