"""Medians, intervals, paired overheads and verdicts."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavubench.analysis.numbers.stats import (
    Estimate,
    Verdict,
    collect_totals_by_arm,
    compute_half_width,
    compute_paired_ratios,
    estimate,
    estimate_noise_floor,
    estimate_paired_overhead,
    judge_overhead,
    list_baseline_series,
)
from dejavubench.records import ArmInfo, Iteration
from helpers.synthetic_runs import AGAIN, NONE, arm_of

times = st.floats(min_value=0.01, max_value=1e5, allow_nan=False)


@given(st.lists(times, min_size=2, max_size=40))
def test_interval_holds_the_median_and_stays_within_the_samples(samples: list[float]) -> None:
    interval = estimate(samples)
    assert interval.median == pytest.approx(np.median(samples))
    assert min(samples) <= interval.low <= interval.median <= interval.high <= max(samples)
    assert interval.sample_count == len(samples)


@given(st.lists(times, min_size=1, max_size=20), st.floats(min_value=0.5, max_value=2.0))
def test_an_estimate_scales_with_its_samples(samples: list[float], factor: float) -> None:
    expected = estimate(samples)
    scaled = estimate([factor * value for value in samples])
    assert scaled.median == pytest.approx(factor * expected.median)
    assert scaled.iqr == pytest.approx(factor * expected.iqr)


def test_one_sample_has_no_interval() -> None:
    assert math.isnan(estimate([3.0]).low)
    assert math.isnan(estimate([3.0]).high)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_an_estimate_of_nothing_or_of_nan_and_infinity_is_refused(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        estimate(samples)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = estimate(rng.lognormal(size=25))
        covered += interval.low <= 1.0 <= interval.high
    # 95 % of 200 are 190, and 10 are three standard deviations. All 200 would be too wide.
    assert 180 <= covered <= 199


@given(
    st.dictionaries(st.integers(0, 30), times, min_size=1), st.floats(min_value=0.5, max_value=50)
)
def test_drift_that_a_round_shares_cancels(drift: dict[int, float], factor: float) -> None:
    first_none = {number: 2.0 * value for number, value in drift.items()}
    second_none = {
        number: 8.0 * value for number, value in drift.items()
    }  # geometric mean: 4 × drift
    slow_arm = {number: 4.0 * factor * value for number, value in drift.items()}
    overhead = estimate_paired_overhead(slow_arm, [first_none, second_none])
    assert overhead is not None
    assert overhead.median == pytest.approx(factor - 1, abs=1e-9)
    floor = estimate_noise_floor([first_none, second_none])
    assert floor is not None
    assert floor.median == pytest.approx(3.0)


def test_only_rounds_that_all_have_are_paired() -> None:
    ratios = compute_paired_ratios({0: 1.0, 1: 6.0, 5: 9.0}, [{1: 2.0, 0: 1.0}, {1: 4.5, 5: 1.0}])
    assert ratios == pytest.approx([2.0])


def test_one_none_is_the_baseline_and_a_missing_one_is_reported() -> None:
    overhead = estimate_paired_overhead({0: 3.0, 1: 3.3}, [{0: 2.0, 1: 2.2}])
    assert overhead is not None
    assert overhead.median == pytest.approx(0.5)
    assert estimate_paired_overhead({0: 3.0}, []) is None
    assert estimate_paired_overhead({0: 3.0}, [{1: 3.0}]) is None
    assert estimate_noise_floor([{0: 1.0}]) is None
    with pytest.raises(ValueError, match="no baseline"):
        compute_paired_ratios({0: 3.0}, [])


@pytest.mark.parametrize(
    ("low", "high", "rounds", "expected"),
    [
        (0.001, 0.02, 6, Verdict.MET),
        (0.001, 0.0201, 6, Verdict.UNRESOLVED),
        (0.02, 0.03, 6, Verdict.UNRESOLVED),
        (0.0201, 0.03, 6, Verdict.MISSED),
        (0.001, 0.002, 5, Verdict.UNRESOLVED),
        (float("nan"), float("nan"), 1, Verdict.UNRESOLVED),
    ],
)
def test_a_target_is_met_only_by_the_upper_end(
    low: float, high: float, rounds: int, expected: Verdict
) -> None:
    assert (
        judge_overhead(
            Estimate(median=(low + high) / 2, low=low, high=high, iqr=0.0, sample_count=rounds),
            0.02,
        )
        is expected
    )


def test_there_is_no_verdict_without_overhead_or_target() -> None:
    assert judge_overhead(None, 0.02) is None
    assert (
        judge_overhead(Estimate(median=0.0, low=0.0, high=0.0, iqr=0.0, sample_count=9), None)
        is None
    )


def make_iterations(
    arms: list[ArmInfo], rounds: int, noise: float, warmups: int = 2
) -> list[Iteration]:
    rng = np.random.default_rng(3)
    return [
        Iteration(
            point="p000",
            arm=arm.name,
            iteration=number + warmups,
            round=number if number >= 0 else None,
            order=order,
            total_ms=100.0 * float(np.exp(rng.normal(0.0, noise if number >= 0 else 3.0))),
        )
        for number in range(-warmups, rounds)
        for order, arm in enumerate(arms)
    ]


def precise_enough(measured: list[Iteration], arms: list[ArmInfo], half_width: float) -> bool:
    """Return whether every point is known to ± ``half_width``, a fraction."""
    widths = [
        compute_half_width(series, arms) for series in collect_totals_by_arm(measured).values()
    ]
    return bool(widths) and all(width is not None and width <= half_width for width in widths)


@pytest.mark.parametrize(
    "arms",
    [[NONE, AGAIN, arm_of("mpi")], [NONE, arm_of("mpi")], [NONE, AGAIN], [NONE], [arm_of("mpi")]],
    ids=str,
)
def test_precise_enough_wants_six_quiet_rounds(arms: list[ArmInfo]) -> None:
    assert precise_enough(make_iterations(arms, rounds=6, noise=0.001), arms, 0.01)
    assert not precise_enough(make_iterations(arms, rounds=5, noise=0.001), arms, 0.01)
    assert not precise_enough(make_iterations(arms, rounds=8, noise=0.3), arms, 0.01)
    assert not precise_enough([], arms, 0.01)


def test_precise_enough_looks_at_every_arm_point_and_the_noise_floor() -> None:
    arms = [NONE, AGAIN, arm_of("mpi")]
    quiet_records = make_iterations(arms, rounds=8, noise=0.0005)
    assert not precise_enough(
        [record for record in quiet_records if record.arm != "mpi@3"], arms, 0.01
    )
    assert not precise_enough(
        quiet_records
        + [
            record.model_copy(update={"point": "p001"})
            for record in quiet_records
            if record.iteration < 5
        ],
        arms,
        0.01,
    )
    noisy_records = [
        record.model_copy(update={"total_ms": record.total_ms * (1 + 0.1 * (record.iteration % 3))})
        for record in quiet_records
    ]
    floor_only = [
        noisy if noisy.arm == "none#2" else calm
        for calm, noisy in zip(quiet_records, noisy_records, strict=True)
    ]
    assert not precise_enough(floor_only, arms, 0.01)


def test_baselines_come_in_the_order_of_their_roles() -> None:
    series = {"none#2": {0: 2.0}, "none": {0: 1.0}, "mpi@3": {0: 3.0}}
    assert list_baseline_series([arm_of("mpi"), AGAIN, NONE], series) == [{0: 1.0}, {0: 2.0}]


def test_stats_needs_neither_pandas_nor_matplotlib() -> None:
    code = (
        "import sys, dejavubench.analysis.numbers.stats;"
        "print(sorted({'pandas', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
