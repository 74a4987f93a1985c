"""What a worker's streams are at one point of a sweep: the plan of the library, filled with ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dejavubench.config.points import Point, Split
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.kvcache import KVGeometry, Region
from dejavubench.dejavulib.plan import Setup, stream_in, stream_out
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.parallel.topology import Topology
from dejavubench.planning.setups import everything, geometry_of, setup_of, setups


@dataclass(frozen=True)
class Side:
    """One worker's place in the plan of a point."""

    point: Point
    topology: Topology
    slot_nbytes: int

    @property
    def is_source(self) -> bool:
        return self.topology.role == "source"

    @property
    def split(self) -> Split:
        """How this worker's side holds the cache."""
        return self.point.sources if self.is_source else self.point.sinks or self.point.sources

    @property
    def ubatches(self) -> int:
        """Microbatches that this side has in flight, each with a cache of its own."""
        return self.point.requests // self.split.ubatch_size

    @property
    def setup(self) -> Setup:
        return setup_of(self.point, self.split)

    @property
    def geometry(self) -> KVGeometry:
        """Of this worker's cache of one microbatch."""
        return geometry_of(self.point, self.setup, self.topology.worker)

    def _schedule(self, region: Region, other: KVGeometry | None = None) -> StreamSchedule:
        """The chunks of a region of this worker's cache, of which ``other`` is the other side's."""
        point = self.point
        return StreamSchedule(
            self.geometry, region, point.input_len, point.generated - 1, self.slot_nbytes, other
        )

    def local(self) -> list[list[Stream]]:
        """For each microbatch the stream of this worker's whole cache to a destination of its own."""
        return [
            [Stream(ubatch, self._schedule(self.geometry.whole))] for ubatch in range(self.ubatches)
        ]

    def remote(self) -> list[list[Stream]]:
        """For each microbatch the streams to the sinks that need it, or on a sink those that it receives."""
        point, worker = self.point, self.topology.worker
        sources, sinks = setups(point)
        streams: list[list[Stream]] = [[] for _ in range(self.ubatches)]
        between: Counter[int] = (
            Counter()
        )  # streams that two ranks have had so far: the next one's id
        if self.is_source:
            for transfer in stream_out(sources, sinks, worker, everything(point)):
                schedule = self._schedule(
                    transfer.source_region, geometry_of(point, sinks, transfer.target)
                )
                peer = self.topology.workers + transfer.target
                streams[transfer.source_ubatch].append(Stream(between[peer], schedule, peer))
                between[peer] += 1
        else:
            for transfer in stream_in(sources, sinks, worker, everything(point)):
                schedule = self._schedule(
                    transfer.target_region, geometry_of(point, sources, transfer.source)
                )
                streams[transfer.target_ubatch].append(
                    Stream(between[transfer.source], schedule, transfer.source)
                )
                between[transfer.source] += 1
        return streams

    def peers(self) -> list[int]:
        """Ranks of the other side that this one streams to, or receives from; none where there are no sinks."""
        if not self.topology.has_sinks:
            return []
        return sorted(
            {
                stream.peer
                for streams in self.remote()
                for stream in streams
                if stream.peer is not None
            }
        )

    def locate(self, layer: int, head: int) -> tuple[int, int]:
        """A local layer and head in the numbers of the whole model."""
        worker = self.topology.worker
        return layer + self.setup.layers(worker).start, head + self.setup.heads_of(worker).start
