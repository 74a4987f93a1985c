"""What a worker's streams are at one point of a sweep: the plan of the library, filled with ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.plan import Setup, stream_in, stream_out
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.kvcache import KVGeometry, KVLayout, Region, Span
from dejavubench.parallel.topology import Topology
from dejavubench.points import Point


@dataclass(frozen=True)
class Side:
    """One worker's place in the plan of a point.

    Attributes:
        setup: of both sides.
        geometry: of this worker's cache of one microbatch.
        ubatches: microbatches in flight, each with a cache of its own.
    """

    point: Point
    topology: Topology
    slot_nbytes: int

    @property
    def ubatches(self) -> int:
        return self.topology.stages

    @property
    def setup(self) -> Setup:
        point = self.point
        cuts = point.spec.layer_cuts(point.pipeline_para_size)
        return Setup(cuts, point.spec.kv_heads, point.tensor_para_size, point.ubatch_size)

    @property
    def geometry(self) -> KVGeometry:
        setup, worker, point = self.setup, self.topology.worker, self.point
        return KVGeometry(
            setup.layers(worker).size,
            point.ubatch_size,
            setup.heads_of(worker).size,
            point.positions,
            point.spec.size_per_head,
            point.itemsize,
            KVLayout(point.kv_layout),
        )

    def schedule(self, region: Region) -> StreamSchedule:
        """The chunks of a region of this worker's cache."""
        return StreamSchedule(self.geometry, region, self.point.input_len, self.point.output_len - 1, self.slot_nbytes)

    def local(self) -> list[list[Stream]]:
        """For each microbatch the stream of this worker's whole cache to a destination of its own."""
        return [[Stream(ubatch, self.schedule(self.geometry.whole))] for ubatch in range(self.ubatches)]

    def remote(self) -> list[list[Stream]]:
        """For each microbatch the streams to the sinks that need it, or on a sink those that it receives."""
        setup, worker = self.setup, self.topology.worker
        everything = Region(
            Span(0, setup.layer_cuts[-1]),
            Span(0, self.ubatches * self.point.ubatch_size),
            Span(0, setup.heads),
            Span(0, self.point.written),
        )
        streams: list[list[Stream]] = [[] for _ in range(self.ubatches)]
        between: Counter[int] = Counter()  # streams that two ranks have had so far: the next one's id
        if self.topology.role == "source":
            for transfer in stream_out(setup, setup, worker, everything):
                peer = self.topology.workers + transfer.target
                self._add(streams[transfer.source_ubatch], between, peer, transfer.source_region)
        else:
            for transfer in stream_in(setup, setup, worker, everything):
                self._add(streams[transfer.target_ubatch], between, transfer.source, transfer.target_region)
        return streams

    def _add(self, streams: list[Stream], between: Counter[int], peer: int, region: Region) -> None:
        streams.append(Stream(between[peer], self.schedule(region), peer))
        between[peer] += 1

    def locate(self, layer: int, head: int) -> tuple[int, int]:
        """A local layer and head in the numbers of the whole model."""
        worker = self.topology.worker
        return layer + self.setup.layers(worker).start, head + self.setup.heads_of(worker).start
