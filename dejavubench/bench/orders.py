"""The order of arms in each round: every arm follows every other one equally often."""

from __future__ import annotations

import random
from collections.abc import Iterator


def make_williams_orders(arm_count: int) -> list[list[int]]:
    """Return orders of ``arm_count`` treatments, balanced for carry-over.

    There are ``arm_count`` of them, and twice as many if that number is odd. E. J. Williams,
    "Experimental designs balanced for the estimation of residual effects of treatments",
    Aust. J. Sci. Res. A 2 (1949): the first order is 0, 1, n−1, 2, n−2, …; the others add 1, 2, …
    modulo n. For odd n the reversed orders are needed as well.
    """
    first_order = [
        (position + 1) // 2 if position % 2 else (arm_count - position // 2) % arm_count
        for position in range(arm_count)
    ]
    # For even n, all differences between neighbours in `first_order` are distinct modulo n. So over
    # all shifts each arm follows each other one once.
    rows = [[(arm + shift) % arm_count for arm in first_order] for shift in range(arm_count)]
    return rows + [order[::-1] for order in rows] if arm_count % 2 else rows


def shuffle_orders(arm_count: int, seed: int) -> Iterator[list[int]]:
    """Yield orders without end; every rank derives the same sequence from the seed.

    Each block is a Williams design with its treatments and rows shuffled. So any number of rounds
    is unpredictable, and whole blocks are balanced.
    """
    shuffler = random.Random(seed)
    while True:
        treatments = list(range(arm_count))
        shuffler.shuffle(treatments)
        block = [[treatments[arm] for arm in order] for order in make_williams_orders(arm_count)]
        shuffler.shuffle(block)
        yield from block
