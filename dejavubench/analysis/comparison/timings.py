"""Times that a comparison can be about, as samples of rounds.

A :class:`Timing` is one arm of one run, or the baselines of a point together: their geometric mean
in each round, or for p99 all their tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dejavubench.analysis.breakdown.tails import Tokens, make_pooled_p99
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples, Quantity
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.round_changes import RoundSample, make_median_sample

QUANTITIES: Mapping[Metric, Quantity] = {
    Metric.TOTAL: "total",
    Metric.PROMPT: "prompt",
    Metric.TOKEN: "token",
}
"""The metrics that have one time per round."""


class Timing(ABC):
    """The times of one arm, or of the baselines of one point, in one metric."""

    @property
    @abstractmethod
    def rounds(self) -> frozenset[int]:
        """Numbers of the rounds that were measured."""

    @abstractmethod
    def own_sample(self, rounds: Sequence[int]) -> RoundSample | None:
        """Return the time in ms; None where the rounds hold too few tokens for the metric."""

    @abstractmethod
    def ratio_sample(self, base: Timing, rounds: Sequence[int]) -> RoundSample | None:
        """Return the time relative to another timing of the same metric, in the same rounds.

        None as for :meth:`own_sample`.
        """


@dataclass(frozen=True)
class SeriesTiming(Timing):
    """One time in ms per round; of several rounds the median counts."""

    series: stats.Series

    @property
    def rounds(self) -> frozenset[int]:
        """The rounds of the series."""
        return frozenset(self.series)

    def own_sample(self, rounds: Sequence[int]) -> RoundSample | None:
        """Return the median of the rounds' times. Never None."""
        return make_median_sample(self._logs(rounds))

    def ratio_sample(self, base: Timing, rounds: Sequence[int]) -> RoundSample | None:
        """Return the median of the rounds' ratios. Never None."""
        assert isinstance(base, SeriesTiming)
        # The ratio of each round, then the median: what both had in a round cancels.
        return make_median_sample(self._logs(rounds) - base._logs(rounds))

    def _logs(self, rounds: Sequence[int]) -> np.ndarray:
        return np.log([self.series[round_number] for round_number in rounds])


@dataclass(frozen=True)
class TailTiming(Timing):
    """Single tokens of one arm or more, taken together; of several rounds their p99 counts."""

    arms: tuple[Tokens, ...]

    @property
    def rounds(self) -> frozenset[int]:
        """The rounds in which every arm has tokens."""
        return frozenset(set(self.arms[0]).intersection(*self.arms[1:]))

    def own_sample(self, rounds: Sequence[int]) -> RoundSample | None:
        """Return the 99th percentile of all tokens in these rounds."""
        p99 = make_pooled_p99(self.arms, rounds)
        return None if p99 is None else RoundSample(len(rounds), _log_of_draws(p99))

    def ratio_sample(self, base: Timing, rounds: Sequence[int]) -> RoundSample | None:
        """Return the ratio of two 99th percentiles, each taken over all tokens of the rounds."""
        own_sample = self.own_sample(rounds)
        base_sample = base.own_sample(rounds)
        if own_sample is None or base_sample is None:
            return None
        # Both of the same draw of rounds, so that what they had in common cancels.
        return RoundSample(
            len(rounds), lambda draws: own_sample.log_of(draws) - base_sample.log_of(draws)
        )


def _log_of_draws(
    p99: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """Turn a function of how often each round counts into one of the rounds that were drawn."""

    def log_of(draws: np.ndarray) -> np.ndarray:
        resample_count, round_count = draws.shape
        # [resamples, rounds]: draws of one resample get numbers of its own, to be counted at once.
        draw_numbers = draws + round_count * np.arange(resample_count, dtype=np.int64)[:, None]
        weights = np.bincount(draw_numbers.ravel(), minlength=resample_count * round_count).reshape(
            resample_count, round_count
        )
        return np.asarray(np.log(p99(weights)))

    return log_of


def make_timing(samples: ArmSamples, metric: Metric) -> Timing | None:
    """Return the times of an arm; None if the run did not measure them."""
    if metric is Metric.P99:
        return TailTiming((samples.times.steps,)) if samples.times.steps else None
    series = samples.times.series(QUANTITIES[metric])
    return SeriesTiming(series) if series else None


def make_baseline_timing(point: PointSamples, metric: Metric) -> Timing | None:
    """Return the times of a point's baselines together; None without a baseline."""
    if metric is Metric.P99:
        arms = tuple(arm.times.steps for arm in point.baseline_arms() if arm.times.steps)
        return TailTiming(arms) if arms else None
    baselines = point.baselines(QUANTITIES[metric])
    return SeriesTiming(stats.compute_geometric_mean(baselines)) if baselines else None
