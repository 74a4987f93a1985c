"""The rows of a forecast: overheads over rates and prompt lengths, and where levels cross."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dejavubench.analysis.numbers import stats
from dejavubench.analysis.prediction.compute import Basis
from dejavubench.analysis.prediction.forecast import predict
from dejavubench.analysis.prediction.inputs import RunInputs
from dejavubench.analysis.prediction.request import LEVELS
from dejavubench.analysis.prediction.target import Target

OWN_OF_TOTAL, OWN_OF_OVERHEAD = 0.5, 0.1
"""The model's own error: percentage points of TOTAL, or this part of the overhead if it is more.

docs/method/prediction.md says how often predictions of held-out points were within it.
"""

RATE_FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LENGTH_FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

LEAST_COST_PCT = 1.0
"""Overhead up to which a level costs nothing, unless the run's noise is larger."""

GAIN_PCT = 0.5
"""Percentage points of TOTAL from which on one level is faster than another one."""

SEARCHED_LENGTHS = 48
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


@dataclass(frozen=True)
class Forecast:
    """All that is predicted from a run for one link and one target.

    Attributes:
        rate: of the link, in bytes per second.
        most_length: longest prompt that the model can have.
    """

    run: RunInputs
    target: Target
    rate: float
    most_length: int = MOST_LENGTH

    @cached_property
    def modes(self) -> list[str]:
        """Destinations of the run's arms, in their order."""
        return list(dict.fromkeys(arm.mode for arm in self.run.arms))

    @cached_property
    def answers(self) -> list[ForecastRow]:
        """The rows of the target itself, at the given rate."""
        return self._rows([(self.target, self.rate)])

    @cached_property
    def over_rates(self) -> list[ForecastRow]:
        """The rows of the target itself, over links around the given rate."""
        return self._rows([(self.target, factor * self.rate) for factor in RATE_FACTORS])

    @cached_property
    def over_lengths(self) -> list[ForecastRow]:
        """The rows of targets with prompts around the target's length, at the given rate."""
        own = self.target.point.input_len
        lengths = sorted({max(1, round(factor * own)) for factor in LENGTH_FACTORS})
        return self._rows(
            [
                (self.target.with_length(length), self.rate)
                for length in lengths
                if length <= max(own, self.most_length)
            ]
        )

    @cached_property
    def limit_pct(self) -> float:
        """Overhead up to which a level costs nothing: the noise of the run, at least 1 %."""
        noises = [100 * point.noise for point in self.run.points if point.noise is not None]
        return max(LEAST_COST_PCT, *noises) if noises else LEAST_COST_PCT

    def costs_nothing_from(self, mode: str, level: str) -> float | None:
        """Return the rate in bytes per second from which on a level costs nothing; None: never."""
        prediction = predict(self.run, mode, level, self.target)
        if prediction is None:
            return None
        leaves = prediction.leaves_zero(self.limit_pct)
        return None if leaves is None else 1e3 * leaves

    def layerwise_pays_from(self, mode: str) -> int | None:
        """Return the prompt length from which on level 2 is faster than level 1; None: never."""
        longest = self.most_length
        lengths = sorted({round(each) for each in np.geomspace(1, longest, SEARCHED_LENGTHS)})

        def pays(length: int) -> bool:
            return self._gain_pct(mode, length) >= GAIN_PCT

        return first_for_good(lengths, pays)

    def _gain_pct(self, mode: str, length: int) -> float:
        """Return by how much level 2 is faster than level 1, in percentage points of TOTAL."""
        target = self.target.with_length(length)
        overheads = []
        for level in ("1", "2"):
            prediction = predict(self.run, mode, level, target)
            if prediction is None:
                return -math.inf
            overheads.append(prediction.overhead_pct(self.rate / 1e3)[0])
        return float(overheads[0] - overheads[1])

    def _rows(self, cases: Sequence[tuple[Target, float]]) -> list[ForecastRow]:
        return [
            row
            for mode in self.modes
            for target, rate in cases
            for level in LEVELS
            if (row := self._row(mode, level, target, rate)) is not None
        ]

    def _row(self, mode: str, level: str, target: Target, rate: float) -> ForecastRow | None:
        prediction = predict(self.run, mode, level, target)
        if prediction is None:
            return None
        # Bytes per second to bytes per ms.
        overheads = prediction.overhead_pct(rate / 1e3)
        low, high = with_own_error(overheads)
        return ForecastRow(
            mode=mode,
            level=level,
            rate=rate,
            input_len=target.point.input_len,
            none_ms=float(prediction.request.total_ms[0]),
            predicted_ms=float(prediction.predicted_ms(rate / 1e3)[0]),
            overhead_pct=float(overheads[0]),
            low_pct=low,
            high_pct=high,
            compute=prediction.compute,
            arm=prediction.arm.name,
            is_held=target.is_held,
        )


def with_own_error(overheads: np.ndarray) -> tuple[float, float]:
    """Return the interval of a predicted overhead, in percent.

    Args:
        overheads: the first is the prediction, the others are those of the resamples.
    """
    tail = 100 * (1 - stats.CONFIDENCE) / 2
    low, high = np.percentile(overheads[1:], [tail, 100 - tail])
    middle = float(overheads[0])
    own = max(OWN_OF_TOTAL, OWN_OF_OVERHEAD * abs(middle))
    # Errors of the inputs and of the model are independent, so their squares add up.
    below, above = max(0.0, middle - low), max(0.0, high - middle)
    return middle - math.hypot(below, own), middle + math.hypot(above, own)


def first_for_good(values: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """Return the least value from which on ``holds`` is true up to the last of ``values``.

    Args:
        values: rising; between two of them ``holds`` is looked for by halving.

    Returns:
        None if it is false for the last one.
    """
    known = [holds(value) for value in values]
    if not known[-1]:
        return None
    first = max((place + 1 for place, each in enumerate(known) if not each), default=0)
    if first == 0:
        return values[0]
    low, high = values[first - 1], values[first]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
