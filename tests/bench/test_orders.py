"""The order of arms: each follows each other one equally often."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise, permutations

import pytest

from dejavubench.bench.orders import make_williams_orders, shuffle_orders

ARMS = range(1, 13)


def count_successors(rounds: list[list[int]]) -> Counter[tuple[int, int]]:
    return Counter(pair for order in rounds for pair in pairwise(order))


def each_successor(arms: int, times: int) -> Counter[tuple[int, int]]:
    """Return the counts of rounds in which each arm follows each other one this number of times."""
    return Counter(dict.fromkeys(permutations(range(arms), 2), times))


def draw_rounds(arms: int, seed: int, rounds: int) -> list[list[int]]:
    return list(islice(shuffle_orders(arms, seed), rounds))


@pytest.mark.parametrize("arms", ARMS)
def test_williams_designs_are_balanced(arms: int) -> None:
    design = make_williams_orders(arms)
    repeats = 2 if arms % 2 else 1
    assert len(design) == repeats * arms
    assert all(sorted(order) == list(range(arms)) for order in design)
    assert count_successors(design) == each_successor(arms, repeats)
    for place in range(arms):  # and each arm comes equally often at each place
        assert Counter(order[place] for order in design) == Counter(
            dict.fromkeys(range(arms), repeats)
        )


@pytest.mark.parametrize("arms", ARMS)
def test_whole_blocks_of_rounds_are_balanced(arms: int) -> None:
    block = len(make_williams_orders(arms))
    rounds = draw_rounds(arms, seed=5, rounds=3 * block)
    for start in range(0, 3 * block, block):
        counts = count_successors(rounds[start : start + block])
        assert counts == each_successor(arms, 2 if arms % 2 else 1)


def test_the_seed_decides_the_order_of_arms() -> None:
    drawn = draw_rounds(arms=5, seed=1, rounds=40)
    assert draw_rounds(arms=5, seed=1, rounds=40) == drawn
    assert draw_rounds(arms=5, seed=2, rounds=40) != drawn
    rounds = draw_rounds(arms=6, seed=1, rounds=12)
    assert rounds[:6] != rounds[6:], "every block would come in the same order"
