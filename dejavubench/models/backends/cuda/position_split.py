"""How attention of one position cuts the positions that it reads among blocks of threads."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class PositionSplit:
    """Parts of the positions: ``split_count``, a power of two, read ``block`` at once."""

    block: int
    split_count: int
    warp_count: int
    stage_count: int


MOST_SPLITS = 32
"""Most parts of one pair's positions."""


SMALL_HEAD = 64
"""Elements up to which a head is small; see :func:`cut_positions`."""


@functools.cache
def cut_positions(
    pairs: int, head_size: int, positions: int, multiprocessors: int, grouped_vectors: bool
) -> PositionSplit:
    """Return how positions are cut: enough blocks for all processors, none too small.

    The numbers were the fastest of eight cuts of whole steps on an H200: opt-13b at position 700,
    shapes of Llama-3.1-8B and Qwen3-8B at 2100, batch 8; for small heads of twelve, gpt2-xl at 800
    and opt-1.3b at 700. On another GPU measure again: ``contrib/measure_gpu_kernels.py``.

    Args:
        pairs: number of pairs of request and KV head.
        head_size: number of elements of a head.
        positions: number of positions that the cache holds.
        grouped_vectors: keys lie in vectors, as in ``ft``, and several queries share a KV head.
    """
    if grouped_vectors:
        block, blocks_per_processor, stage_count = 32, 4, 3
    elif head_size <= SMALL_HEAD:
        # A block reads half as much of a pair as with heads of 128, so more of them must read.
        block, blocks_per_processor, stage_count = 128, 4, 2
    else:
        block, blocks_per_processor, stage_count = 64, 2, 3
    split_count = count_splits(pairs, positions, block, blocks_per_processor * multiprocessors)
    return PositionSplit(
        block=block, split_count=split_count, warp_count=4, stage_count=stage_count
    )


def count_splits(pairs: int, positions: int, block: int, most_blocks: int) -> int:
    """Return in how many parts positions are cut: a power of two, with a block in each."""
    split_count = 1
    while (
        split_count < MOST_SPLITS
        and 2 * pairs * split_count <= most_blocks
        and positions > block * split_count
    ):
        split_count *= 2
    return split_count
