"""Times of single extents at the naive levels: a diagnosis, because it slows the loop it looks at.

A loop that moves extents one by one asks for the next extent when it is through with one. So the
time of an extent is the time until the next one is asked for. At level 0 the extent is then
complete; at ``0-batched`` it is issued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

from . import chunk_times
from .extents import StepExtents

MOST_SAMPLES = 1_000
"""Extents of one microbatch that are timed singly."""


class ExtentSample(NamedTuple):
    """One extent: its chunk's step, its bytes, and the time that it took."""

    step: int
    nbytes: int
    ns: int


class ExtentSampler:
    """Times some of the extents that one manager's helper moves.

    Attributes:
        interval: 1 extent in ``interval`` is timed.
        moved_count: number of extents moved so far.
        samples: those that were timed.
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, extent_count: int, most_sample_count: int = MOST_SAMPLES) -> None:
        """Begin anew, for a microbatch of ``extent_count`` extents."""
        self.interval = max(
            1, -(-extent_count // most_sample_count)
        )  # rounded up: never more samples
        self.moved_count = 0
        self.samples: list[ExtentSample] = []

    def sample(self, extents: StepExtents) -> StepExtents:
        """Return the same extents of every step, some of them timed."""
        return _SampledSteps(extents, self)


class _SampledSteps:
    """The extents of a stream's steps, which a sampler looks at."""

    def __init__(self, extents: StepExtents, sampler: ExtentSampler) -> None:
        self._extents = extents
        self._sampler = sampler

    def prepare(self, step: int) -> None:
        self._extents.prepare(step)

    def of_step(self, step: int) -> Sequence[Any]:
        extents = self._extents.of_step(step)
        first_number = self._sampler.moved_count
        self._sampler.moved_count += len(extents)
        return _Sampled(extents, self._sampler, step, first_number)


class _Sampled(Sequence[Any]):
    """Extents of which some are timed. Only iterating over a part of them, a block, takes times."""

    def __init__(
        self,
        extents: Sequence[Any],
        sampler: ExtentSampler,
        step: int,
        first_number: int,
        block: bool = False,
    ) -> None:
        self._extents = extents
        self._sampler = sampler
        self._step = step
        self._first_number = first_number
        self._block = block

    def __len__(self) -> int:
        return len(self._extents)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> _Sampled: ...
    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            return self._extents[index]
        # The loop cuts extents into blocks before it goes through them. A block keeps the number of
        # its first extent, so that every n-th one of the whole microbatch is timed.
        first_number = self._first_number + index.indices(len(self))[0]
        return _Sampled(self._extents[index], self._sampler, self._step, first_number, block=True)

    def __iter__(self) -> Iterator[Any]:
        """Yield the extents; every n-th one is timed until the loop asks for the next."""
        if not self._block:
            yield from self._extents
            return
        sample_interval = self._sampler.interval
        samples = self._sampler.samples
        for extent_number, extent in enumerate(self._extents, self._first_number):
            if extent_number % sample_interval:
                yield extent
                continue
            began_ns = chunk_times.now()
            yield extent  # comes back when the loop asks for the next one
            elapsed_ns = chunk_times.now() - began_ns
            samples.append(ExtentSample(self._step, _count_nbytes(extent), elapsed_ns))


def _count_nbytes(extent: Any) -> int:
    """Return the bytes of an extent, a view or (address, bytes)."""
    return int(extent[1]) if isinstance(extent, tuple) else len(extent)
