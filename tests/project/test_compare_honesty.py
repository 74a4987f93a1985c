"""contrib/compare_honesty.py, and what it shows of ``compare`` in a small, seeded version.

Committed records of a CPU; float64 on one thread. The whole version's rates are in
docs/method/compare.md.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavubench.analysis.comparison.gate import GateVerdict
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.records import read_run
from helpers.paths import CONTRIB, RESULTS
from helpers.synthetic_runs import write_run

if TYPE_CHECKING:
    import compare_honesty as honesty

XEON = RESULTS / "xeon-2core" / "records" / "fig25-20261125T040252Z"
"""86 rounds of a machine that drifts: neighbouring rounds of ``none`` correlate with 0.38."""


@pytest.fixture(autouse=True, scope="module")
def script() -> None:
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(CONTRIB))
    import compare_honesty

    globals()["honesty"] = compare_honesty
    patch.undo()


@pytest.fixture(scope="module")
def xeon() -> list[honesty.Record]:
    """The record with one arm: the others would cost time and show the same."""
    (record,) = honesty.records([read_run(XEON)])
    for name in ("host@3", "disk@3"):
        del record.point.arms[name]
    return [record]


def test_equal_runs_apart_are_seldom_a_regression_unless_judged_by_their_times(
    xeon: list[honesty.Record],
) -> None:
    """The reason why overheads are judged there: the record's drift passes for a change."""
    tally = honesty.count_outcomes(
        xeon, Pairing.APART, honesty.apart_in_parts(count=20, injected_change=0.0), 200
    )
    assert tally.count == 200
    assert tally.verdicts[GateVerdict.REGRESSION] <= 10
    assert tally.by_time > 15


@pytest.mark.parametrize("pairing", [Pairing.ROUNDS, Pairing.TURNS])
def test_equal_pairs_are_called_a_regression_in_at_most_one_of_twenty(
    xeon: list[honesty.Record], pairing: Pairing
) -> None:
    draw = honesty.in_rounds if pairing is Pairing.ROUNDS else honesty.in_turns
    tally = honesty.count_outcomes(xeon, pairing, draw(12, 0.0), 200)
    assert tally.verdicts[GateVerdict.REGRESSION] <= 10


@pytest.mark.parametrize("pairing", Pairing)
def test_a_slow_down_of_two_percent_is_found_where_intervals_are_sharp(
    xeon: list[honesty.Record], pairing: Pairing
) -> None:
    draws = {
        Pairing.APART: honesty.apart_in_blocks(count=200, injected_change=0.02),
        Pairing.ROUNDS: honesty.in_rounds(count=300, injected_change=0.02),
        Pairing.TURNS: honesty.in_turns(pairs=300, injected_change=0.02),
    }
    tally = honesty.count_outcomes(xeon, pairing, draws[pairing], 12)
    assert tally.sharp >= 10
    assert tally.sharp_regressions == tally.sharp


@pytest.mark.parametrize("rounds", [6, 12])
def test_the_interval_of_two_arms_holds_the_plain_one_and_ranks_equal_arms_seldom(
    xeon: list[honesty.Record], rounds: int
) -> None:
    """That of ``compare`` and ANSWER. The rates over all committed records are in the docs."""
    plain, used = honesty.rank_pairs(xeon, rounds, injected_change=0.0, count=200, seed=1).values()
    assert used <= plain
    assert used <= 10
    for number in range(20):
        draw = honesty.in_rounds(count=rounds, injected_change=0.0)
        run, _ = draw(xeon[0], np.random.default_rng(number))
        (low, high), (wide_low, wide_high) = honesty.paired_intervals(run).values()
        # Medians are of ratios here and of logarithms there: they differ by less than this.
        assert wide_low <= low + 2e-4
        assert high <= wide_high + 2e-4


