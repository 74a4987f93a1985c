"""How attention of one position on a GPU cuts positions; plain numbers, so it needs no GPU."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dejavubench.models.backends.cuda.position_split import MOST_SPLITS, cut_positions

PROCESSORS = 132
"""Of an H200."""


@given(
    pairs=st.integers(1, 4096),
    head_size=st.sampled_from([32, 64, 80, 128]),
    positions=st.integers(1, 100_000),
    grouped_vectors=st.booleans(),
)
def test_parts_are_a_power_of_two_and_each_has_a_block(
    pairs: int, head_size: int, positions: int, grouped_vectors: bool
) -> None:
    split = cut_positions(pairs, head_size, positions, PROCESSORS, grouped_vectors)
    assert split.split_count & (split.split_count - 1) == 0
    assert 1 <= split.split_count <= MOST_SPLITS
    assert split.split_count == 1 or split.block * (split.split_count // 2) < positions


def test_positions_of_small_heads_are_cut_into_more_parts() -> None:
    """25 heads of 64 elements, as gpt2-xl has, and as many of 128: 8 requests, 1000 positions."""
    small, large = (cut_positions(200, size, 1000, PROCESSORS, False) for size in (64, 128))
    assert (small.split_count, small.block, small.stage_count) == (2, 128, 2)
    assert (large.split_count, large.block, large.stage_count) == (1, 64, 3)
