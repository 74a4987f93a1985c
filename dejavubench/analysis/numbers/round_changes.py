"""Changes from one sample of rounds to another, with intervals that neighbouring rounds may share.

- :func:`compute_paired_change`: both were measured in the same rounds, so drift cancels.
- :func:`compute_unpaired_change`: each has rounds of its own.

Rounds that follow each other are alike: machines drift, and clocks have states that last. Single
rounds drawn at random would hide that, and blocks of few rounds hide what changes from round to
round. So both are drawn, and the wider interval counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dejavubench.analysis.numbers.stats import CONFIDENCE, PICKS_AT_ONCE, RESAMPLE_COUNT, SEED

RESAMPLES_IN_TAIL = 20
"""Resamples beyond each end of an interval; fewer would leave the end to chance."""

MOST_ORDERED = 1000
"""Most rounds whose exact interval is computed."""


@dataclass(frozen=True)
class RoundSample:
    """A statistic of some rounds, which can be computed of any draw of them.

    Attributes:
        round_count: number of rounds, n.
        log_of: maps draws [resamples, n] of round numbers below n to the statistic's natural
            logarithm [resamples]. Differences of logarithms are ratios of times.
        sorted_logs: the rounds' own logarithms, if the statistic is their median.
    """

    round_count: int
    log_of: Callable[[np.ndarray], np.ndarray]
    sorted_logs: np.ndarray | None = None

    @property
    def log(self) -> float:
        """The statistic of the rounds as they are."""
        return float(self.log_of(np.arange(self.round_count)[None, :])[0])


@dataclass(frozen=True)
class Change:
    """A ratio of two times less one, as a fraction, with its interval.

    Attributes:
        low, high: ends of the interval; NaN where one of both has one round.
        sample_count: rounds, the fewer of both, or pairs.
        confidence: of the interval, a fraction.
    """

    middle: float
    low: float
    high: float
    sample_count: int
    confidence: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def decides(self) -> bool:
        """Whether there are enough rounds for an interval of this confidence."""
        return self.sample_count >= count_fewest_rounds(self.confidence)


def count_fewest_rounds(confidence: float) -> int:
    """Return how many rounds an interval needs: the fewest whose range covers the median so often.

    The median lies outside the range of n rounds at a given end in 0.5ⁿ of all cases. At 95 % it
    takes 6 rounds.
    """
    return math.ceil(-math.log2((1 - confidence) / 2))


def choose_block_length(round_count: int) -> int:
    """Return how many rounds are drawn as one, n to the power 1/3 as theory has it."""
    return math.ceil(round_count ** (1 / 3))


def make_median_sample(logs: np.ndarray) -> RoundSample:
    """Return the median of one logarithm per round as a sample."""
    order = np.argsort(logs, kind="stable")
    sorted_logs = logs[order]
    # Ranks sort as their logarithms do, and numpy sorts small integers ten times as fast.
    ranks = np.empty(logs.size, dtype=np.int16 if logs.size < 2**15 else np.int64)
    ranks[order] = np.arange(logs.size)
    middles = [(logs.size - 1) // 2, logs.size // 2]

    def log_of(draws: np.ndarray) -> np.ndarray:
        return np.asarray(sorted_logs[np.sort(ranks[draws], axis=1)[:, middles]].mean(axis=1))

    return RoundSample(logs.size, log_of, sorted_logs)


def compute_paired_change(sample: RoundSample, confidence: float = CONFIDENCE) -> Change:
    """Return the change that a sample of ratios shows."""
    return _make_change(
        sample.log,
        sample.round_count,
        lambda blocks: _resample(sample, blocks, SEED, confidence),
        confidence,
        _compute_order_interval(sample, confidence),
    )


def compute_unpaired_change(
    earlier_sample: RoundSample, later_sample: RoundSample, confidence: float = CONFIDENCE
) -> Change:
    """Return the change from one sample to a later one; the rounds of both are drawn apart."""

    def differences(blocks: bool) -> np.ndarray:
        # Seeds of their own: with the same draws, equal samples would differ by exactly nothing.
        later_logs = _resample(later_sample, blocks, SEED, confidence)
        earlier_logs = _resample(earlier_sample, blocks, SEED + 1, confidence)
        return later_logs - earlier_logs

    return _make_change(
        later_sample.log - earlier_sample.log,
        min(earlier_sample.round_count, later_sample.round_count),
        differences,
        confidence,
    )


def _make_change(
    log: float,
    round_count: int,
    resample: Callable[[bool], np.ndarray],
    confidence: float,
    exact_interval: tuple[float, float] | None = None,
) -> Change:
    """Return a change from its logarithm, with the widest of its intervals.

    Args:
        resample: draws logarithms again, of single rounds (False) or of blocks (True).
        exact_interval: an interval that needs no draws.
    """
    if round_count < 2:
        nan = float("nan")
        return Change(math.expm1(log), nan, nan, round_count, confidence)
    tail = (1 - confidence) / 2
    quantiles = np.array(
        [np.quantile(resample(in_blocks), [tail, 1 - tail]) for in_blocks in (False, True)]
    )
    # The wider of both: blocks of alternating rounds look too steady, drifting single rounds too.
    low, high = float(quantiles[:, 0].min()), float(quantiles[:, 1].max())
    if exact_interval is not None:
        low, high = min(low, exact_interval[0]), max(high, exact_interval[1])
    return Change(math.expm1(log), math.expm1(low), math.expm1(high), round_count, confidence)


def _compute_order_interval(sample: RoundSample, confidence: float) -> tuple[float, float] | None:
    """Return the interval of a median between two of its rounds, which holds for any distribution.

    A bootstrap of few rounds is too narrow. From a thousand on, both agree.
    """
    round_count = sample.round_count
    if sample.sorted_logs is None or round_count > MOST_ORDERED:
        return None
    # Fewer than k rounds lie below the median with the chance of so few heads in n tosses.
    outside_chance = 2.0**-round_count
    index = 0
    while outside_chance <= (1 - confidence) / 2 and index < round_count // 2:
        index += 1
        outside_chance += math.comb(round_count, index) / 2**round_count
    index = max(index - 1, 0)
    return float(sample.sorted_logs[index]), float(sample.sorted_logs[round_count - 1 - index])


def _resample(sample: RoundSample, in_blocks: bool, seed: int, confidence: float) -> np.ndarray:
    """Return the statistic of random draws of rounds, one by one or in blocks."""
    block_size = choose_block_length(sample.round_count) if in_blocks else 1
    # A fixed seed: the same records must give the same table, byte for byte.
    rng = np.random.default_rng(seed)
    resample_count = max(RESAMPLE_COUNT, math.ceil(2 * RESAMPLES_IN_TAIL / (1 - confidence)))
    return np.concatenate(
        [
            sample.log_of(draws)
            for draws in _draw_blocks(sample.round_count, block_size, resample_count, rng)
        ]
    )


def _draw_blocks(
    round_count: int, block_size: int, resample_count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield draws [n, rounds] of blocks that wrap around, ``resample_count`` of them together."""
    most_at_once = max(1, PICKS_AT_ONCE // round_count)
    for first_draw in range(0, resample_count, most_at_once):
        count_now = min(most_at_once, resample_count - first_draw)
        shape = count_now, math.ceil(round_count / block_size)
        starts = rng.integers(0, round_count, size=shape, dtype=np.int32)
        # [n, blocks, length] → [n, rounds]; the last block is cut.
        round_numbers = starts[:, :, None] + np.arange(block_size, dtype=np.int32)
        draws = round_numbers.reshape(count_now, -1)[:, :round_count]
        draws[draws >= round_count] -= (
            round_count  # a block that reaches the end goes on at the beginning
        )
        yield draws
