"""Comparisons of made-up runs whose change is known. Records of a bf16 cache on a CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.comparison import change_result
from dejavubench.analysis.comparison.build import Comparison
from dejavubench.analysis.comparison.change_sentences import make_notes
from dejavubench.analysis.comparison.comparable import NotComparableError, require_comparable
from dejavubench.analysis.comparison.differences import (
    CELL_OPTIONS,
    COMPARABLE_OPTIONS,
    FIXED_OPTIONS,
    HARMLESS_OPTIONS,
    RunDifference,
)
from dejavubench.analysis.comparison.document import make_comparison_block
from dejavubench.analysis.comparison.gate import GateVerdict
from dejavubench.analysis.comparison.metric import Metric
from dejavubench.analysis.comparison.pairing import Pairing
from dejavubench.config.experiment import Experiment
from dejavubench.records import read_run
from helpers.cli_calls import call, usage_error
from helpers.operands import DISK, HOST, MPI, compare_runs, write_operand
from helpers.synthetic_runs import AGAIN, ENVIRONMENT, NONE, arm_of, point_of, write_run


def verdicts(comparison: Comparison) -> dict[str, GateVerdict | None]:
    return {row.arm: row.gate.verdict for row in comparison.rows}


def texts_of(comparison: Comparison) -> list[str]:
    return [note.text for note in make_notes(comparison)]


# ---- doubts about the operands ----


def test_a_comparison_says_that_an_operand_is_noisy(tmp_path: Path) -> None:
    run_a, run_b = write_operand(tmp_path / "a", 1), write_operand(tmp_path / "b", 2, noise=0.1)
    (doubt,) = (text for text in texts_of(compare_runs(run_a, run_b)) if "noise: " in text)
    assert doubt.startswith("B: noise: two identical baselines (none, none#2) differ by ")
    (doubt,) = (
        text
        for text in texts_of(compare_runs(f"{run_b}:none", f"{run_b}:mpi@3"))
        if "noise: " in text
    )
    assert doubt.startswith("A: noise: ")
    runs = write_turns(tmp_path / "turns", pairs=2, times=1.0, noise=0.1)
    text = "in 2 of 2 runs two identical baselines differ by more than 5 %"
    assert {f"A: {text}", f"B: {text}"} <= set(texts_of(compare_runs(*runs)))


def test_a_baseline_that_changed_leads_the_result_with_the_times(tmp_path: Path) -> None:
    run_a, run_b = (
        write_operand(tmp_path / "a", 1),
        write_operand(tmp_path / "b", 2, times=2.5, factors={"mpi@3": 2.0}),
    )
    (row,) = (row for row in compare_runs(run_a, run_b).rows if row.arm == "mpi@3")
    assert row.time.time_change_pct == pytest.approx(400, abs=10)
    assert re.fullmatch(
        r"Unresolved: none itself changed by \+1\d\d %, so overheads do not compare\. By time: "
        r"mpi@3 \+(39\d|40\d) % \(\+\d+ to \+\d+\)\.",
        change_result.describe_result(compare_runs(run_a, run_b, limit=None)),
    )
    gated = call("compare", run_a, run_b, "--fail-above", "5%")
    assert gated.exit_code == 3
    text = " ".join(gated.stdout.split())
    assert "UNRESOLVED: none itself changed by +1" in text
    assert "may be slower" not in text
    assert (
        "The exit status is 3. To decide: at least 7 runs each that take turns (A B A B); fewer "
        "pairs make no interval."
    ) in text


def test_baselines_that_changed_at_several_points_are_counted(tmp_path: Path) -> None:
    points = [point_of(), point_of(1, input_len=128)]
    run_a = write_operand(tmp_path / "a", 1, points=points)
    run_b = write_operand(tmp_path / "b", 2, points=points, times=2.0)
    text = change_result.describe_result(compare_runs(run_a, run_b, limit=None))
    assert text.startswith(
        "Unresolved: none itself changed at 2 points, so overheads do not compare. By time: p000 "
        "mpi@3 +"
    )
    assert "; p001 mpi@3 +" in text


def test_each_value_that_differs_is_named_once(tmp_path: Path) -> None:
    points = ([point_of()], [point_of(input_len=32)], [point_of()])
    runs = [
        read_run(write_operand(tmp_path / name, 1, points=chosen, rounds=2))
        for name, chosen in zip("abc", points, strict=True)
    ]
    with pytest.raises(NotComparableError, match=r"in input_len: 256 \(a and 1 more\), 32 \(b\)$"):
        require_comparable(runs, ["input_len"])


def test_one_confidence_beside_95_percent_is_printed_and_explained(tmp_path: Path) -> None:
    arms = (NONE, AGAIN, MPI, DISK)
    run_a, run_b = (
        write_operand(tmp_path / name, seed, arms=arms) for seed, name in enumerate("ab")
    )
    text = " ".join(call("compare", run_a, run_b, "--fail-above", "0").stdout.split())
    assert (
        "Several rows are judged, and each could err. So each interval is wider, one of 97.5 %: "
        "all 2 are right together in 95 % of comparisons."
    ) in text
    confidences = set(re.findall(r"(\d\d(?:\.\d+)?) %(?= of comparisons|:)", text))
    assert confidences == {"97.5", "95"}


def test_another_machine_stands_before_every_number(tmp_path: Path) -> None:
    run_a, run_b = write_operand(tmp_path / "a", 1), write_operand(tmp_path / "b", 2)
    machine_difference = [RunDifference("machine", "machine", "0be6", "a331")]
    for limit in (0.0, None):
        comparison = compare_runs(run_a, run_b, limit=limit)
        assert "machine" not in change_result.describe_result(comparison)
        text = change_result.describe_result(replace(comparison, differences=machine_difference))
        assert text == (
            "A and B ran on different machines (0be6 and a331), which alone can make a change. "
            + change_result.describe_result(comparison)
        )


def test_a_change_within_the_noise_says_so_where_answer_would_not_rank(tmp_path: Path) -> None:
    arms = (NONE, AGAIN, MPI, DISK)
    factors = {"none#2": 1.1, "disk@3": 1.05}
    run = write_operand(tmp_path / "run", 1, arms=arms, factors=factors, noise=1e-4)
    comparison = compare_runs(f"{run}:mpi@3", f"{run}:disk@3", limit=None)
    assert re.search(
        r"^Slower: mpi@3 → disk@3 \+5\.\d+ % \(.*\), within the noise of two identical arms "
        r"\(±10\.?\d* %\)\.$",
        change_result.describe_result(comparison),
    )
    assert any("ANSWER asks as well that" in text for text in texts_of(comparison))
    quiet_run = write_operand(
        tmp_path / "quiet", 1, arms=arms, factors={"disk@3": 1.05}, noise=1e-4
    )
    assert "noise" not in change_result.describe_result(
        compare_runs(f"{quiet_run}:mpi@3", f"{quiet_run}:disk@3", limit=None)
    )


def test_a_change_from_one_none_is_told_from_the_overhead_over_both(tmp_path: Path) -> None:
    run = write_operand(tmp_path / "run", 1)
    (text,) = (
        text
        for text in texts_of(compare_runs(f"{run}:none", f"{run}:mpi@3"))
        if "none alone" in text
    )
    assert text.startswith(
        "This change is relative to none alone. The overhead in the run's report"
    )
    run_of_one_none = write_operand(tmp_path / "one", 1, arms=(NONE, MPI))
    for run_a, run_b in (
        (f"{run_of_one_none}:none", f"{run_of_one_none}:mpi@3"),
        (f"{run}:none", f"{run}:none#2"),
    ):
        assert not any("relative to none" in text for text in texts_of(compare_runs(run_a, run_b)))


def test_none_that_changed_is_the_reason_even_if_its_interval_holds_0(tmp_path: Path) -> None:
    run_a, run_b = (
        write_operand(tmp_path / "a", 1),
        write_operand(tmp_path / "b", 2, times=0.8, drift=0.5),
    )
    comparison = compare_runs(run_a, run_b)
    none, mpi = comparison.rows
    assert none.time.time_change_pct is not None
    assert abs(none.time.time_change_pct) > 5
    assert mpi.gate.verdict is GateVerdict.UNRESOLVED
    assert mpi.gate.reason is not None
    assert mpi.gate.reason.startswith("none itself changed by −")
    assert any("both baselines together" in text for text in texts_of(comparison))


# ---- runs apart ----


def test_a_slower_arm_is_found_although_the_machine_was_another_that_day(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1)
    run_b = write_operand(tmp_path / "b", 2, times=0.98, factors={"mpi@3": 1.02})
    comparison = compare_runs(run_a, run_b)
    assert comparison.pairing is Pairing.APART
    assert verdicts(comparison) == {"none": None, "mpi@3": GateVerdict.REGRESSION}
    change = comparison.rows[1].overhead
    assert change.overhead_change_low_pct is not None
    assert change.overhead_change_high_pct is not None
    assert change.overhead_change_low_pct < 2 < change.overhead_change_high_pct
    assert compare_runs(run_b, run_a).verdict is GateVerdict.PASS


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        (0.0, GateVerdict.REGRESSION),
        (0.02, GateVerdict.UNRESOLVED),
        (0.05, GateVerdict.PASS),
    ],
)
def test_the_interval_is_held_against_the_limit(
    tmp_path: Path, limit: float, verdict: GateVerdict
) -> None:
    run_a = write_operand(tmp_path / "a", 1)
    run_b = write_operand(tmp_path / "b", 2, factors={"mpi@3": 1.02})
    assert compare_runs(run_a, run_b, limit=limit).verdict is verdict


def test_a_model_that_is_slower_does_not_pass_and_one_of_another_speed_decides_nothing(
    tmp_path: Path,
) -> None:
    run_a = write_operand(tmp_path / "a", 1, arms=(NONE, AGAIN, MPI), noise=1e-4)
    slower = write_operand(tmp_path / "b", 2, times=0.5)
    comparison = compare_runs(run_a, slower)
    assert comparison.verdict is GateVerdict.UNRESOLVED
    reason = comparison.rows[1].gate.reason
    assert "none itself changed" in (reason or "")
    assert "none itself changed" in (
        compare_runs(slower, run_a, limit=0.05).rows[1].gate.reason or ""
    )


def test_runs_without_a_baseline_are_shown_and_never_judged_by_their_times(tmp_path: Path) -> None:
    run_a, run_b = (
        write_operand(tmp_path / name, seed, arms=(MPI,), times=times)
        for name, seed, times in (("a", 1, 1.0), ("b", 2, 1.5))
    )
    comparison = compare_runs(run_a, run_b)
    assert verdicts(comparison) == {"mpi@3": GateVerdict.UNRESOLVED}
    assert "without a baseline" in (comparison.rows[0].gate.reason or "")


def test_too_few_rounds_decide_nothing(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1, rounds=5)
    run_b = write_operand(tmp_path / "b", 2, rounds=5, factors={"mpi@3": 1.5})
    comparison = compare_runs(run_a, run_b)
    assert comparison.verdict is GateVerdict.UNRESOLVED
    assert comparison.rows[1].gate.reason == "5 of at least 6 rounds or pairs"


def test_more_judged_arms_get_wider_intervals_each(tmp_path: Path) -> None:
    for arms, confidence in (((MPI,), 95), ((MPI, DISK), 97.5)):
        run_a, run_b = (
            write_operand(tmp_path / f"{len(arms)}{seed}", seed, arms=(NONE, AGAIN, *arms))
            for seed in (1, 2)
        )
        assert compare_runs(run_a, run_b).rows[1].gate.confidence_pct == pytest.approx(confidence)


# ---- rounds and runs in turns ----


def test_two_arms_of_one_run_are_paired_by_round(tmp_path: Path) -> None:
    run = write_operand(
        tmp_path / "run", 1, arms=(NONE, AGAIN, MPI, DISK), factors={"disk@3": 1.01}
    )
    comparison = compare_runs(f"{run}:mpi@3", f"{run}:disk@3")
    assert comparison.pairing is Pairing.ROUNDS
    (row,) = comparison.rows
    assert (row.arm, row.pairs) == ("mpi@3 → disk@3", 20)
    assert row.time.time_change_pct == pytest.approx(1, abs=0.2)
    assert row.gate.verdict is GateVerdict.REGRESSION
    assert str(comparison.compared_difference) == "destination: mpi → disk"


def test_a_baseline_can_be_named_to_see_the_noise_or_the_plain_cost_of_an_arm(
    tmp_path: Path,
) -> None:
    run = write_operand(tmp_path / "run", 1, factors={"mpi@3": 1.03})
    noise = compare_runs(f"{run}:none", f"{run}:none#2")
    assert [row.arm for row in noise.rows] == ["none → none#2"]
    assert noise.rows[0].overhead.a_overhead_pct is None
    cost = compare_runs(f"{run}:none", f"{run}:mpi@3")
    assert str(cost.compared_difference) == "destination: none → mpi"
    assert cost.rows[0].time.time_change_pct == pytest.approx(3, abs=0.3)


def write_turns(folder: Path, pairs: int, times: float, **changes: Any) -> tuple[Path, Path]:
    """Runs of A and B that alternate, on a machine that gets slower all the time."""
    for turn in range(pairs):
        for place, operand in enumerate("ab"):
            run = folder / operand / f"run{turn}"
            minute = f"2025-01-02T03:{2 * turn + place:02d}:00Z"
            slower = 1.1**turn * (times if operand == "b" else 1.0)
            write_operand(run, 10 * turn + place, slower, rounds=6, started_utc=minute, **changes)
    return folder / "a", folder / "b"


def test_runs_in_turns_judge_the_baseline_as_well(tmp_path: Path) -> None:
    run_a, run_b = write_turns(tmp_path, pairs=16, times=1.3)
    comparison = compare_runs(run_a, run_b)
    assert comparison.pairing is Pairing.TURNS
    assert verdicts(comparison) == {
        "none": GateVerdict.REGRESSION,
        "mpi@3": GateVerdict.REGRESSION,
    }
    assert comparison.rows[0].pairs == 16
    assert comparison.rows[0].samples_a == 96
    # The overhead change stands beside it, so the heading names what is judged.
    headings = make_comparison_block(comparison).columns
    assert [headings[3], *headings[-2:]] == [
        "time change %",
        "overhead change %",
        "verdict on time",
    ]
    assert any("Times are judged" in text for text in texts_of(comparison))
    assert compare_runs(run_b, run_a).verdict is GateVerdict.PASS


def test_few_pairs_of_runs_decide_nothing(tmp_path: Path) -> None:
    run_a, run_b = write_turns(tmp_path, pairs=6, times=1.3)
    comparison = compare_runs(run_a, run_b)
    assert comparison.verdict is GateVerdict.UNRESOLVED
    assert comparison.rows[0].gate.reason == "6 of at least 7 rounds or pairs"


def test_runs_that_took_no_turns_are_refused(tmp_path: Path) -> None:
    run_a, run_b = write_turns(tmp_path, pairs=2, times=1.0)
    (run_b / "run0").rename(tmp_path / "moved")
    with pytest.raises(NotComparableError, match="A has 2 runs and B has 1"):
        compare_runs(run_a, run_b)
    write_operand(run_b / "run9", 99, rounds=6, started_utc="2025-01-02T04:00:00Z")
    (run_a / "run1").rename(run_a / "run8")
    with pytest.raises(NotComparableError, match="by their starts they go AABB"):
        compare_runs(run_a, run_b)


def test_a_side_whose_runs_differ_is_refused(tmp_path: Path) -> None:
    run_a, run_b = write_turns(tmp_path, pairs=1, times=1.0, experiment={"threads": 1})
    for operand, threads, start in (
        (run_a, 2, "2025-01-02T05:00:00Z"),
        (run_b, 1, "2025-01-02T05:01:00Z"),
    ):
        write_operand(
            operand / "run1", 5, rounds=6, experiment={"threads": threads}, started_utc=start
        )
    with pytest.raises(NotComparableError, match="the runs of A differ in threads: 1 → 2"):
        compare_runs(run_a, run_b)


# ---- what may differ ----


def compare_settings(
    tmp_path: Path, run_a: Mapping[str, Any], run_b: Mapping[str, Any]
) -> Comparison:
    write_operand(tmp_path / "a", 1, experiment=dict(run_a))
    write_operand(tmp_path / "b", 2, experiment=dict(run_b))
    return compare_runs(tmp_path / "a", tmp_path / "b")


def test_one_setting_that_may_differ_is_what_is_compared(tmp_path: Path) -> None:
    comparison = compare_settings(
        tmp_path, {"threads": 1, "warmup": 1, "name": "x"}, {"threads": 2, "warmup": 2}
    )
    assert str(comparison.compared_difference) == "threads: 1 → 2"
    assert [str(difference) for difference in comparison.differences] == ["warmup: 1 → 2"]


def test_rounds_that_differ_are_those_measured_and_not_those_first_asked_for(
    tmp_path: Path,
) -> None:
    """The header of a run that was continued has the rounds of its first session."""
    continued_run = write_operand(tmp_path / "a", 1, rounds=30, experiment={"rounds": 10})
    for rounds, words in ((20, ["measured rounds: 30 → 20"]), (30, [])):
        run = write_operand(tmp_path / str(rounds), 2, rounds=rounds, experiment={"rounds": 20})
        comparison = compare_runs(continued_run, run)
        assert list(map(str, comparison.differences)) == words


def test_two_settings_and_settings_of_other_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotComparableError, match="differ in 2 settings: threads: 1 → 2; staging"):
        compare_settings(
            tmp_path / "two", {"threads": 1, "staging_mib": 16}, {"threads": 2, "staging_mib": 8}
        )
    with pytest.raises(NotComparableError, match="max_seq_len: 300 → 400"):
        compare_settings(tmp_path / "fixed", {"max_seq_len": 300}, {"max_seq_len": 400})
    with pytest.raises(NotComparableError, match="of_tomorrow: 1 → 2"):
        compare_settings(tmp_path / "new", {"of_tomorrow": 1}, {"of_tomorrow": 2})


def test_an_option_that_an_older_program_lacked_had_its_default(tmp_path: Path) -> None:
    write_operand(tmp_path / "old", 1, experiment={"threads": 1})
    todays_options = {"threads": 1, "flush_interval": 1}
    write_operand(tmp_path / "new", 2, experiment=todays_options, settings=[])
    assert compare_runs(tmp_path / "old", tmp_path / "new").compared_difference is None
    todays_options = {"threads": 1, "flush_interval": 4}
    write_operand(tmp_path / "set", 3, experiment=todays_options, settings=["--flush-interval 4"])
    comparison = compare_runs(tmp_path / "old", tmp_path / "set")
    assert str(comparison.compared_difference) == "flush_interval: not an option yet → 4"


def test_every_option_of_run_is_in_one_group() -> None:
    grouped = [*COMPARABLE_OPTIONS, *HARMLESS_OPTIONS, *CELL_OPTIONS, *FIXED_OPTIONS]
    assert sorted(grouped) == sorted(Experiment.model_fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": ENVIRONMENT | {"cores": 4}}, "cores: 2 (a), 4 (b)"),
        ({"points": [point_of(model="opt-125m")]}, "model: gpt2 → opt-125m"),
        ({"points": [point_of(input_len=128)]}, "input_len: 256 → 128"),
        ({"arms": (NONE, AGAIN, DISK, HOST)}, "no arm in common: mpi@3 against disk@3, host@3"),
    ],
)
def test_other_work_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_operand(tmp_path / "a", 1)
    write_run(tmp_path / "b", **changes)
    assert words in usage_error(call("compare", tmp_path / "a", tmp_path / "b"))


def test_the_layout_and_the_level_can_be_what_is_compared(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1, points=[point_of(kv_layout="ft")])
    run_b = write_operand(tmp_path / "b", 2, points=[point_of(kv_layout="nhd")])
    assert str(compare_runs(run_a, run_b).compared_difference) == "kv_layout: ft → nhd"
    third_run = write_operand(
        tmp_path / "c", 3, arms=(NONE, AGAIN, arm_of("mpi", "1")), points=[point_of(kv_layout="ft")]
    )
    comparison = compare_runs(run_a, third_run)
    assert str(comparison.compared_difference) == "level: 3 → 1"
    assert [row.arm for row in comparison.rows] == ["none", "mpi@3 → mpi@1"]


def test_arms_and_points_of_one_side_alone_are_named(tmp_path: Path) -> None:
    run_a = write_operand(tmp_path / "a", 1, arms=(NONE, AGAIN, MPI, DISK))
    run_b = write_operand(tmp_path / "b", 2, points=[point_of(), point_of(1, input_len=128)])
    comparison = compare_runs(run_a, run_b)
    assert comparison.unmatched_names == {"A": ["disk@3"], "B": ["p001"]}
    assert [row.arm for row in comparison.rows] == ["none", "mpi@3"]


def test_an_arm_of_another_durability_is_named_with_it(tmp_path: Path) -> None:
    cached_disk = DISK.model_copy(update={"durability": "page-cache"})
    run_a = write_operand(tmp_path / "a", 1, arms=(NONE, AGAIN, MPI, DISK))
    run_b = write_operand(tmp_path / "b", 2, arms=(NONE, AGAIN, MPI, cached_disk))
    comparison = compare_runs(run_a, run_b)
    assert comparison.unmatched_names == {"A": ["disk@3 (fdatasync)"], "B": ["disk@3 (page-cache)"]}
    run_c = write_operand(tmp_path / "c", 3, arms=(NONE, AGAIN, HOST, cached_disk))
    assert "mpi@3, disk@3 (fdatasync) against host@3, disk@3 (page-cache)" in usage_error(
        call("compare", run_a, run_c)
    )


@pytest.mark.parametrize(
    ("run_a", "run_b", "words"),
    [
        ("run", "run", "A and B are the same"),
        ("run", "run:mpi@3", "A and B are the same"),
        ("run", "nothing", "nothing does not exist"),
        ("run", "run:tcp@3", "no arm 'tcp@3'. It has none, none#2, mpi@3"),
        ("run", "run:p007", "no point 'p007'. It has p000"),
        ("run:p000:p001", "run", "at most one point and one arm"),
        ("run/run.json", "run", "is a file. Give the folder of a run"),
    ],
)
def test_a_side_that_names_nothing_new_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_a: str, run_b: str, words: str
) -> None:
    write_operand(tmp_path / "run", 1)
    monkeypatch.chdir(tmp_path)
    assert words in usage_error(call("compare", run_a, run_b))


# ---- metrics ----


@pytest.mark.parametrize("metric", Metric)
def test_each_metric_finds_the_change(tmp_path: Path, metric: Metric) -> None:
    points = [point_of(output_len=20)]
    run_a = write_operand(tmp_path / "a", 1, points=points)
    run_b = write_operand(tmp_path / "b", 2, points=points, factors={"mpi@3": 1.05})
    row = compare_runs(run_a, run_b, metric).rows[1]
    assert row.overhead.overhead_change_pct == pytest.approx(5, abs=0.5)
    assert row.gate.verdict is GateVerdict.REGRESSION


def test_a_p99_of_few_tokens_is_not_compared(tmp_path: Path) -> None:
    run_a, run_b = (
        write_operand(tmp_path / name, seed, rounds=6) for name, seed in (("a", 1), ("b", 2))
    )
    assert "was measured in p99" in usage_error(call("compare", run_a, run_b, "--metric", "p99"))
