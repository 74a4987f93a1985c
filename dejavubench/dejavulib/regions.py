"""Regions of a KV cache: intervals of its layers, requests, heads and positions.

They count what a worker's cache holds and know neither sizes nor layout. This module needs nothing
but Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


class Span(tuple[int, int]):
    """A half-open interval ``[start, stop)`` along one axis.

    Raises:
        ValueError: not 0 ≤ start ≤ stop.
    """

    def __new__(cls, start: int, stop: int) -> Span:
        """Return the interval ``[start, stop)``; ValueError unless 0 ≤ start ≤ stop."""
        if not 0 <= start <= stop:
            raise ValueError(f"not an interval: [{start}, {stop})")
        return super().__new__(cls, (start, stop))

    def __getnewargs__(self) -> tuple[int, int]:
        """Return the arguments that another process makes it from."""
        return self[0], self[1]

    @property
    def start(self) -> int:
        """First index in the interval."""
        return self[0]

    @property
    def stop(self) -> int:
        """First index behind the interval."""
        return self[1]

    @property
    def size(self) -> int:
        """Number of indices in the interval; 0 if it is empty."""
        return self[1] - self[0]

    @property
    def slice(self) -> slice:
        """The interval as a slice that cuts it out of an axis."""
        return slice(self[0], self[1])

    def shift(self, offset: int) -> Span:
        """Return the interval moved by ``offset``."""
        return Span(self[0] + offset, self[1] + offset)

    def scale(self, factor: int) -> Span:
        """Return the interval counted in steps ``factor`` times as small."""
        return Span(self[0] * factor, self[1] * factor)

    def __and__(self, other: Span) -> Span:
        start = max(self[0], other[0])  # intervals that do not meet give an empty one there
        return Span(start, max(start, min(self[1], other[1])))

    def cut(self, most: int) -> Iterator[Span]:
        """Yield consecutive pieces of at most ``most``."""
        for start in range(self[0], self[1], most):
            yield Span(start, min(start + most, self[1]))


@dataclass(frozen=True)
class Region:
    """Layers × requests × heads × positions of a cache; keys and values of each."""

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
        """Number of head vectors of one kind (K or V) in it."""
        return self.layers.size * self.requests.size * self.heads.size * self.positions.size

    def layer(self, layer: int) -> Region:
        """Return the part of it in one layer of the cache."""
        return replace(self, layers=Span(layer, layer + 1))