def test_rounds_are_drawn_in_blocks_of_neighbours_and_arms_keep_their_rounds_together(
    xeon: list[honesty.Record],
) -> None:
    record, rng = xeon[0], np.random.default_rng(1)
    rounds = honesty.blocks(record, 40, rng)
    places = [record.rounds.index(number) for number in rounds]
    steps = [(next_place - place) % len(record.rounds) for place, next_place in pairwise(places)]
    assert record.block == 17
    assert steps.count(1) >= 37
    ((operand_a,), _) = honesty.apart_in_blocks(count=40, injected_change=0.0)(
        record, np.random.default_rng(1)
    )
    for name, arm in operand_a["p000"].arms.items():
        times = record.point.arms[name].times.total
        assert list(arm.times.total.values()) == [times[number] for number in rounds]


def test_the_parts_of_a_run_are_disjoint_and_the_turns_are_neighbours(
    xeon: list[honesty.Record],
) -> None:
    record, rng = xeon[0], np.random.default_rng(2)
    totals = record.point.arms["none"].times.total
    for _ in range(20):
        (operand_a,), (operand_b,) = honesty.apart_in_parts(count=20, injected_change=0.0)(
            record, rng
        )
        parts = [
            set(side["p000"].arms["none"].times.total.values()) for side in (operand_a, operand_b)
        ]
        assert [len(part) for part in parts] == [20, 20]
        assert not parts[0] & parts[1]
    a_runs, b_runs = honesty.in_turns(pairs=5, injected_change=0.0)(record, rng)
    number_of = {ms: number for number, ms in totals.items()}
    for run_a, run_b in zip(a_runs, b_runs, strict=True):
        ours, theirs = (
            [number_of[ms] for ms in times["p000"].arms["none"].times.total.values()]
            for times in (run_a, run_b)
        )
        assert len(ours) == len(theirs) == 2
        assert abs(ours[0] - theirs[0]) in (2, 84)


def test_baselines_that_are_exchanged_stay_the_two_of_their_round(
    xeon: list[honesty.Record],
) -> None:
    record = xeon[0]
    (run,), _ = honesty.in_rounds(count=30, injected_change=0.5)(record, np.random.default_rng(3))
    first_baseline, second_baseline = (
        run["p000"].arms[name].times.total for name in ("one", "other")
    )
    none, second_none = (arm.times.total for arm in record.point.baseline_arms())
    pairs = {frozenset((none[number], second_none[number])) for number in record.rounds}
    assert all(
        frozenset((first_baseline[number], second_baseline[number] / 1.5)) in pairs
        for number in first_baseline
    )
    assert len({first_baseline[number] in none.values() for number in first_baseline}) == 2


def test_rates_have_binomial_intervals() -> None:
    low, high = honesty.binomial(successes=5, count=100)  # Wilson's interval, by hand
    assert (round(low, 4), round(high, 4)) == (0.0215, 0.1118)
    assert honesty.binomial(successes=0, count=200)[0] == 0
    assert honesty.format_rate(successes=0, count=0) == "–"


def test_real_runs_are_dealt_out_in_turns_and_compared(tmp_path: Path) -> None:
    runs = [
        read_run(
            write_run(
                tmp_path / f"run{number:02d}",
                rounds=8,
                seed=number,
                drift=0.01,
                started_utc=f"2025-01-02T03:{number:02d}:00Z",
            )
        )
        for number in range(8)
    ]
    assert len(list(honesty.real_apart(runs))) == 4
    assert len(list(honesty.real_rounds(runs))) == 8
    turns = list(honesty.real_turns(runs, 3, count=5))
    assert [turn.pairing for turn in turns] == [Pairing.TURNS] * 5
    for turn in turns:
        run_names = [[run.path.name for run in operand.runs] for operand in (turn.a, turn.b)]
        pairs = [sorted(pair) for pair in zip(*run_names, strict=True)]
        assert all(int(folder_b[-2:]) - int(folder_a[-2:]) == 1 for folder_a, folder_b in pairs)
        assert pairs == sorted(pairs)
    assert len({tuple(run.path for run in turn.a.runs) for turn in turns}) > 1
    assert list(honesty.real_turns(runs, 5)) == []
