"""Geometry of a KV cache: its layout, and the extents of a region. It moves nothing.

A worker's cache holds keys and values of L layers, B requests, H heads, S positions and D elements
per head, all local to the worker. The *layout* says which of these axes are neighbours in memory:

======  ========================  ===================  =========================
name    K                         V                    used by
======  ========================  ===================  =========================
``ft``  ``[L, B, H, D/x, S, x]``  ``[L, B, H, S, D]``  FasterTransformer
``hnd`` ``[L, B, H, S, D]``       same                 torch SDPA
``nhd`` ``[L, B, S, H, D]``       same                 flash-attention
======  ========================  ===================  =========================

In ``ft``, x elements have 16 bytes. An *extent* is a maximal contiguous piece of a region. This
module needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from .regions import Region, Span

KV = Literal["k", "v"]
BOTH: tuple[KV, KV] = ("k", "v")
"""Both kinds, in packed order."""

FT_VECTOR_BYTES = 16
"""FasterTransformer keeps 16 bytes of one key together, so that a thread loads them at once."""


class KVLayout(StrEnum):
    """Order of a cache's axes in memory, as the table above shows it."""

    FT = "ft"
    HND = "hnd"
    NHD = "nhd"


@dataclass(frozen=True)
class Extents:
    """The maximal contiguous pieces of one layer's K or V within a region, in packed order.

    Attributes:
        offsets: int64, bytes from the beginning of the K (or V) tensor.
        nbytes: size of every extent.
    """

    kv: KV
    offsets: np.ndarray
    nbytes: int

    @property
    def total(self) -> int:
        """Bytes of all extents together."""
        return len(self.offsets) * self.nbytes


@dataclass(frozen=True)
class Rows:
    """A region of the K or V tensor as contiguous rows. All numbers are bytes.

    Attributes:
        first_offset: offset of the first row.
        axes: (count, stride) of each axis that counts rows; the outermost, the layers, first.
        nbytes: size of a row.
    """

    first_offset: int
    axes: tuple[tuple[int, int], ...]
    nbytes: int


