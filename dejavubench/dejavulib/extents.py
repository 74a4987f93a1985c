"""The extents of a stream's steps, as views of host memory or as addresses.

They are found beforehand as far as memory allows, so that the naive loop does nothing but move
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .geometry import BOTH, Extents
from .kv_cache import KVCache
from .schedule import StreamSchedule

VIEWS_KEPT = 200_000
"""Views that are cut once and kept: some 40 MB of objects per microbatch and naive level."""

ADDRESSES_KEPT = 200_000
"""Addresses that are computed once and kept: some 30 MB of objects, likewise."""


class StepExtents(Protocol):
    """The extents of a stream's steps."""

    def prepare(self, step: int) -> None:
        """Find the extents of a step ahead of time."""

    def of_step(self, step: int) -> Sequence[Any]:
        """Return the extents of a step, in packed order."""


# ---- as views of host memory ----


def cut_extent_views(cache: KVCache, extents: Iterable[Extents]) -> list[memoryview]:
    """Return extents as views of the cache's own memory (CPU only)."""
    memory = {kv: cache.bytes(kv).numpy().data for kv in BOTH}
    views = []
    for layer_extents in extents:
        tensor_bytes = memory[layer_extents.kv]
        nbytes = layer_extents.nbytes
        views += [tensor_bytes[start : start + nbytes] for start in layer_extents.offsets.tolist()]
    return views


class ExtentViews:
    """The extents of a stream's steps as views of a cache in host memory.

    The views of the first steps are cut now and kept. Those of later steps are cut when they are
    needed, or by :meth:`prepare`.

    Args:
        most_kept: number of views from which on no further step is kept.
    """

    def __init__(
        self, cache: KVCache, schedule: StreamSchedule, most_kept: int = VIEWS_KEPT
    ) -> None:
        self._cache = cache
        self._schedule = schedule
        self._kept_extents: list[list[memoryview]] = []
        self._prepared_extents: dict[int, list[memoryview]] = {}
        count = 0
        while len(self._kept_extents) <= schedule.steps and count < most_kept:
            self._kept_extents.append(self._cut(len(self._kept_extents)))
            count += len(self._kept_extents[-1])

    def prepare(self, step: int) -> None:
        """Cut the views of a step that is needed next."""
        if len(self._kept_extents) <= step <= self._schedule.steps:
            self._prepared_extents = {step: self._cut(step)}

    def of_step(self, step: int) -> list[memoryview]:
        """Return the views of a step, in packed order."""
        if step < len(self._kept_extents):
            return self._kept_extents[step]
        return self._prepared_extents.get(step) or self._cut(step)

    def _cut(self, step: int) -> list[memoryview]:
        return cut_extent_views(self._cache, self._schedule.extents(step))


# ---- as addresses ----


class BaseAddresses(NamedTuple):
    """Addresses where a cache's K and V begin, in this process or in another."""

    k: int
    v: int

    @classmethod
    def of_cache(cls, cache: KVCache) -> BaseAddresses:
        """Return the addresses of a cache of this process."""
        return cls(*(cache.tensor(kv).data_ptr() for kv in BOTH))


def find_extent_addresses(
    bases: BaseAddresses, extents: Iterable[Extents]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the address and the bytes of each extent, two int64 arrays."""
    # Whole arrays: a Python loop over the extents would cost more than moving them.
    starts = []
    sizes = []
    for layer_extents in extents:
        starts.append(layer_extents.offsets + (bases.k if layer_extents.kv == "k" else bases.v))
        sizes.append(np.full(len(layer_extents.offsets), layer_extents.nbytes))
    if not starts:  # a step at whose end nothing leaves
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(starts), np.concatenate(sizes)


class ExtentAddresses:
    """The extents of a stream's steps as (address, bytes).

    The addresses of the first steps are computed now and kept. Those of later steps are computed
    when they are needed, or by :meth:`prepare`.

    Args:
        most_kept: number of addresses from which on no further step is kept.
    """

    def __init__(
        self,
        cache: KVCache | BaseAddresses,
        schedule: StreamSchedule,
        most_kept: int = ADDRESSES_KEPT,
    ) -> None:
        self._bases = BaseAddresses.of_cache(cache) if isinstance(cache, KVCache) else cache
        self._schedule = schedule
        self._kept_extents: list[list[tuple[int, int]]] = []
        self._prepared_extents: dict[int, list[tuple[int, int]]] = {}
        count = 0
        while len(self._kept_extents) <= schedule.steps and count < most_kept:
            self._kept_extents.append(self._find(len(self._kept_extents)))
            count += len(self._kept_extents[-1])

    def prepare(self, step: int) -> None:
        """Compute the addresses of a step that is needed next."""
        if len(self._kept_extents) <= step <= self._schedule.steps:
            self._prepared_extents = {step: self._find(step)}

    def of_step(self, step: int) -> list[tuple[int, int]]:
        """Return (address, bytes) of each extent of a step, in packed order."""
        if step < len(self._kept_extents):
            return self._kept_extents[step]
        return self._prepared_extents.get(step) or self._find(step)

    def _find(self, step: int) -> list[tuple[int, int]]:
        starts, sizes = find_extent_addresses(self._bases, self._schedule.extents(step))
        return list(zip(starts.tolist(), sizes.tolist(), strict=True))
