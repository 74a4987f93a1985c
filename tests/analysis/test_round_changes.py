"""Changes with intervals, of made-up rounds whose drift is known. float64, on one thread."""

from __future__ import annotations

import numpy as np
import pytest

from dejavubench.analysis.comparison.timings import SeriesTiming
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.round_changes import (
    Change,
    _compute_order_interval,
    choose_block_length,
    compute_paired_change,
    compute_unpaired_change,
    count_fewest_rounds,
    make_median_sample,
)


def ratio_change(numerator: stats.Series, denominator: stats.Series) -> Change | None:
    """Return the change over the rounds that both have, as a comparison makes it."""
    rounds = sorted(set(numerator).intersection(denominator))
    ratio = (
        SeriesTiming(denominator).ratio_sample(SeriesTiming(numerator), rounds) if rounds else None
    )
    return None if ratio is None else compute_paired_change(ratio)


def test_a_known_change_lies_in_its_interval_and_drift_that_both_share_cancels() -> None:
    rng = np.random.default_rng(1)
    drift = np.exp(np.cumsum(rng.normal(0, 0.05, 20)))
    none_ms = {number: 100 * factor for number, factor in enumerate(drift)}
    changed_ms = {
        number: 1.02 * ms * np.exp(rng.normal(0, 0.001)) for number, ms in none_ms.items()
    }
    change = ratio_change(none_ms, changed_ms)
    assert change is not None
    assert change.low < 0.02 < change.high
    assert change.half_width < 0.002
    assert change.sample_count == 20


def test_only_rounds_that_both_have_count() -> None:
    change = ratio_change({1: 10.0, 2: 10.0}, {2: 11.0, 3: 5.0})
    assert change is not None
    assert change.sample_count == 1
    assert change.middle == pytest.approx(0.1)
    assert np.isnan(change.low)
    assert not change.decides
    assert ratio_change({1: 10.0}, {2: 10.0}) is None


def test_the_fewest_rounds_are_those_of_the_verdicts_and_grow_with_the_confidence() -> None:
    assert count_fewest_rounds(0.95) == stats.COVERING_ROUND_COUNT
    for confidence in (0.95, 0.99, 0.999):
        rounds = count_fewest_rounds(confidence)
        tail = (1 - confidence) / 2
        assert 0.5**rounds <= tail < 0.5 ** (rounds - 1)


def test_drift_within_a_run_widens_the_interval_of_runs_apart() -> None:
    """Two states that last: rounds drawn one by one would take them for noise that averages out."""
    states = np.repeat([0.0, 0.03] * 3, 8)
    shuffled = np.random.default_rng(2).permutation(states)
    drifting, mixed = (
        compute_unpaired_change(make_median_sample(logs), make_median_sample(logs)).half_width
        for logs in (states + np.arange(48) * 1e-5, shuffled + np.arange(48) * 1e-5)
    )
    assert drifting >= mixed
    assert choose_block_length(48) == 4


def test_rounds_that_alternate_do_not_narrow_the_interval() -> None:
    """A block of two such rounds always has one of each, which would look like no noise at all."""
    logs = np.tile([-0.01, 0.01], 12) + np.linspace(0, 1e-4, 24)
    change = compute_paired_change(make_median_sample(logs))
    assert change.half_width > 0.005


def test_equal_records_give_the_same_interval_every_time() -> None:
    logs = np.random.default_rng(3).normal(0, 0.01, 12)
    assert compute_paired_change(make_median_sample(logs)) == compute_paired_change(
        make_median_sample(logs)
    )
    unpaired = compute_unpaired_change(make_median_sample(logs), make_median_sample(logs))
    assert unpaired.middle == 0
    assert unpaired.low < 0 < unpaired.high


@pytest.mark.parametrize("rounds", [1, 2, 7, 8])
def test_the_median_of_draws_is_that_of_numpy(rounds: int) -> None:
    rng = np.random.default_rng(5)
    logs = np.round(rng.normal(size=rounds), 1)  # with ties
    draws = rng.integers(0, rounds, size=(50, rounds))
    assert np.array_equal(make_median_sample(logs).log_of(draws), np.median(logs[draws], axis=1))


@pytest.mark.parametrize(
    ("rounds", "place"),
    [(6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (30, 9)],  # the tables of the sign test at 95 %
)
def test_a_paired_interval_is_at_least_the_exact_one_of_the_sign_test(
    rounds: int, place: int
) -> None:
    logs = np.random.default_rng(6).permutation(np.linspace(-0.01, 0.01, rounds))
    change = compute_paired_change(make_median_sample(logs))
    ordered = np.expm1(np.sort(logs))
    assert change.low <= ordered[place]
    assert change.high >= ordered[-1 - place]
    low, high = _compute_order_interval(make_median_sample(logs), 0.95) or (0, 0)
    assert (low, high) == (np.sort(logs)[place], np.sort(logs)[-1 - place])


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    logs = np.random.default_rng(4).normal(0, 0.01, 40)
    usual_change, surer_change = (
        compute_paired_change(make_median_sample(logs), confidence) for confidence in (0.95, 0.999)
    )
    assert surer_change.low < usual_change.low < usual_change.high < surer_change.high
