"""How attention of one position cuts the positions that it reads among blocks of threads."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class PositionSplit:
    """Parts of the positions: ``splits``, a power of two, read ``block`` at once."""

    block: int
    splits: int
    warps: int
    stages: int


MOST_SPLITS = 32
"""Most parts of one pair's positions."""


@functools.cache
def cut_positions(
    pairs: int, positions: int, multiprocessors: int, grouped_vectors: bool
) -> PositionSplit:
    """Return how positions are cut: enough blocks for all processors, none too small.

    The numbers were the fastest of eight cuts of whole steps on an H200: opt-13b at position 700,
    shapes of Llama-3.1-8B and Qwen3-8B at 2100, batch 8. On another GPU measure again:
    ``contrib/measure_gpu_kernels.py``.

    Args:
        pairs: number of pairs of request and KV head.
        positions: number of positions that the cache holds.
        grouped_vectors: keys lie in vectors, as in ``ft``, and several queries share a KV head.
    """
    block, blocks_per_processor = (32, 4) if grouped_vectors else (64, 2)
    splits = count_splits(pairs, positions, block, blocks_per_processor * multiprocessors)
    return PositionSplit(block=block, splits=splits, warps=4, stages=3)


def count_splits(pairs: int, positions: int, block: int, most_blocks: int) -> int:
    """Return in how many parts positions are cut: a power of two, with a block in each."""
    splits = 1
    while splits < MOST_SPLITS and 2 * pairs * splits <= most_blocks and positions > block * splits:
        splits *= 2
    return splits
