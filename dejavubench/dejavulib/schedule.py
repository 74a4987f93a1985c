"""In which chunks, and in which order, one microbatch's cache moves between two workers.

Both sides derive the same schedule, so chunks carry no headers and nothing is negotiated while the
model runs. Step 0 is the prompt, P positions at once. Step n ≥ 1 is one decode step, position
P + n − 1.

Decode steps move in *groups* of N consecutive steps, the flush interval; the last group may be
shorter, and the prompt is a group of its own. A group leaves at the end of its last step, and is
named by it. By default N is 1: each step is a group, and leaves at its own end.

A stream's *packed* form is the same at every level: the groups in order; in a group its layers; of
a layer its atoms; of an atom K, then V, each in the layout's own order. An atom is as much of one
layer as fits a staging slot: the whole layer if it fits, else a cut along requests, then positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .geometry import BOTH, Extents, KVGeometry
from .levels import Level
from .regions import Region, Span

HOST_SLOT_COUNT = 2
"""Chunks of a stream that a sink receives into host memory at a time.

One chunk arrives while another is scattered.
"""

DEVICE_SLOT_COUNT = 8
"""Chunks of a stream that a sink receives into a device's memory at a time.

The source runs further ahead there.
"""

MOST_FETCHED_NBYTES = 64 << 20
"""Most bytes of decode steps that a swapped cache is fetched by at once: the memory of a fetch."""


@dataclass(frozen=True)
class Chunk:
    """The unit that moves in one flush.

    Attributes:
        index: the chunk's number in the stream's sequence of chunks.
        step: the step at whose end it moves: 0 for the prompt, n for the group of decode steps that
            ends with the n-th.
        region: the part of the cache, in the coordinates of this side's cache.
        offset: bytes before it in the packed stream.
        nbytes: packed bytes of the chunk.
    """

    index: int
    step: int
    region: Region
    offset: int
    nbytes: int


class StreamSchedule:
    """The chunks of one stream: one microbatch's cache between one source worker and one target.

    Args:
        geometry: geometry of this side's cache.
        region: the layers, requests and heads that move. Its positions are ignored: steps have
            their own.
        input_len: prompt length P.
        steps: decode steps, T − 1.
        slot_nbytes: bytes of one staging slot; no buffered chunk is larger.
        other_geometry: of the other side's cache if it differs. An extent must be contiguous in
            both.
        flush_interval: decode steps of a group, N. Both sides must have the same.

    Raises:
        ValueError: the positions reach beyond the cache, one position of one request is larger
            than a slot, or a group would have no step.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        region: Region,
        input_len: int,
        steps: int,
        slot_nbytes: int,
        other_geometry: KVGeometry | None = None,
        flush_interval: int = 1,
    ) -> None:
        self.geometry = geometry
        self.other_geometry = other_geometry
        self.region = replace(region, positions=Span(0, input_len + steps))
        if geometry.whole & self.region != self.region:
            raise ValueError(f"{self.region} is not inside a cache of {geometry}")
        self.input_len = input_len
        self.steps = steps
        self.slot_nbytes = slot_nbytes
        self.flush_interval = flush_interval
        if flush_interval < 1:
            raise ValueError(f"a flush interval is at least 1 decode step, not {flush_interval}")
        smallest_atom = replace(self._layer_region(0, 0), requests=Span(0, 1), positions=Span(0, 1))
        if geometry.region_nbytes(smallest_atom) > slot_nbytes:
            raise ValueError(
                f"a staging slot of {slot_nbytes} bytes does not hold one position of one request "
                f"of one layer ({geometry.region_nbytes(smallest_atom)} bytes)"
            )

    # ---- groups of steps ----

    @property
    def group_count(self) -> int:
        """Number of groups, the prompt included."""
        return 1 + -(-self.steps // self.flush_interval)

    def last_step(self, group: int) -> int:
        """Return the last step of a group, which names it; ``steps + 1`` beyond the last group."""
        if group >= self.group_count:
            return self.steps + 1
        return min(group * self.flush_interval, self.steps)

    def find_group(self, step: int) -> int:
        """Return the number of the group that a step belongs to."""
        return -(-step // self.flush_interval) if step <= self.steps else self.group_count

    def step_after(self, step: int) -> int:
        """Return the next step after ``step`` at whose end a group leaves."""
        return self.last_step(self.find_group(step) + self.leaves(step))

    def leaves(self, step: int) -> bool:
        """Return whether a group leaves at the end of a step."""
        return step % self.flush_interval == 0 or step == self.steps

    def positions(self, step: int) -> Span:
        """Return the positions whose keys and values leave at the end of a step; maybe none."""
        if step == 0:
            return Span(0, self.input_len)
        end_position = self.input_len + step
        if not self.leaves(step):
            return Span(end_position, end_position)
        return Span(
            self.input_len + (self.find_group(step) - 1) * self.flush_interval, end_position
        )

    def layer_nbytes(self, step: int) -> int:
        """Return the packed bytes of one layer that leave at the end of a step."""
        return self.geometry.region_nbytes(self._layer_region(0, step))

    def step_nbytes(self, step: int) -> int:
        """Return the packed bytes that leave at the end of a step; 0 within a group."""
        return self.region.layers.size * self.layer_nbytes(step)

    def step_offset(self, step: int) -> int:
        """Return the bytes before a step's group in the packed stream."""
        if step == 0:
            return 0
        step_count_before = min((self.find_group(step) - 1) * self.flush_interval, self.steps)
        return self.geometry.region_nbytes(
            replace(self.region, positions=Span(0, self.input_len + step_count_before))
        )

    @property
    def position_nbytes(self) -> int:
        """Packed bytes of one position, as each decode step adds it."""
        return self.geometry.region_nbytes(replace(self.region, positions=Span(0, 1)))

    @property
    def largest_nbytes(self) -> int:
        """Packed bytes of the largest group."""
        # Of the groups of decode steps, none is larger than the first.
        return max(
            self.step_nbytes(self.last_step(group)) for group in range(min(self.group_count, 2))
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stream: P + T − 1 positions."""
        return self.geometry.region_nbytes(self.region)

    def chunks(self, level: Level, step: int) -> Iterator[Chunk]:
        """Yield the chunks that leave at the end of a step, in the order in which they move.

        Unbuffered levels move a group's extents one by one; the group as a whole is their chunk.
        """
        index = self._count_chunks_before(level, step)
        offset = self.step_offset(step)
        for region in self._cut_regions(level, step):
            nbytes = self.geometry.region_nbytes(region)
            yield Chunk(index=index, step=step, region=region, offset=offset, nbytes=nbytes)
            index += 1
            offset += nbytes

    def atoms(self, step: int) -> list[Region]:
        """Return the atoms that leave at the end of a step, in packed order."""
        cuts = self._cut_layer(step)
        return [atom.layer(layer) for layer in range(*self.region.layers) for atom in cuts]

    def extents(self, step: int) -> Iterator[Extents]:
        """Yield the extents of a step's atoms, K and V of each, in packed order."""
        for atom in self.atoms(step):
            for kv in BOTH:
                yield self.geometry.extents(kv, atom, self.other_geometry)

    def all_chunks(self, level: Level) -> Iterator[Chunk]:
        """Yield the chunks of the whole stream in the order in which they move."""
        for group in range(self.group_count):
            yield from self.chunks(level, self.last_step(group))

    def count(self, level: Level) -> int:
        """Return the number of chunks of the whole stream."""
        return self._count_chunks_before(level, self.steps + 1)

    def _count_chunks_before(self, level: Level, step: int) -> int:
        group_count_before = self.find_group(step)
        if group_count_before < 2:
            return group_count_before and len(self._cut_regions(level, 0))
        # Groups of decode steps are cut alike, so they are counted, not listed. Only the last one
        # may be shorter.
        prompt_count, count_of_group, count_of_last_group = (
            len(self._cut_regions(level, self.last_step(group)))
            for group in (0, 1, group_count_before - 1)
        )
        return prompt_count + (group_count_before - 2) * count_of_group + count_of_last_group

    def _layer_region(self, layer: int, step: int) -> Region:
        """Return one layer of one step; ``layer`` counts from the region's first."""
        region = replace(self.region, positions=self.positions(step))
        return region.layer(self.region.layers.start + layer)

    def _cut_regions(self, level: Level, step: int) -> list[Region]:
        """Return the regions of the chunks that leave at the end of a step."""
        group_region = replace(self.region, positions=self.positions(step))
        if not group_region.positions.size:
            return []
        if not level.buffered:
            return [group_region]
        # A layer that does not fit a slot is cut further, at every level in the same way: so the
        # packed stream is the same at every level.
        if self.layer_nbytes(step) > self.slot_nbytes:
            return self.atoms(step)
        if level.layerwise and step == 0:
            return [group_region.layer(layer) for layer in range(*group_region.layers)]
        # Otherwise as many whole layers as a slot holds: fewer chunks cost fewer messages.
        layer_count = max(1, self.slot_nbytes // self.layer_nbytes(step))
        return [
            replace(group_region, layers=layers) for layers in group_region.layers.cut(layer_count)
        ]

    def _cut_layer(self, step: int) -> list[Region]:
        """Cut the first layer of a step so that a piece fits a slot; all layers are cut alike."""
        layer = self._layer_region(0, step)
        if not layer.positions.size:
            return []
        request_nbytes = self.geometry.region_nbytes(layer) // layer.requests.size
        if request_nbytes <= self.slot_nbytes:
            request_count = self.slot_nbytes // request_nbytes
            return [replace(layer, requests=cut) for cut in layer.requests.cut(request_count)]
        position_count = self.slot_nbytes // (request_nbytes // layer.positions.size)
        return [
            replace(layer, requests=request, positions=cut)
            for request in layer.requests.cut(1)
            for cut in layer.positions.cut(position_count)
        ]
