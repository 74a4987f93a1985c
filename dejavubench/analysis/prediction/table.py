"""The rows of a forecast: overheads over rates and prompt lengths, and where levels cross."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction.compute import Basis
from dejavubench.analysis.prediction.forecast import Prediction, predict
from dejavubench.analysis.prediction.inputs import RunInputs
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS
from dejavubench.analysis.prediction.target import Target

OWN_ERROR_PCT = 0.5
OWN_ERROR_SHARE = 0.1
"""The model's own error: percentage points of TOTAL, or this part of the overhead if it is more.

docs/method/prediction.md says how often predictions of held-out points were within it.
"""

BORROWED_ERROR_PCT = 2.0
"""The model's own error in percentage points of TOTAL where a level's costs are another one's.

The largest error of a held-out level 1 or 2 was 1.9.
"""

RATE_FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LENGTH_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

FREE_PCT = 2.0
"""Overhead up to which a level costs nothing, at the upper end of its interval."""

SLOWEST_SEARCHED_RATE = 1e3
FASTEST_SEARCHED_RATE = 1e13
SEARCHED_RATE_COUNT = 41
"""Rates in bytes per second among which a free one is looked for: four in each decade."""

RATE_RATIO = 1.005
"""Ratio of two rates at which the search for the slowest free one ends: finer than shown."""

GAIN_PCT = 0.5
"""Percentage points of TOTAL from which on one level, or one link, is faster than another."""

SEARCHED_LENGTH_COUNT = 48
MOST_LENGTH = 131_072
"""Prompt lengths that a crossover is looked for among, and the longest without a context."""


@dataclass(frozen=True)
class ForecastRow:
    """The predicted overhead of one level over a link of one rate.

    Attributes:
        rate: of the link, in bytes per second.
        none_ms, predicted_ms: TOTAL without streaming and with it.
        overhead_pct, low_pct, high_pct: with the interval of the inputs and the model's own error.
        compute: where the compute times come from.
        arm: the measured arm that the costs are from.
        is_held: False for setups that no prediction was held against measurement for.
        busy_arms: the measured arms whose link was busy to the end and that contention is from.
    """

    mode: str
    level: str
    rate: float
    input_len: int
    none_ms: float
    predicted_ms: float
    overhead_pct: float
    low_pct: float
    high_pct: float
    compute: Basis
    arm: str
    is_held: bool
    busy_arms: tuple[str, ...]

    @property
    def is_borrowed(self) -> bool:
        """Whether the costs are those of another level, which was measured."""
        return self.arm.partition("@")[2].partition("/")[0] != self.level


@dataclass(frozen=True)
class RemainingCost:
    """The overhead that no link takes away.

    Attributes:
        pct: over an endless link, in percent.
        is_shown: whether the run tells it from 0 and from its own noise.
        saturating_rate: rate in bytes per second from which on a faster link saves less than
            :data:`GAIN_PCT`; None if there is none.
    """

    pct: float
    is_shown: bool
    saturating_rate: float | None


@dataclass(frozen=True)
class Forecast:
    """All that is predicted from a run for one link and one target.

    Attributes:
        target: the request that all tables are of.
        rate: of the link, in bytes per second.
        most_length: longest prompt that the model can have.
        other_targets: further measured points of the run, which the answer names, too.
        warnings: what is missing of the run's records, or was changed.
    """

    run: RunInputs
    target: Target
    rate: float
    most_length: int = MOST_LENGTH
    other_targets: tuple[Target, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def modes(self) -> list[str]:
        """Destinations of the run's arms, in their order."""
        return list(dict.fromkeys(arm.mode for arm in self.run.arms))

    @cached_property
    def answers(self) -> list[ForecastRow]:
        """The rows of the target itself, at the given rate."""
        return self.rows_of(self.target)

    def rows_of(self, target: Target) -> list[ForecastRow]:
        """Return the rows of a target at the given rate."""
        return self._make_rows([(target, self.rate)])

    @cached_property
    def over_rates(self) -> list[ForecastRow]:
        """The rows of the target itself, over links around the given rate."""
        return self._make_rows([(self.target, factor * self.rate) for factor in RATE_FACTORS])

    @cached_property
    def over_lengths(self) -> list[ForecastRow]:
        """The rows of targets with prompts around the target's length, at the given rate."""
        own_length = self.target.point.input_len
        lengths = sorted({max(1, round(factor * own_length)) for factor in LENGTH_FACTORS})
        return self._make_rows(
            [
                (self.target.with_length(length), self.rate)
                for length in lengths
                if length <= max(own_length, self.most_length)
            ]
        )

    def find_measured_rates(self, mode: str) -> tuple[float, float]:
        """Return the slowest and the fastest measured link of a destination, in bytes per s."""
        rates = [arm.link.rate for arm in self.run.arms if arm.mode == mode]
        return min(rates), max(rates)

    def costs_nothing_from(self, mode: str, level_name: str) -> float | None:
        """Return the rate in bytes per second from which on a level costs nothing; None: never.

        It does if the upper end of its interval is at most :data:`FREE_PCT`: judged by the median,
        a noisy run would make more levels free.
        """
        prediction = predict(self.run, mode, level_name, self.target)
        if prediction is None:
            return None

        def is_free(rate: int) -> bool:
            return predict_interval(prediction, rate)[1] <= FREE_PCT

        rates = np.geomspace(SLOWEST_SEARCHED_RATE, FASTEST_SEARCHED_RATE, SEARCHED_RATE_COUNT)
        return find_first_for_good(
            [round(rate) for rate in rates], is_free, finest_ratio=RATE_RATIO
        )

    @property
    def noise_pct(self) -> float:
        """The run's own noise at its noisiest point, in percent of TOTAL; 0 if it is unknown."""
        noise_reaches = [point.noise for point in self.run.points if point.noise is not None]
        return 100 * max(noise_reaches, default=0.0)

    def find_remaining_cost(self, mode: str, level_name: str) -> RemainingCost | None:
        """Return the overhead that no link takes away; None without a prediction."""
        prediction = predict(self.run, mode, level_name, self.target)
        if prediction is None:
            return None
        remaining_pct = float(prediction.remaining_pct[0])
        low_pct, _ = _interval_of(prediction, prediction.remaining_pct)
        return RemainingCost(
            remaining_pct,
            # As an answer tells a measured cost from noise.
            is_shown=low_pct > 0 and remaining_pct > self.noise_pct,
            saturating_rate=prediction.find_slowest_rate_near_zero(remaining_pct + GAIN_PCT),
        )

    def can_compare_layerwise(self, mode: str) -> bool:
        """Return whether levels 1 and 2 were both measured: costs of one say nothing of a gain."""
        measured_levels = {arm.level for arm in self.run.arms if arm.mode == mode}
        return {"1", "2"} <= measured_levels

    def layerwise_pays_from(self, mode: str) -> int | None:
        """Return the prompt length from which on level 2 is faster than level 1; None: never.

        None also if one of them was not measured.
        """
        if not self.can_compare_layerwise(mode):
            return None
        longest_length = self.most_length
        lengths = sorted(
            {round(length) for length in np.geomspace(1, longest_length, SEARCHED_LENGTH_COUNT)}
        )

        def pays(length: int) -> bool:
            return self._compute_gain_pct(mode, length) >= GAIN_PCT

        return find_first_for_good(lengths, pays)

    def _compute_gain_pct(self, mode: str, length: int) -> float:
        """Return by how much level 2 is faster than level 1, in percentage points of TOTAL."""
        target = self.target.with_length(length)
        overheads_pct = []
        for level_name in ("1", "2"):
            prediction = predict(self.run, mode, level_name, target)
            if prediction is None:
                return -math.inf
            overheads_pct.append(prediction.predict_overhead_pct(self.rate)[0])
        return float(overheads_pct[0] - overheads_pct[1])

    def _make_rows(self, targets_and_rates: Sequence[tuple[Target, float]]) -> list[ForecastRow]:
        return [
            row
            for mode in self.modes
            for target, rate in targets_and_rates
            for level_name in PREDICTED_LEVELS
            if (row := self._make_row(mode, level_name, target, rate)) is not None
        ]

    def _make_row(
        self, mode: str, level_name: str, target: Target, rate: float
    ) -> ForecastRow | None:
        """Return a row; None if the run tells nothing of the level."""
        prediction = predict(self.run, mode, level_name, target)
        if prediction is None:
            return None
        overheads_pct = prediction.predict_overhead_pct(rate)
        low_pct, high_pct = predict_interval(prediction, rate)
        return ForecastRow(
            mode=mode,
            level=level_name,
            rate=rate,
            input_len=target.point.input_len,
            none_ms=float(prediction.request.total_ms[0]),
            predicted_ms=float(prediction.predict_ms(rate)[0]),
            overhead_pct=float(overheads_pct[0]),
            low_pct=low_pct,
            high_pct=high_pct,
            compute=prediction.basis,
            arm=prediction.arm.name,
            is_held=target.is_held,
            busy_arms=tuple(
                f"{arm.name} at prompt {arm.point.info.input_len:,}" for arm in prediction.busy_arms
            ),
        )


