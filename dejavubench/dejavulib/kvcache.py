"""Geometry of a KV cache: layouts, regions and runs. Nothing is moved here and no model is known.

A worker's cache holds keys and values of L layers, B requests, H heads, S positions and D elements a
head, all local to the worker. Which of these axes are neighbours in memory is the *layout*:

======  =======================  ===================  =========================
name    K                        V                    used by
======  =======================  ===================  =========================
``ft``  ``[L, B, H, D/x, S, x]``  ``[L, B, H, S, D]``  FasterTransformer (x = 16 bytes / element size)
``hnd`` ``[L, B, H, S, D]``       same                 torch SDPA
``nhd`` ``[L, B, S, H, D]``       same                 flash-attention
======  =======================  ===================  =========================

Importing this module needs numpy alone; torch is imported when a cache is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

KV = Literal["k", "v"]
BOTH: tuple[KV, KV] = ("k", "v")

FT_VECTOR_BYTES = 16
"""FasterTransformer keeps 16 bytes of one key together, so that a thread loads them at once."""


class KVLayout(StrEnum):
    FT = "ft"
    HND = "hnd"
    NHD = "nhd"


class Span(tuple[int, int]):
    """A half-open interval ``[start, stop)`` along one axis."""

    def __new__(cls, start: int, stop: int) -> Span:
        if not 0 <= start <= stop:
            raise ValueError(f"not an interval: [{start}, {stop})")
        return super().__new__(cls, (start, stop))

    def __getnewargs__(self) -> tuple[int, int]:
        """What it is made of anew in another process."""
        return self[0], self[1]

    @property
    def start(self) -> int:
        return self[0]

    @property
    def stop(self) -> int:
        return self[1]

    @property
    def size(self) -> int:
        return self[1] - self[0]

    @property
    def slice(self) -> slice:
        return slice(self[0], self[1])

    def shifted(self, by: int) -> Span:
        return Span(self[0] + by, self[1] + by)

    def scaled(self, by: int) -> Span:
        """The same interval where each step is ``by`` smaller ones."""
        return Span(self[0] * by, self[1] * by)

    def __and__(self, other: Span) -> Span:
        start = max(self[0], other[0])
        return Span(start, max(start, min(self[1], other[1])))

    def cut(self, most: int) -> Iterator[Span]:
        """The interval in consecutive pieces of at most ``most``."""
        for start in range(self[0], self[1], most):
            yield Span(start, min(start + most, self[1]))


@dataclass(frozen=True)
class Region:
    """Which layers × requests × heads × positions of a cache; keys and values of each."""

    layers: Span
    requests: Span
    heads: Span
    positions: Span

    def __and__(self, other: Region) -> Region:
        return Region(
            self.layers & other.layers,
            self.requests & other.requests,
            self.heads & other.heads,
            self.positions & other.positions,
        )

    @property
    def tokens_heads(self) -> int:
        """How many head vectors of one kind (K or V) it holds."""
        return self.layers.size * self.requests.size * self.heads.size * self.positions.size

    def layer(self, layer: int) -> Region:
        return replace(self, layers=Span(layer, layer + 1))


@dataclass(frozen=True)
class Runs:
    """The maximal contiguous pieces of one layer's K or V within a region, in packed order.

    ``offsets`` are in bytes from the beginning of the K (or V) tensor; every run has ``nbytes`` bytes.
    """

    kv: KV
    offsets: np.ndarray
    nbytes: int

    @property
    def total(self) -> int:
        return len(self.offsets) * self.nbytes


@dataclass(frozen=True)
class Rows:
    """A region of the K or V tensor, in bytes: contiguous rows of ``nbytes``, the first at ``first``.

    ``axes`` count them, each as (count, stride); the outermost, the layers, comes first.
    """

    first: int
    axes: tuple[tuple[int, int], ...]
    nbytes: int


@dataclass(frozen=True)
class KVGeometry:
    """The sizes of one worker's cache and the order of its axes.

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
        sizes = (
            self.layers,
            self.requests,
            self.heads,
            self.positions,
            self.head_size,
            self.itemsize,
        )
        if min(sizes) < 1:
            raise ValueError(f"every size of a KV cache must be positive: {self}")
        if self.layout is KVLayout.FT and (self.head_size * self.itemsize) % FT_VECTOR_BYTES:
            raise ValueError(
                f"layout ft keeps {FT_VECTOR_BYTES} bytes of a key together: a head of {self.head_size} elements "
                f"of {self.itemsize} bytes is not a multiple"
            )

    @property
    def vector(self) -> int:
        """x of the ``ft`` layout: elements in 16 bytes."""
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
        return Region(
            Span(0, self.layers),
            Span(0, self.requests),
            Span(0, self.heads),
            Span(0, self.positions),
        )

    def region(
        self,
        layers: Span | None = None,
        requests: Span | None = None,
        heads: Span | None = None,
        positions: Span | None = None,
    ) -> Region:
        """A region of this cache; an axis that is not named is taken whole.

        Raises:
            ValueError: an interval reaches beyond the cache.
        """
        whole = self.whole
        region = Region(
            whole.layers if layers is None else layers,
            whole.requests if requests is None else requests,
            whole.heads if heads is None else heads,
            whole.positions if positions is None else positions,
        )
        if region & whole != region:
            raise ValueError(f"{region} is not inside a cache of {self}")
        return region

    def region_nbytes(self, region: Region) -> int:
        """Bytes of a region, K and V."""
        return 2 * region.tokens_heads * self.head_size * self.itemsize

    def shape(self, kv: KV) -> tuple[int, ...]:
        """Shape of the K or V tensor, outermost axis first."""
        layers, requests, heads, positions, size = (
            self.layers,
            self.requests,
            self.heads,
            self.positions,
            self.head_size,
        )
        if self.layout is KVLayout.NHD:
            return (layers, requests, positions, heads, size)
        if self.layout is KVLayout.FT and kv == "k":
            return (layers, requests, heads, size // self.vector, positions, self.vector)
        return (layers, requests, heads, positions, size)

    def strides(self, kv: KV) -> tuple[int, ...]:
        """Bytes from one to the next along each axis of the K or V tensor."""
        shape = self.shape(kv)
        return tuple(prod(shape[axis + 1 :]) * self.itemsize for axis in range(len(shape)))

    def positions_axis(self, kv: KV) -> int:
        """Which axis of the K or V tensor counts positions."""
        return (
            2
            if self.layout is KVLayout.NHD
            else 4
            if self.layout is KVLayout.FT and kv == "k"
            else 3
        )

    def index(self, kv: KV, region: Region) -> tuple[slice, ...]:
        """The slices that cut ``region`` out of the K or V tensor."""
        layers, requests, heads, positions = (
            region.layers.slice,
            region.requests.slice,
            region.heads.slice,
            region.positions.slice,
        )
        if self.layout is KVLayout.NHD:
            return (layers, requests, positions, heads, slice(None))
        if self.layout is KVLayout.FT and kv == "k":
            return (layers, requests, heads, slice(None), positions, slice(None))
        return (layers, requests, heads, positions, slice(None))

    def piece_shape(self, kv: KV, region: Region) -> tuple[int, ...]:
        """Shape of ``region`` cut out of the K or V tensor."""
        return tuple(
            len(range(*cut.indices(size)))
            for cut, size in zip(self.index(kv, region), self.shape(kv), strict=True)
        )

    def runs(self, kv: KV, region: Region, other: KVGeometry | None = None) -> Runs:
        """The maximal contiguous pieces of a region of *one* layer.

        Args:
            other: of another cache, of the same layout, where a region of the same sizes is to come: the pieces are
                then those that are contiguous in both.

        Raises:
            ValueError: the region spans several layers (their packed order puts K and V in between).
        """
        if region.layers.size != 1:
            raise ValueError("runs are those of one layer")
        rows = self.rows(kv, region, other)
        offsets = np.full(1, rows.first, dtype=np.int64)
        for count, stride in rows.axes:
            offsets = (offsets[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
        return Runs(kv, offsets, rows.nbytes)

    def rows(self, kv: KV, region: Region, other: KVGeometry | None = None) -> Rows:
        """How a region lies in the K or V tensor: what is contiguous (in ``other`` too), and the axes that count it."""
        shape, beside = self.shape(kv), (other or self).shape(kv)
        cuts = [
            range(*cut.indices(size))
            for cut, size in zip(self.index(kv, region), shape, strict=True)
        ]
        strides = self.strides(kv)
        inner = len(shape) - 1  # the outermost axis that still belongs to the contiguous piece
        while inner > 1 and len(cuts[inner]) == shape[inner] == beside[inner]:
            inner -= 1
        axes = tuple(
            (len(cut), stride) for cut, stride in zip(cuts[:inner], strides[:inner], strict=True)
        )
        first = sum(cut.start * stride for cut, stride in zip(cuts, strides, strict=True))
        return Rows(first, axes, len(cuts[inner]) * strides[inner])

    def locate(self, kv: KV, flat: int) -> tuple[int, int, int, int, int]:
        """(layer, request, head, position, element of the head) of the ``flat``-th element of K or V."""
        at = [int(i) for i in np.unravel_index(flat, self.shape(kv))]
        if self.layout is KVLayout.NHD:
            layer, request, position, head, element = at
        elif self.layout is KVLayout.FT and kv == "k":
            layer, request, head, vector, position, within = at
            element = vector * self.vector + within
        else:
            layer, request, head, position, element = at
        return layer, request, head, position, element


class KVCache:
    """A static cache: one tensor for K and one for V, in the geometry's layout.

    The attention reads these tensors and streaming moves them; there is no second copy.

    Attributes:
        geometry: sizes and layout.
        k, v: contiguous tensors of ``geometry.shape("k")`` and ``geometry.shape("v")``.
    """

    def __init__(self, geometry: KVGeometry, k: torch.Tensor, v: torch.Tensor) -> None:
        for kv, tensor in zip(BOTH, (k, v), strict=True):
            if tuple(tensor.shape) != geometry.shape(kv) or not tensor.is_contiguous():
                raise ValueError(
                    f"{kv} must be a contiguous tensor of shape {geometry.shape(kv)}, not {tensor.shape}"
                )
            if tensor.element_size() != geometry.itemsize:
                raise ValueError(
                    f"{kv} has elements of {tensor.element_size()} bytes, not {geometry.itemsize}"
                )
        self.geometry = geometry
        self.k = k
        self.v = v

    @classmethod
    def allocate(
        cls, geometry: KVGeometry, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> KVCache:
        """A cache of zeros."""
        import torch

        k, v = (torch.zeros(geometry.shape(kv), dtype=dtype, device=device) for kv in BOTH)
        return cls(geometry, k, v)

    def tensor(self, kv: KV) -> torch.Tensor:
        return self.k if kv == "k" else self.v

    def piece(self, kv: KV, region: Region) -> torch.Tensor:
        """A view of ``region``, of ``geometry.piece_shape(kv, region)``."""
        return self.tensor(kv)[self.geometry.index(kv, region)]

    def bytes(self, kv: KV) -> torch.Tensor:
        """The whole K or V tensor as a flat view of uint8."""
        import torch

        return self.tensor(kv).view(-1).view(torch.uint8)

    def fill(self, pattern: int) -> None:
        """Set every byte to ``pattern``, so that what is later found unchanged was never written."""
        for kv in BOTH:
            self.bytes(kv).fill_(pattern)

    def store(self, layer: int, position: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write keys and values of n new positions, each of shape [B, H, n, D], beginning at ``position``."""
        stop = position + k.shape[2]
        match self.geometry.layout:
            case KVLayout.NHD:
                self.k[layer, :, position:stop] = k.transpose(1, 2)
                self.v[layer, :, position:stop] = v.transpose(1, 2)
            case KVLayout.HND:
                self.k[layer, :, :, position:stop] = k
                self.v[layer, :, :, position:stop] = v
            case KVLayout.FT:
                vectors = k.unflatten(-1, (-1, self.geometry.vector)).transpose(
                    2, 3
                )  # [B, H, D/x, n, x]
                self.k[layer, :, :, :, position:stop] = vectors
                self.v[layer, :, :, position:stop] = v

    def keys(self, layer: int, stop: int) -> torch.Tensor:
        """Keys of positions ``[0, stop)`` as [B, H, stop, D]: a view, but in ``ft`` a transient copy."""
        match self.geometry.layout:
            case KVLayout.NHD:
                return self.k[layer, :, :stop].transpose(1, 2)
            case KVLayout.HND:
                return self.k[layer, :, :, :stop]
            case KVLayout.FT:
                return self.k[layer, :, :, :, :stop].transpose(2, 3).flatten(-2)

    def values(self, layer: int, stop: int) -> torch.Tensor:
        """Values of positions ``[0, stop)`` as a view [B, H, stop, D]."""
        if self.geometry.layout is KVLayout.NHD:
            return self.v[layer, :, :stop].transpose(1, 2)
        return self.v[layer, :, :, :stop]
