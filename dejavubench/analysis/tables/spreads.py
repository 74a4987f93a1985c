"""Estimates as columns: a median with its interval and interquartile range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dejavubench.analysis.numbers import stats


class Spread(NamedTuple):
    """A median with its interval and interquartile range; None where they are unknown."""

    middle: float | None = None
    low: float | None = None
    high: float | None = None
    iqr: float | None = None


def scale_estimate(estimate: stats.Estimate | None, scale: float = 1.0) -> Spread:
    """Scale an estimate; a single sample has no interval."""
    if estimate is None:
        return Spread()
    middle = scale * estimate.median
    iqr = scale * estimate.iqr
    if estimate.sample_count == 1:
        return Spread(middle, iqr=iqr)
    return Spread(middle, scale * estimate.low, scale * estimate.high, iqr)


def make_spread(values: Iterable[float]) -> Spread:
    """Return median, interval and quartile range of values; all None if there are none."""
    samples = list(values)
    return scale_estimate(stats.estimate(samples) if samples else None)
