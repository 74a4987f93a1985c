"""In which chunks, and in which order, one microbatch's cache moves between two workers.

Both sides derive the same schedule, so chunks carry no headers and nothing is negotiated while the
model runs. Step 0 is the prompt, P positions at once. Step n ≥ 1 is one decode step, position
P + n − 1.

A stream's *packed* form is the same at every level: the steps in order; in a step its layers; of a
layer its atoms; of an atom K, then V, each in the layout's own order. An atom is as much of one
layer as fits a staging slot: the whole layer if it fits, else a cut along requests, then positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .geometry import BOTH, Extents, KVGeometry, Region, Span
from .levels import Level

HOST_SLOTS, DEVICE_SLOTS = 2, 8
"""Chunks of a stream that a sink receives at a time, into host memory or into a device's.

One chunk arrives while another is scattered. On a device, the source runs further ahead.
"""


@dataclass(frozen=True)
class Chunk:
    """The unit that moves in one flush.

    Attributes:
        index: the chunk's number in the stream's sequence of chunks.
        step: 0 for the prompt, n for the n-th decode step.
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
        other: the other side's geometry if it differs. An extent must be contiguous on both sides.

    Raises:
        ValueError: the positions reach beyond the cache, or one position of one request is larger
            than a slot.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        region: Region,
        input_len: int,
        steps: int,
        slot_nbytes: int,
        other: KVGeometry | None = None,
    ) -> None:
        self.geometry = geometry
        self.other = other
        self.region = replace(region, positions=Span(0, input_len + steps))
        if geometry.whole & self.region != self.region:
            raise ValueError(f"{self.region} is not inside a cache of {geometry}")
        self.input_len = input_len
        self.steps = steps
        self.slot_nbytes = slot_nbytes
        smallest = replace(self._layer(0, 0), requests=Span(0, 1), positions=Span(0, 1))
        if geometry.region_nbytes(smallest) > slot_nbytes:
            raise ValueError(
                f"a staging slot of {slot_nbytes} bytes does not hold one position of one request "
                f"of one layer ({geometry.region_nbytes(smallest)} bytes)"
            )

    def positions(self, step: int) -> Span:
        """Return the positions whose keys and values a step adds."""
        if step == 0:
            return Span(0, self.input_len)
        return Span(self.input_len + step - 1, self.input_len + step)

    def layer_nbytes(self, step: int) -> int:
        """Return the packed bytes of one layer of one step."""
        return self.geometry.region_nbytes(self._layer(0, step))

    def step_nbytes(self, step: int) -> int:
        """Return the packed bytes of one step."""
        return self.region.layers.size * self.layer_nbytes(step)

    def step_offset(self, step: int) -> int:
        """Return the bytes before a step in the packed stream."""
        return self.step_nbytes(0) + (step - 1) * self.step_nbytes(1) if step else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stream: P + T − 1 positions."""
        return self.geometry.region_nbytes(self.region)

    def chunks(self, level: Level, step: int) -> Iterator[Chunk]:
        """Yield the chunks of one step in the order in which they move.

        Unbuffered levels move a step's extents one by one; the step as a whole is their chunk.
        """
        index = self._chunks_before(level, step)
        offset = self.step_offset(step)
        for region in self._regions(level, step):
            nbytes = self.geometry.region_nbytes(region)
            yield Chunk(index=index, step=step, region=region, offset=offset, nbytes=nbytes)
            index += 1
            offset += nbytes

    def atoms(self, step: int) -> list[Region]:
        """Return a step's atoms in packed order."""
        cuts = self._cut_layer(step)
        return [atom.layer(layer) for layer in range(*self.region.layers) for atom in cuts]

    def extents(self, step: int) -> Iterator[Extents]:
        """Yield the extents of a step's atoms, K and V of each, in packed order."""
        for atom in self.atoms(step):
            for kv in BOTH:
                yield self.geometry.extents(kv, atom, self.other)

    def all_chunks(self, level: Level) -> Iterator[Chunk]:
        """Yield the chunks of the whole stream in the order in which they move."""
        for step in range(self.steps + 1):
            yield from self.chunks(level, step)

    def count(self, level: Level) -> int:
        """Return the number of chunks of the whole stream."""
        return self._chunks_before(level, self.steps + 1)

    def _chunks_before(self, level: Level, step: int) -> int:
        if step == 0:
            return 0
        # All decode steps are cut alike, so chunks before a step are counted, not listed.
        per_token = len(self._regions(level, 1)) if self.steps else 0
        return len(self._regions(level, 0)) + (step - 1) * per_token

    def _layer(self, layer: int, step: int) -> Region:
        """Return one layer of one step; ``layer`` counts from the region's first."""
        region = replace(self.region, positions=self.positions(step))
        return region.layer(self.region.layers.start + layer)

    def _regions(self, level: Level, step: int) -> list[Region]:
        whole = replace(self.region, positions=self.positions(step))
        if not level.buffered:
            return [whole]
        # A layer that does not fit a slot is cut further, at every level in the same way: so the
        # packed stream is the same at every level.
        if self.layer_nbytes(step) > self.slot_nbytes:
            return self.atoms(step)
        if level.layerwise and step == 0:
            return [whole.layer(layer) for layer in range(*whole.layers)]
        # Otherwise as many whole layers as a slot holds: fewer chunks cost fewer messages.
        together = max(1, self.slot_nbytes // self.layer_nbytes(step))
        return [replace(whole, layers=layers) for layers in whole.layers.cut(together)]

    def _cut_layer(self, step: int) -> list[Region]:
        """Cut the first layer of a step so that a piece fits a slot; all layers are cut alike."""
        layer = self._layer(0, step)
        per_request = self.geometry.region_nbytes(layer) // layer.requests.size
        if per_request <= self.slot_nbytes:
            together = self.slot_nbytes // per_request
            return [replace(layer, requests=cut) for cut in layer.requests.cut(together)]
        positions = self.slot_nbytes // (per_request // layer.positions.size)
        return [
            replace(layer, requests=request, positions=cut)
            for request in layer.requests.cut(1)
            for cut in layer.positions.cut(positions)
        ]
