"""Times of single tokens of an arm: percentiles, and the paired overhead of the slowest ones.

A percentile is the smallest time that the given share of the tokens did not exceed, so it is a time
that was measured. Of several sources, the one with the largest percentile counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.numbers import stats

FEWEST_TOKENS = 100
"""Fewest tokens whose 99th percentile is not simply the slowest one."""

P99 = 0.99
"""The quantile of tails."""

Tokens = Mapping[int, list[list[float]]]
"""ms of single tokens by round, one list for each source."""


@dataclass(frozen=True)
class Tail:
    """Percentiles of one arm's tokens in all measured rounds together.

    Attributes:
        token_count: tokens of one source.
        p99_ms: None with fewer than 100 tokens.
    """

    token_count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    slowest_ms: float


def compute_percentiles(samples: ArmSamples) -> Tail | None:
    """Return the percentiles of an arm's tokens; None if it has none."""
    token_ms = sort_tokens(samples)
    if not token_ms.size:
        return None
    p50_ms, p90_ms, p99_ms, slowest_ms = (
        find_percentile(token_ms, share) for share in (0.5, 0.9, P99, 1.0)
    )
    return Tail(
        token_ms.size,
        p50_ms,
        p90_ms,
        p99_ms if token_ms.size >= FEWEST_TOKENS else None,
        slowest_ms,
    )


def sort_tokens(samples: ArmSamples) -> np.ndarray:
    """Return the tokens of all rounds, sorted; at each place the source with the longest time."""
    rounds = list(samples.times.steps.values())
    source_count = max(map(len, rounds), default=0)
    sources = [
        # `rounds` has one entry per round: [source][step], in ms.
        np.sort(np.concatenate([lists[source] for lists in rounds if source < len(lists)]))
        for source in range(source_count)
    ]
    # Sources of one iteration take equally many steps, unless the run was killed in it.
    most_steps = max((times.size for times in sources), default=0)
    complete_sources = [times for times in sources if times.size == most_steps]
    # Place by place: the k-th slowest token of the slowest source, not of one token on all.
    return np.max(complete_sources, axis=0) if complete_sources else np.empty(0)


def find_percentile(times: np.ndarray, share: float) -> float:
    """Return the smallest of sorted times that a share of them does not exceed."""
    return float(times[int(_round_up(share * times.size)) - 1])


def _round_up(tokens: np.ndarray | float) -> np.ndarray:
    """Return a number of tokens, rounded up. 0.9 · 10 is more than 9 in binary."""
    return np.ceil(np.round(tokens, 9))


def estimate_p99_overhead(point: PointSamples, samples: ArmSamples) -> stats.Estimate | None:
    """Return p99 of the arm's tokens over that of all baselines' tokens, less one, as a fraction.

    The interval resamples whole rounds, the same ones of arm and baselines. None without a
    baseline, and with too few tokens.
    """
    return _compare_p99(samples.times.steps, _list_baseline_tokens(point))


def estimate_p99_noise(point: PointSamples) -> stats.Estimate | None:
    """Return the overhead of the second baseline over the first; None unless there are two."""
    baselines = _list_baseline_tokens(point)
    return _compare_p99(baselines[1], baselines[:1]) if len(baselines) == 2 else None


def _list_baseline_tokens(point: PointSamples) -> list[Tokens]:
    return [arm.times.steps for arm in point.baseline_arms() if arm.times.steps]


def _compare_p99(arm: Tokens, baselines: Sequence[Tokens]) -> stats.Estimate | None:
    """Return p99 of one arm over that of some baselines, less one, with a bootstrap over rounds."""
    rounds = sorted(set(arm).intersection(*baselines))
    if not baselines or not rounds:
        return None
    arm_p99, baseline_p99 = make_pooled_p99([arm], rounds), make_pooled_p99(baselines, rounds)
    if arm_p99 is None or baseline_p99 is None:
        return None

    def ratios(weights: np.ndarray) -> np.ndarray:
        return np.asarray(arm_p99(weights) / baseline_p99(weights) - 1)

    # Each round once: the overhead of the tokens as they were measured.
    overhead = float(ratios(np.ones((1, len(rounds))))[0])
    if len(rounds) == 1:
        return stats.Estimate(overhead, float("nan"), float("nan"), 0.0, 1)
    rng = np.random.default_rng(stats.SEED)
    # How often each round is drawn, [resamples, rounds]. Whole rounds, since tokens of a round are
    # not independent of each other.
    round_counts = rng.multinomial(
        len(rounds), np.full(len(rounds), 1 / len(rounds)), stats.RESAMPLE_COUNT
    )
    low, first_quartile, third_quartile, high = np.percentile(
        ratios(round_counts), [2.5, 25, 75, 97.5]
    )
    return stats.Estimate(
        overhead, float(low), float(high), float(third_quartile - first_quartile), len(rounds)
    )


def make_pooled_p99(
    arms: Sequence[Tokens], rounds: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function of weights [n, rounds]: p99 if rounds count as often as each row says.

    The tokens of all arms are taken together; of several sources the largest p99 counts. None with
    too few tokens, or with sources that lack a round.
    """
    sources = {len(arm[round_number]) for arm in arms for round_number in rounds}
    if len(sources) != 1:  # a killed run's last round
        return None
    by_source = [_Pooled(arms, rounds, source) for source in range(*sources)]
    if any(source_tokens.count < FEWEST_TOKENS for source_tokens in by_source):
        return None
    return lambda weights: np.max(
        [source_tokens.p99(weights) for source_tokens in by_source], axis=0
    )


class _Pooled:
    """Tokens of one source in some rounds of some arms."""

    def __init__(self, arms: Sequence[Tokens], rounds: Sequence[int], source: int) -> None:
        tokens_by_round = [
            np.array([ms for arm in arms for ms in arm[round_number][source]])
            for round_number in rounds
        ]
        of_round = np.repeat(
            np.arange(len(rounds)), [round_tokens.size for round_tokens in tokens_by_round]
        )
        times = np.concatenate(tokens_by_round)
        order = np.argsort(times, kind="stable")
        self.count = times.size
        self._times = times[order]
        # [token, round]: how many of the round's tokens are not slower than this one.
        self._reached = np.cumsum(of_round[order][:, None] == np.arange(len(rounds)), axis=0)

    def p99(self, weights: np.ndarray) -> np.ndarray:
        """Return p99 if rounds count as often as the weights [n, rounds] say, by bisection."""
        # The last row of reached counts all tokens of each round, so this is the resample's size.
        needed_tokens = _round_up(P99 * (weights @ self._reached[-1]))
        low = np.zeros(len(weights), dtype=np.int64)
        high = np.full(len(weights), self.count - 1)
        # All resamples search at once, each within its own low and high.
        while np.any(low < high):
            middle = (low + high) // 2
            reaches = (weights * self._reached[middle]).sum(axis=1) >= needed_tokens
            low, high = np.where(reaches, low, middle + 1), np.where(reaches, middle, high)
        return np.asarray(self._times[low])
