"""Answers: told from noise or not, and arms paired with arms.

Pure: synthetic records and numbers; no device, no thread.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dejavubench.analysis.answers.judgement import (
    Judgement,
    Noise,
    count_more_rounds,
    find_side,
    is_within_noise,
    judge,
)
from dejavubench.analysis.answers.pairs import compare_pairs
from dejavubench.analysis.answers.run_answers import find_answers
from dejavubench.analysis.comparison.build import compare
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.operands import parse_selection, read_operand
from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.numbers import stats
from dejavubench.analysis.numbers.stats import Estimate
from dejavubench.records import read_run
from helpers.answered_runs import answer_run, noise, percent
from helpers.synthetic_runs import AGAIN, NONE, arm_of, write_run

# ---- told from noise ----


@pytest.mark.parametrize(
    ("difference", "reach", "judgement"),
    [
        (percent(2.5, low=1.4, high=4.9), 2.8, Judgement.WITHIN_NOISE),  # a trial's own case
        (percent(3.0, low=1.4, high=4.9), 2.8, Judgement.SLOWER),
        (percent(-3.0, low=-4.9, high=-1.4), 2.8, Judgement.FASTER),
        (percent(6.0, low=-9.0, high=16.0), 2.8, Judgement.OPEN),
        (percent(75.0, low=67.0, high=92.0, samples=5), 0.4, Judgement.TOO_FEW),
        (percent(3.0, low=1.4, high=4.9), None, Judgement.NOISE_UNKNOWN),
    ],
)
def test_a_difference_counts_beyond_noise_and_zero(
    difference: Estimate, reach: float | None, judgement: Judgement
) -> None:
    assert judge(difference, None if reach is None else noise(reach)) is judgement
    assert judgement.is_shown == (judgement in (Judgement.SLOWER, Judgement.FASTER))


@pytest.mark.parametrize(
    ("low", "high", "limit", "side"),
    [
        (0.01, 0.03, 0.0, 1),
        (0.0, 0.03, 0.0, 0),
        (-0.03, 0.0, 0.0, 0),
        (-0.03, -0.01, 0.0, -1),
        (0.01, 0.03, 0.02, 0),
        (0.021, 0.03, 0.02, 1),
        (float("nan"), float("nan"), 0.0, 0),
    ],
)
def test_an_interval_lies_on_one_side_of_a_limit_or_holds_it(
    low: float, high: float, limit: float, side: int
) -> None:
    assert find_side(low, high, limit) == side


def test_noise_hides_the_same_factor_up_and_down() -> None:
    doubled = Noise(low=-0.1, high=1.0)
    assert is_within_noise(1.0, doubled)
    assert is_within_noise(-0.5, doubled)
    assert not is_within_noise(-0.51, doubled)


def test_identical_arms_are_seldom_told_apart() -> None:
    """Of 300 runs whose arms are all alike, at most 3 in 100 show a difference."""
    rng = np.random.default_rng(5)
    shown = 0
    for _ in range(300):
        none, second_none, streaming = (
            dict(enumerate(np.exp(rng.normal(0.0, 0.02, 12)))) for _ in range(3)
        )
        floor = stats.estimate_noise_floor([none, second_none])
        overhead = stats.estimate_paired_overhead(streaming, [none, second_none])
        assert floor is not None
        assert overhead is not None
        shown += judge(overhead, Noise(floor.low, floor.high)).is_shown
    assert shown <= 9


# ---- how many more rounds ----


def test_more_rounds_follow_the_square_root_law() -> None:
    """Twice the interval around the same difference needs four times the rounds."""
    rounds_for_a_narrow_interval = count_more_rounds(percent(1.0, low=-1.0, high=3.0), noise(0.5))
    rounds_for_a_wide_interval = count_more_rounds(percent(1.0, low=-3.0, high=5.0), noise(0.5))
    assert rounds_for_a_narrow_interval == 200  # 20 · ((2 · 1.43)² − 1) = 143
    assert rounds_for_a_wide_interval == 700  # 20 · ((4 · 1.43)² − 1) = 634
    assert count_more_rounds(percent(1.0, low=0.5, high=1.5), noise(0.5)) is None  # shown already
    # It would take far too many.
    assert count_more_rounds(percent(0.1, low=-3.0, high=3.0), noise(0.5)) is None
    assert count_more_rounds(percent(1.0, low=-1.0, high=3.0), None) is None


def test_that_many_more_rounds_do_rank_two_arms_mostly() -> None:
    """Of runs with the proposed rounds, four of five are meant to rank the arms."""
    rng = np.random.default_rng(11)
    true_difference = 0.02
    spread = 0.05
    rounds = 16

    def draw_run(rounds: int) -> tuple[Estimate, Noise]:
        none, second_none, slower, faster = np.exp(rng.normal(0.0, spread, (4, rounds)))
        floor = stats.estimate(second_none / none).shift(-1)
        pair = stats.estimate((1 + true_difference) * slower / faster).shift(-1)
        return pair, Noise(floor.low, floor.high)

    # The proposal rests on the difference and the noise that are typical of so few rounds.
    runs = [draw_run(rounds) for _ in range(60)]
    low = float(np.median([pair.low for pair, _ in runs])) + true_difference
    typical = Estimate(
        median=true_difference,
        low=low - true_difference,
        high=3 * true_difference - low,
        iqr=0.0,
        sample_count=rounds,
    )
    reach = float(np.median([run_noise.reach for _, run_noise in runs]))
    added_rounds = count_more_rounds(typical, noise(100 * reach))
    assert added_rounds is not None
    ranked = np.mean([judge(*draw_run(rounds + added_rounds)).is_shown for _ in range(60)])
    assert ranked >= 0.6
    assert ranked > np.mean([judge(*run).is_shown for run in runs]) + 0.3


# ---- which pairs ----


def test_three_destinations_are_compared_with_each_other_and_more_with_the_cheapest(
    tmp_path: Path,
) -> None:
    three = [NONE, AGAIN, arm_of("host"), arm_of("disk"), arm_of("mpi")]
    answers = answer_run(tmp_path / "three", three)
    compared_arms = [(pair.arm_name, pair.other_name) for pair in answers.pairs]
    assert compared_arms == [
        ("host@3", "disk@3"),
        ("host@3", "mpi@3"),
        ("disk@3", "mpi@3"),
    ]
    factors = {"host@3": 1.1, "disk@3": 1.2, "mpi@3": 1.02, "tcp@3": 1.3}
    answers = answer_run(tmp_path / "four", [*three, arm_of("tcp")], factors=factors)
    compared_arms_of_four = [(pair.arm_name, pair.other_name) for pair in answers.pairs]
    assert compared_arms_of_four == [(f"{mode}@3", "mpi@3") for mode in ("host", "disk", "tcp")]


def test_levels_are_compared_step_by_step(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, *(arm_of("mpi", level) for level in ("3", "0", "0-batched", "1"))]
    answers = answer_run(tmp_path / "r", arms)
    compared_levels = [(pair.arm_name, pair.other_name) for pair in answers.pairs]
    assert compared_levels == [
        ("mpi@0-batched", "mpi@0"),
        ("mpi@1", "mpi@0-batched"),
        ("mpi@3", "mpi@1"),
    ]


def test_arms_are_paired_within_their_rounds(tmp_path: Path) -> None:
    """Each round drifts by 15 %, which all of its arms share."""
    factors = {"host@3": 1.03, "mpi@3": 1.05}
    run = read_run(
        write_run(tmp_path / "r", [NONE, AGAIN, arm_of("host"), arm_of("mpi")], None, factors)
    )
    (samples,) = collect(run).values()
    (pair,) = compare_pairs(samples)
    assert pair.difference.estimate.median == pytest.approx(1.03 / 1.05 - 1, abs=0.002)
    assert pair.difference.judgement is Judgement.FASTER


@pytest.mark.parametrize("rounds", [6, 9, 20])
def test_two_arms_have_the_interval_that_compare_gives_them(tmp_path: Path, rounds: int) -> None:
    """Rounds that drift and alternate: intervals made in two ways would differ."""
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    factors = {"mpi@3": 1.01}
    folder = write_run(tmp_path / "r", arms, factors=factors, noise=0.03, rounds=rounds)
    run = read_run(folder)
    (pair,) = find_answers(run, collect(run), [], []).pairs
    operands = [
        read_operand(name, parse_selection(f"{folder}:{arm_name}"))
        for name, arm_name in (("A", pair.other_name), ("B", pair.arm_name))
    ]
    (row,) = compare(operands[0], operands[1], Metric.TOTAL).rows
    change = row.time
    interval = pair.difference.estimate
    assert row.gate.confidence_pct == 95
    assert change.time_change_pct == pytest.approx(100 * interval.median)
    assert change.time_change_low_pct == pytest.approx(100 * interval.low)
    assert change.time_change_high_pct == pytest.approx(100 * interval.high)