def predict_interval(prediction: Prediction, rate: float) -> tuple[float, float]:
    """Return the interval of a prediction over a link of ``rate`` bytes per second, in percent."""
    return _interval_of(prediction, prediction.predict_overhead_pct(rate))


def _interval_of(prediction: Prediction, overheads_pct: np.ndarray) -> tuple[float, float]:
    """Return the interval of overheads of a prediction, with the error of its level's costs."""
    return widen_by_own_error(overheads_pct, BORROWED_ERROR_PCT if prediction.is_borrowed else 0.0)


def widen_by_own_error(
    overheads_pct: np.ndarray, least_error_pct: float = 0.0
) -> tuple[float, float]:
    """Return the interval of a predicted overhead, in percent.

    Args:
        overheads_pct: the first is the prediction, the others are those of the resamples.
        least_error_pct: of the model, in percentage points of TOTAL.
    """
    tail_pct = 100 * (1 - stats.CONFIDENCE) / 2
    low_pct, high_pct = np.percentile(overheads_pct[1:], [tail_pct, 100 - tail_pct])
    predicted_pct = float(overheads_pct[0])
    own_error_pct = max(OWN_ERROR_PCT, least_error_pct, OWN_ERROR_SHARE * abs(predicted_pct))
    # Errors of the inputs and of the model are independent, so their squares add up.
    below_pct = math.hypot(max(0.0, predicted_pct - low_pct), own_error_pct)
    above_pct = math.hypot(max(0.0, high_pct - predicted_pct), own_error_pct)
    return predicted_pct - below_pct, predicted_pct + above_pct


def find_first_for_good(
    values: Sequence[int], holds: Callable[[int], bool], finest_ratio: float = 1.0
) -> int | None:
    """Return the least value from which on ``holds`` is true up to the last of ``values``.

    Args:
        values: rising; between two of them ``holds`` is looked for by halving.
        finest_ratio: ratio of two values between which it is no longer looked for.

    Returns:
        None if it is false for the last one.
    """
    outcomes = [holds(value) for value in values]
    if not outcomes[-1]:
        return None
    failing_indices = [index for index, outcome in enumerate(outcomes) if not outcome]
    if not failing_indices:
        return values[0]
    failing_value = values[failing_indices[-1]]
    holding_value = values[failing_indices[-1] + 1]
    while holding_value - failing_value > 1 and holding_value > finest_ratio * failing_value:
        middle_value = (failing_value + holding_value) // 2
        if holds(middle_value):
            holding_value = middle_value
        else:
            failing_value = middle_value
    return holding_value