@dataclass(frozen=True)
class KVGeometry:
    """The sizes of one worker's cache and the order of its axes.

    Attributes:
        layers, requests, heads, positions, head_size: L, B, H, S and D.
        itemsize: bytes of an element.

    Raises:
        ValueError: a size is not positive, or ``ft`` cannot cut a head into 16-byte vectors.
    """

    layers: int
    requests: int
    heads: int
    positions: int
    head_size: int
    itemsize: int
    layout: KVLayout = KVLayout.HND

    def __post_init__(self) -> None:
        counts = (self.layers, self.requests, self.heads, self.positions)
        if min(*counts, self.head_size, self.itemsize) < 1:
            raise ValueError(f"every size of a KV cache must be positive: {self}")
        if self.layout is KVLayout.FT and (self.head_size * self.itemsize) % FT_VECTOR_BYTES:
            raise ValueError(
                f"layout ft keeps {FT_VECTOR_BYTES} bytes of a key together: a head of "
                f"{self.head_size} elements of {self.itemsize} bytes is not a multiple"
            )

    @property
    def vector(self) -> int:
        """Elements in 16 bytes: x of the ``ft`` layout."""
        return FT_VECTOR_BYTES // self.itemsize

    @property
    def token_nbytes(self) -> int:
        """Bytes of one position of one request: K and V of all layers and heads."""
        return 2 * self.layers * self.heads * self.head_size * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache, K and V."""
        return self.requests * self.positions * self.token_nbytes

    @cached_property
    def whole(self) -> Region:
        """The region of the whole cache."""
        sizes = (self.layers, self.requests, self.heads, self.positions)
        return Region(*(Span(0, size) for size in sizes))

    def region(
        self,
        layers: Span | None = None,
        requests: Span | None = None,
        heads: Span | None = None,
        positions: Span | None = None,
    ) -> Region:
        """Return a region of this cache; an axis that is not named is taken whole.

        Raises:
            ValueError: an interval reaches beyond the cache.
        """
        full_region = self.whole
        region = Region(
            full_region.layers if layers is None else layers,
            full_region.requests if requests is None else requests,
            full_region.heads if heads is None else heads,
            full_region.positions if positions is None else positions,
        )
        if region & full_region != region:
            raise ValueError(f"{region} is not inside a cache of {self}")
        return region

    def region_nbytes(self, region: Region) -> int:
        """Return the bytes of a region, K and V."""
        return 2 * region.tokens_heads * self.head_size * self.itemsize

    def shape(self, kv: KV) -> tuple[int, ...]:
        """Return the shape of the K or V tensor, outermost axis first."""
        L, B, H, S, D = (  # noqa: N806 - the letters of the table above
            self.layers,
            self.requests,
            self.heads,
            self.positions,
            self.head_size,
        )
        if self.layout is KVLayout.NHD:
            return (L, B, S, H, D)
        if self.layout is KVLayout.FT and kv == "k":
            return (L, B, H, D // self.vector, S, self.vector)
        return (L, B, H, S, D)

    def strides(self, kv: KV) -> tuple[int, ...]:
        """Return the bytes from one to the next along each axis of the K or V tensor."""
        # The tensors are contiguous: an axis strides over all that lies behind it.
        shape = self.shape(kv)
        return tuple(prod(shape[axis + 1 :]) * self.itemsize for axis in range(len(shape)))

    def positions_axis(self, kv: KV) -> int:
        """Return the number of the K or V tensor's axis that counts positions."""
        if self.layout is KVLayout.NHD:
            return 2
        return 4 if self.layout is KVLayout.FT and kv == "k" else 3

    def index(self, kv: KV, region: Region) -> tuple[slice, ...]:
        """Return the slices that cut ``region`` out of the K or V tensor."""
        layers = region.layers.slice
        requests = region.requests.slice
        heads = region.heads.slice
        positions = region.positions.slice
        if self.layout is KVLayout.NHD:
            return (layers, requests, positions, heads, slice(None))
        if self.layout is KVLayout.FT and kv == "k":
            return (layers, requests, heads, slice(None), positions, slice(None))
        return (layers, requests, heads, positions, slice(None))

    def piece_shape(self, kv: KV, region: Region) -> tuple[int, ...]:
        """Return the shape of ``region`` cut out of the K or V tensor."""
        return tuple(
            len(range(*cut.indices(size)))
            for cut, size in zip(self.index(kv, region), self.shape(kv), strict=True)
        )

    def extents(self, kv: KV, region: Region, other_geometry: KVGeometry | None = None) -> Extents:
        """Return the extents of a region of *one* layer.

        Args:
            other_geometry: of another cache of the same layout that holds a region of the same
                sizes. The extents are then those that are contiguous in both.

        Raises:
            ValueError: the region spans several layers. In packed order, K and V lie in between.
        """
        if region.layers.size != 1:
            raise ValueError("extents are those of one layer")
        rows = self.rows(kv, region, other_geometry)
        # int64, as a cache may have more than 4 GiB. Each axis multiplies the offsets, outermost
        # first: that is the packed order.
        offsets = np.full(1, rows.first_offset, dtype=np.int64)
        for count, stride in rows.axes:
            offsets = (offsets[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
        return Extents(kv, offsets, rows.nbytes)

    def count_extents(self, region: Region, other_geometry: KVGeometry | None = None) -> int:
        """Return the number of extents of a region of any layers, K and V."""
        rows = (self.rows(kv, region, other_geometry) for kv in BOTH)
        return sum(prod(count for count, _ in row.axes) for row in rows)

    def rows(self, kv: KV, region: Region, other_geometry: KVGeometry | None = None) -> Rows:
        """Return how a region lies in the K or V tensor, in rows as long as possible.

        Args:
            other_geometry: another cache's, as in :meth:`extents`.
        """
        shape = self.shape(kv)
        other_shape = (other_geometry or self).shape(kv)
        cuts = [
            range(*cut.indices(size))
            for cut, size in zip(self.index(kv, region), shape, strict=True)
        ]
        strides = self.strides(kv)
        # Axes that are taken whole in both caches merge into the row. The layers never do: between
        # two layers of the packed form lies the other kind, K or V.
        row_axis = len(shape) - 1
        while row_axis > 1 and len(cuts[row_axis]) == shape[row_axis] == other_shape[row_axis]:
            row_axis -= 1
        axes = tuple(
            (len(cut), stride)
            for cut, stride in zip(cuts[:row_axis], strides[:row_axis], strict=True)
        )
        # Axes inside the row start at 0, unless the row's own axis is cut.
        first_offset = sum(cut.start * stride for cut, stride in zip(cuts, strides, strict=True))
        return Rows(first_offset, axes, len(cuts[row_axis]) * strides[row_axis])

    def locate(self, kv: KV, flat: int) -> tuple[int, int, int, int, int]:
        """Return (layer, request, head, position, element of the head) of an element of K or V.

        Args:
            flat: number of the element in the whole tensor.
        """
        index = [int(axis_index) for axis_index in np.unravel_index(flat, self.shape(kv))]
        if self.layout is KVLayout.NHD:
            layer, request, position, head, element = index
        elif self.layout is KVLayout.FT and kv == "k":
            # An element of a head is in one of D/x vectors, which lie S vectors apart.
            layer, request, head, vector, position, vector_element = index
            element = vector * self.vector + vector_element
        else:
            layer, request, head, position, element = index
        return layer, request, head, position, element
