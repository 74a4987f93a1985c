"""Sentences of ANSWER: costs, pairs and limits of a run in words, and the part of a report.

Pure: synthetic records and numbers; no device, no thread.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dejavubench.analysis.answers.difference_texts import format_noise_of, format_with_range
from dejavubench.analysis.answers.judgement import Difference, Judgement, Noise, judge
from dejavubench.analysis.answers.limits.rules import NOT_KNOWN, NOT_LOOKED_FOR, Limit
from dejavubench.analysis.answers.run_answers import ArmAnswer, RunAnswers
from dejavubench.analysis.answers.sentences import cost_sentence, limit_sentence
from dejavubench.analysis.number_texts import format_percent_with_interval
from dejavubench.analysis.numbers.stats import Estimate
from dejavubench.analysis.reports.report import make_report
from dejavubench.analysis.tables.answer_part import COST_QUESTION
from dejavubench.analysis.tables.report_part import PartContent
from dejavubench.records import Skipped, read_run
from helpers.answered_runs import answer_run, noise, percent, sentences
from helpers.cli_calls import stdout_of
from helpers.committed_runs import report_of_folder
from helpers.paths import RESULTS
from helpers.synthetic_runs import AGAIN, NONE, arm_of, flat_rows, point_of, write_run


def test_one_point_has_a_sentence_for_each_arm_and_pair(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    target = {"target_overhead": 0.02}
    answers = answer_run(tmp_path / "r", arms, factors={"mpi@3": 1.05}, experiment=target)
    host, mpi, pair, *limits = sentences(answers)
    assert host.startswith("host@3: ")
    assert "within this machine's noise (±" in host
    assert host.endswith("no cost shown; target ≤ 2 %: met.")
    assert mpi.startswith("mpi@3: +5.")
    assert ": a cost, beyond this machine's noise (±" in mpi
    assert mpi.endswith("; target ≤ 2 %: missed.")
    assert pair.startswith("host@3 against mpi@3: −4.")
    assert pair.endswith(": host@3 is faster.")
    assert [text.partition(":")[0] for text in limits] == [
        "mpi@3",
        "limit",
    ]
    assert limits[0].startswith("mpi@3: cause not known. Of ")
    assert limits[1] == "limit: not looked for, as host@3 shows no cost."


def test_a_difference_is_told_with_its_range_and_its_noise() -> None:
    within = Difference(percent(2.52, low=1.35, high=4.93), noise(2.83))
    assert (format_with_range(within), format_noise_of(within)) == (
        "+2.52 % (1.35 to 4.93)",
        "±2.83 %",
    )
    assert (
        format_with_range(Difference(percent(1.4, low=-0.2, high=3.1), noise(2)))
        == "+1.40 % (−0.20 to +3.10)"
    )
    assert (
        format_with_range(Difference(percent(-2.3, low=-3.4, high=-0.04), noise(2)))
        == "−2.30 % (−3.40 to −0.04)"
    )
    assert (
        format_with_range(Difference(percent(9150, low=9000, high=9400), noise(2)))
        == "+9,150 % (9,000 to 9,400)"
    )
    assert format_with_range(Difference(percent(7, low=5, high=9, samples=3), noise(2))) == (
        "+7.00 % (5.00 to 9.00 over 3 rounds)"
    )


@pytest.mark.parametrize("half_width", [0.001, 0.05, 1.0, 7.0])
@pytest.mark.parametrize("median_pct", [0.42, 9.994, 11.048, 104.6])
def test_a_cost_has_the_digits_that_the_table_has(median_pct: float, half_width: float) -> None:
    """11.048 must not be +11.0 in the table and +11.05 in a sentence."""
    low_pct, high_pct = median_pct - half_width, median_pct + half_width
    estimate = percent(median_pct, low=low_pct, high=high_pct)
    cell = format_percent_with_interval(median_pct, low_pct, high_pct)
    text = format_with_range(Difference(estimate, noise(0.01)))
    numbers = re.findall(r"[0-9.,]*[0-9]", cell)
    assert re.findall(r"[0-9.,]*[0-9]", text) == numbers
    assert len(numbers) == 3


def test_an_end_that_is_not_zero_is_not_printed_as_zero() -> None:
    cost = Difference(percent(0.07, low=0.004, high=0.1), noise(0.01))
    assert format_with_range(cost) == "+0.07 % (0.004 to 0.10)"


def test_a_pair_that_is_not_ranked_says_what_would_rank_it(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    answers = answer_run(tmp_path / "r", arms, factors={"mpi@3": 1.02}, noise=0.05, rounds=20)
    (pair,) = (text for text in sentences(answers) if " against " in text)
    added_rounds = answers.pairs[0].difference.more_round_count
    assert added_rounds is not None
    reach = format_noise_of(answers.pairs[0].difference)
    below = f", as the difference is below the noise ({reach})"
    assert pair.endswith(f": cannot be ranked{below}; about {added_rounds:,} more rounds would.")


def test_few_rounds_decide_nothing(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    answers = answer_run(tmp_path / "r", arms, factors={"mpi@3": 2.0}, rounds=5)
    assert all("needs 6 rounds" in text for text in sentences(answers))
    assert len(sentences(answers)) == 3  # and no limit


def test_without_a_second_none_the_noise_is_unknown(tmp_path: Path) -> None:
    answers = answer_run(tmp_path / "r", [NONE, arm_of("mpi")], factors={"mpi@3": 2.0})
    (text,) = sentences(answers)
    assert text.endswith("undecided, as the noise is unknown without a second arm none.")


def test_without_a_baseline_the_cost_is_unknown_and_the_remedy_said(tmp_path: Path) -> None:
    (text,) = sentences(answer_run(tmp_path / "r", [arm_of("mpi")]))
    assert text.startswith("What streaming costs is unknown")
    assert "none" in text


def test_an_arm_that_is_faster_than_none_is_not_called_free(tmp_path: Path) -> None:
    answers = answer_run(tmp_path / "r", [NONE, AGAIN, arm_of("mpi")], factors={"mpi@3": 0.8})
    (text,) = sentences(answers)
    assert "faster than without streaming. Something else differs" in text


def test_twelve_points_are_summed_up(tmp_path: Path) -> None:
    points = [point_of(number, input_len=32 * (number + 1)) for number in range(12)]
    arms = [NONE, AGAIN, arm_of("host", "1"), arm_of("host"), arm_of("disk"), arm_of("mpi")]
    factors = {"disk@3": 1.3, "host@1": 1.5}
    answers = answer_run(tmp_path / "r", arms, points, factors=factors, noise=0.01)
    texts = sentences(answers)
    assert len(texts) == 10
    # The default level comes first.
    assert [text.partition(":")[0] for text in texts[:4]] == ["host@3", "disk@3", "mpi@3", "host@1"]
    assert texts[0].startswith("host@3: no cost shown at 12 of 12 points (")
    assert texts[1].startswith("disk@3: a cost at 12 of 12 points (+29.1 to +30.6 %)")
    assert "; largest cost of a request at p0" in texts[1]
    assert texts[4].startswith("host by level: 3 faster than 1 at 12 of 12 points (")
    assert texts[7].startswith("disk@3 against mpi@3: slower at 12 of 12 points (")
    assert texts[8].startswith(("limited by ", "host@1, disk@3: cause not known. For "))
    assert texts[-1] == "limit: not looked for, as host@3, mpi@3 show no cost."


def test_loud_noise_says_first_how_large_a_cost_could_hide() -> None:
    def cost_text(difference: Estimate, reach: float) -> str:
        return cost_sentence(ArmAnswer("p000", "disk@3", Difference(difference, noise(reach))))

    # The arm's own upper end is the bound, however loud or quiet the machine is.
    assert cost_text(percent(5.0, low=-9.0, high=15.0), 7.4) == (
        "disk@3: no cost shown; one of up to 15.0 % could hide (measured +5.00 %, −9.00 to "
        "+15.0; this machine's noise ±7.40 %); about 400 more rounds would show a cost of +5.00 %."
    )
    assert cost_text(percent(6.0, low=-9.0, high=16.0), 2.0).startswith(
        "disk@3: no cost shown; one of up to 16.0 % could hide ("
    )
    assert cost_text(percent(-0.2, low=-7.0, high=3.0), 27.0).endswith(
        "within this machine's noise (−27.0 to +27.0 %, either way): no cost shown."
    )
    assert cost_text(percent(-0.2, low=-2.0, high=3.0), 3.0).endswith(
        ", within this machine's noise (±3.00 %): no cost shown."
    )


@pytest.mark.parametrize(
    ("cost_pct", "noise_high_pct", "measured_text", "noise_range"),
    [
        (11.24, 11.2, "+11.24 % (1.000 to 33.00)", "±11.20 %"),
        (12.4, 11.2, "+12.4 % (1.00 to 33.0)", "±11.2 %"),
        (20.9, 20.8, "+20.9 % (1.00 to 33.0)", "−1.00 to +20.8 %, either way"),
    ],
    ids=["alike", "apart", "range"],
)
def test_a_cost_beyond_its_noise_is_printed_as_the_larger_number(
    cost_pct: float, noise_high_pct: float, measured_text: str, noise_range: str
) -> None:
    cost = Difference(
        percent(cost_pct, low=1.0, high=33.0), Noise(low=-0.01, high=noise_high_pct / 100)
    )
    assert cost_sentence(ArmAnswer("p000", "disk@3", cost)) == (
        f"disk@3: {measured_text}: a cost, beyond this machine's noise ({noise_range})."
    )


def test_noise_is_a_factor_and_a_large_saving_is_distinguished_from_much_noise(
    tmp_path: Path,
) -> None:
    large_noise = Noise(low=-0.2, high=1.1)
    assert judge(percent(-92.5, low=-95.5, high=-86.0), large_noise) is Judgement.FASTER
    assert (
        judge(percent(-50.0, low=-60.0, high=-40.0), large_noise) is Judgement.WITHIN_NOISE
    )  # 2 < 2.1
    assert (
        judge(percent(60.0, low=50.0, high=70.0), Noise(low=-0.5, high=0.05))
        is Judgement.WITHIN_NOISE
    )
    assert (
        format_noise_of(Difference(percent(1, low=0, high=2), large_noise))
        == "−20.0 to +110 %, either way"
    )
    arms = [NONE, AGAIN, arm_of("disk", "0"), arm_of("disk")]
    factors = {"none#2": 2.0, "disk@0": 20.0}
    texts = sentences(answer_run(tmp_path / "r", arms, factors=factors))
    (ladder,) = (text for text in texts if " by level: " in text)
    assert ladder == "disk by level: 3 faster than 0 (−95.0 %)."
    factors["disk@0"] = 1.8
    texts = sentences(answer_run(tmp_path / "near", arms, factors=factors))
    (ladder,) = (text for text in texts if " by level: " in text)
    assert re.fullmatch(
        r"disk by level: 3 cannot be ranked against 0 "
        r"\(−4\d\.\d %, below the noise of \+\S+ to \+10\d %, either way\)\.",
        ladder,
    )


def test_a_cost_whose_medians_point_the_other_way_is_explained() -> None:
    cost = Difference(percent(5.22, low=2.0, high=8.0), noise(1.0))
    turned = ArmAnswer("p000", "disk@3", cost, median_totals_ms=(1962.9, 1819.4))
    assert sentences(RunAnswers([turned]))[1] == (
        "disk@3: the medians of the times point the other way (none 1962.9 ms, disk@3 1819.4 ms). "
        "A cost is the median of the ratios within rounds, from which the machine's drift cancels."
    )
    for medians in ((1962.9, 1999.0), (1962.9, 1962.0)):  # the same sign, and hardly any
        texts = sentences(RunAnswers([ArmAnswer("p000", "disk@3", cost, median_totals_ms=medians)]))
        assert not any("the other way" in text for text in texts)
    texts = sentences(RunAnswers([turned, ArmAnswer("p001", "disk@3", cost)]))
    assert "the other way (of disk@3 at p000 none 1962.9 ms, " in " ".join(texts)


def test_rounds_that_are_proposed_have_an_option_and_a_time() -> None:
    hidden_cost = Difference(percent(0.07, low=0.03, high=0.10), noise(0.09))
    added_rounds = hidden_cost.more_round_count
    assert added_rounds is not None
    answers = RunAnswers(
        [ArmAnswer("p000", "host@3", hidden_cost, token_cost=hidden_cost)],
        round_ms=30e3,
        continue_command="dejavubench run --continue logs/r",
    )
    rounds = hidden_cost.estimate.sample_count + added_rounds
    assert sentences(answers)[1] == (
        "For more rounds go on with this run: dejavubench run --continue logs/r --rounds "
        f"{rounds} (the requests of the added rounds take about {-(-added_rounds // 2)} min)."
    )
    shown_cost = Difference(percent(5.0, low=4.0, high=6.0), noise(0.09))
    assert len(sentences(RunAnswers([ArmAnswer("p000", "host@3", shown_cost)], round_ms=30e3))) == 1


def test_more_rounds_name_the_cost_that_they_would_show() -> None:
    hidden_cost = Difference(percent(0.07, low=0.03, high=0.10), noise(0.09))
    text = cost_sentence(ArmAnswer("p000", "host@3", hidden_cost, token_cost=hidden_cost))
    assert re.search(r"; about [0-9]+ more rounds would show a cost of \+0\.07 %\.$", text)


def test_limits_not_known_are_sentences() -> None:
    limit = Limit(NOT_KNOWN, "of 31.22 ms of cost, 29.27 ms are drain", "")
    limited_parts = ["disk@3 (tokens)", "mpi@3 (tokens)"]
    assert limit_sentence(limit, limited_parts, "disk@3 (tokens)", "p001") == (
        "tokens of disk@3 and mpi@3: cause not known. For disk@3 (tokens) at p001, of 31.22 ms of "
        "cost, 29.27 ms are drain."
    )
    assert limit_sentence(limit, ["mpi@3"]) == (
        "mpi@3: cause not known. Of 31.22 ms of cost, 29.27 ms are drain."
    )


def test_the_largest_median_of_undecided_points_is_not_called_a_cost(tmp_path: Path) -> None:
    points = [point_of(number) for number in range(3)]
    arms = [NONE, AGAIN, arm_of("mpi")]
    answers = answer_run(tmp_path / "r", arms, points, factors={"mpi@3": 1.3}, rounds=4)
    text = sentences(answers)[0]
    assert "undecided (too few rounds) at 3 of 3 points" in text
    assert "; largest median, not yet a cost, at p00" in text


# ---- the part of a report ----


def answer_of(folder: Path) -> PartContent:
    (content,) = (
        content for part, content in make_report(read_run(folder)).parts if part.name == "answers"
    )
    return content


def sentences_of(folder: Path) -> list[str]:
    return answer_of(folder).sentences


def test_a_legend_explains_arms_and_noise_where_they_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [NONE, AGAIN, arm_of("disk", "2"), arm_of("mpi")])
    legend = (
        "mpi@3: to mpi, level 3; disk: fdatasync. Noise: how far two arms without streaming differ."
    )
    assert answer_of(folder).legend == legend
    lines = stdout_of("process", folder).splitlines()
    assert lines[lines.index("ANSWER") + 1] == legend
    assert f"**ANSWER**\n\n*{legend}*\n\n- " in stdout_of("process", folder, "--format", "markdown")
    without_noise = write_run(tmp_path / "few", [NONE, arm_of("mpi")], rounds=3)
    assert answer_of(without_noise).legend == "mpi@3: to mpi, level 3."
    on_disk = write_run(tmp_path / "disk", [NONE, arm_of("disk"), arm_of("mpi")], rounds=3)
    assert answer_of(on_disk).legend == "disk@3: to disk, level 3, fdatasync."
    cached = arm_of("disk").model_copy(
        update={"name": "disk@3/page-cache", "durability": "page-cache"}
    )
    both = write_run(tmp_path / "both", [NONE, arm_of("mpi"), arm_of("disk"), cached], rounds=3)
    assert answer_of(both).legend == "mpi@3: to mpi, level 3; disk@3: fdatasync."
    assert answer_of(write_run(tmp_path / "none", [NONE])).legend == ""


def test_a_run_without_streaming_tells_the_times_of_its_model(tmp_path: Path) -> None:
    points = [point_of(0), point_of(1, input_len=512)]
    texts = sentences_of(write_run(tmp_path / "r", [NONE], points, noise=0.0))
    assert texts[0].startswith("Nothing is streamed in this run. A prompt takes ")
    assert texts[0].endswith(" over 2 points.")
    assert texts[1].startswith("A prompt takes as long as ")


def test_points_are_named_with_what_tells_them_apart(tmp_path: Path) -> None:
    points = [point_of(0), point_of(1, input_len=512)]
    arms = [NONE, AGAIN, arm_of("mpi")]
    text = sentences_of(write_run(tmp_path / "r", arms, points, factors={"mpi@3": 1.2}))[0]
    assert text.startswith("mpi@3: a cost at 2 of 2 points (")
    assert "largest cost of a request at p00" in text
    assert "(prompt " in text


def test_arms_that_were_not_measured_are_named(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi"), arm_of("nccl")]
    skipped = [Skipped(point="p000", arm="nccl@3", reason="no GPU")]
    texts = sentences_of(write_run(tmp_path / "r", arms, skipped=skipped))
    assert texts[-1] == "No answer (SKIPPED): nccl@3."


def test_rows_hold_the_judgement_of_each_arm(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi")]
    run = read_run(write_run(tmp_path / "r", arms, factors={"mpi@3": 1.1}))
    told_from_noise = {row["arm"]: row["told_from_noise"] for row in flat_rows(run)}
    assert told_from_noise == {"none": None, "none#2": None, "host@3": False, "mpi@3": True}
    short_run = read_run(write_run(tmp_path / "few", arms, rounds=5))
    assert {row["told_from_noise"] for row in flat_rows(short_run)} == {None}


@pytest.mark.parametrize(
    ("run_name", "arm_name", "limit"),
    [
        # Source and sink on one GPU: the sink's kernels take the model's multiprocessors.
        ("h200/records/fig25_nccl_loopback-20261125T132852Z", "nccl-loopback@3", "GPU SMs"),
        ("h200-x2/records/fig25-20261130T115708Z", "nccl@3", "GPU SMs"),
        ("h200-x2/records/fig25-20261130T115708Z", "disk@3", "disk rate"),
        ("h200-x2/records/fig25-20261130T115708Z", "host@3", NOT_LOOKED_FOR),
        # A link that was held to 4.8 MB/s.
        ("epyc-2core/records/link-20261125T175824Z", "mpi@3", "link rate"),
    ],
)
def test_causes_that_no_test_can_inject_are_named_on_committed_runs(
    run_name: str, arm_name: str, limit: str
) -> None:
    rows = report_of_folder(RESULTS / run_name).rows_of_parts["answers"]
    limits_by_arm = {row.arm: row.limited_by for row in rows if row.question == COST_QUESTION}
    assert limits_by_arm[arm_name] == limit


def test_a_limit_that_differs_from_point_to_point_names_the_number_of_points() -> None:
    cost = Difference(percent(20, low=15, high=25), noise(1))
    limits = ("link rate", "link rate", "gather")
    arms = [
        ArmAnswer(f"p00{n}", "mpi@1", cost, limit=Limit(name, "1 and 2", "more"))
        for n, name in enumerate(limits)
    ]
    texts = sentences(RunAnswers(arms))
    assert any(text.startswith("limited by link rate: mpi@1 at 2 points (") for text in texts)
    assert any(text.startswith("limited by gather: mpi@1 at 1 point (") for text in texts)


def test_arms_after_too_few_rounds_are_not_called_unrankable(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("mpi", "0"), arm_of("mpi", "1")]
    texts = sentences(answer_run(tmp_path / "r", arms, factors={"mpi@0": 3.0}, rounds=3))
    (ladder,) = (text for text in texts if " by level: " in text)
    assert ladder.startswith("mpi by level: 1 undecided against 0 after too few rounds (−6")


def test_a_run_without_streaming_has_no_sentences(tmp_path: Path) -> None:
    assert sentences(answer_run(tmp_path / "r", [NONE, AGAIN])) == []
