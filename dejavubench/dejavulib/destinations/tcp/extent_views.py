"""Places of a step's bytes in a sink's cache, extent by extent, in memory that does not grow.

A source may announce a cache with as many extents as bytes. So no list of all extents is made:
their offsets are computed block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ...geometry import BOTH, Rows
from ...kv_cache import KVCache
from ...regions import Region

EXTENTS_PER_BLOCK = 1024
"""Extents whose offsets are computed at a time; 8 bytes each, and 32 as Python's integers."""


def walk_extents(
    cache: KVCache, atoms: Iterator[Region], at_once: int = EXTENTS_PER_BLOCK
) -> Iterator[memoryview]:
    """Yield the extents of some regions as views of the cache: K, then V of each, in packed order.

    Args:
        atoms: regions of one layer each.
        at_once: number of offsets that are computed together.
    """
    memory = {kv: cache.bytes(kv).numpy().data for kv in BOTH}
    for atom in atoms:
        for kv in BOTH:
            rows = cache.geometry.rows(kv, atom)
            tensor_bytes = memory[kv]
            nbytes = rows.nbytes
            for start in _list_row_offsets(rows, at_once):
                yield tensor_bytes[start : start + nbytes]


def _list_row_offsets(rows: Rows, at_once: int) -> Iterator[int]:
    """Yield the offset of each row: its number written in the mixed radix of the axes' counts."""
    counts = [count for count, _ in rows.axes]
    strides = [stride for _, stride in rows.axes]
    total = prod(counts)
    for begin in range(0, total, at_once):
        row_numbers = np.arange(begin, min(begin + at_once, total), dtype=np.int64)
        offsets = np.full(len(row_numbers), rows.first_offset, dtype=np.int64)
        # The innermost axis counts fastest: it is the lowest digit.
        for count, stride in zip(reversed(counts), reversed(strides), strict=True):
            offsets += row_numbers % count * stride
            row_numbers //= count
        yield from offsets.tolist()
