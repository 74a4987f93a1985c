"""The runs of a cache by their addresses: for destinations that move them from where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dejavubench.dejavulib.kvcache import BOTH, KVCache, Runs
from dejavubench.dejavulib.schedule import StreamSchedule

ADDRESSES_KEPT = 200_000
"""Runs whose addresses are computed once and kept: some 30 MB of Python objects for each microbatch and naive level."""


class Bases(NamedTuple):
    """Where a cache's K and V begin, be it in this process or in another."""

    k: int
    v: int

    @classmethod
    def of(cls, cache: KVCache) -> Bases:
        return cls(*(cache.tensor(kv).data_ptr() for kv in BOTH))


def run_addresses(bases: Bases, runs: Iterable[Runs]) -> tuple[np.ndarray, np.ndarray]:
    """Address and bytes of each run."""
    starts, sizes = [], []
    for each in runs:
        starts.append(each.offsets + (bases.k if each.kv == "k" else bases.v))
        sizes.append(np.full(len(each.offsets), each.nbytes))
    return np.concatenate(starts), np.concatenate(sizes)


class RunAddresses:
    """The runs of a stream's steps as (address, bytes) in packed order: the naive loop does nothing but move them.

    The counterpart of :class:`~.copies.RunViews`: those of the first steps are kept, up to :data:`ADDRESSES_KEPT` of
    them; the others are computed when they are needed, or :meth:`prepare` is told ahead of time.
    """

    def __init__(self, cache: KVCache | Bases, schedule: StreamSchedule) -> None:
        self._bases = Bases.of(cache) if isinstance(cache, KVCache) else cache
        self._schedule = schedule
        self._kept: list[list[tuple[int, int]]] = []
        self._ahead: dict[int, list[tuple[int, int]]] = {}
        count = 0
        while len(self._kept) <= schedule.steps and count < ADDRESSES_KEPT:
            self._kept.append(self._find(len(self._kept)))
            count += len(self._kept[-1])

    def prepare(self, step: int) -> None:
        """Compute the addresses of a step that will be asked for next."""
        if len(self._kept) <= step <= self._schedule.steps:
            self._ahead = {step: self._find(step)}

    def of(self, step: int) -> list[tuple[int, int]]:
        if step < len(self._kept):
            return self._kept[step]
        return self._ahead.get(step) or self._find(step)

    def _find(self, step: int) -> list[tuple[int, int]]:
        starts, sizes = run_addresses(self._bases, self._schedule.runs(step))
        return list(zip(starts.tolist(), sizes.tolist(), strict=True))
