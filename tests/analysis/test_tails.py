"""Single tokens: percentiles of all rounds, and the overhead of the slowest ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dejavubench.analysis.breakdown.tails import (
    FEWEST_TOKENS,
    compute_percentiles,
    estimate_p99_noise,
    estimate_p99_overhead,
    find_percentile,
)
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.analysis.figures.drawings import make_drawings
from dejavubench.analysis.reports.report import make_report
from dejavubench.records import ArmFailure, ArmInfo, Microbatch, read_run
from helpers.figure_calls import draw_figures
from helpers.synthetic_runs import AGAIN, NONE, arm_of, flat_rows, point_of, write_run


def make_arm_samples(arm: ArmInfo, rounds: dict[int, list[list[float]]]) -> ArmSamples:
    samples = ArmSamples(point_of(), arm)
    samples.times.steps = rounds
    return samples


def make_point_samples(*arms: ArmSamples) -> PointSamples:
    return PointSamples(point_of(), {arm.info.name: arm for arm in arms})


def test_a_percentile_is_a_measured_time() -> None:
    times = np.arange(1.0, 101.0)
    shares = (0.5, 0.9, 0.99, 1.0, 1e-9)
    assert [find_percentile(times, share) for share in shares] == [50, 90, 99, 100, 1]
    assert [find_percentile(np.arange(1.0, 11.0), share) for share in (0.9, 0.91)] == [9, 10]
    assert find_percentile(np.array([7.0]), 0.99) == 7


def test_tokens_of_all_rounds_are_pooled_and_the_slowest_source_counts() -> None:
    times_of_one_source = {number: [[1.0] * 49 + [2.0]] for number in range(4)}
    times_of_two_sources = {
        number: [*lists, [3.0] * 49 + [2.5]] for number, lists in times_of_one_source.items()
    }
    one_source = compute_percentiles(make_arm_samples(NONE, times_of_one_source))
    assert one_source is not None
    assert (one_source.token_count, one_source.p50_ms, one_source.p90_ms) == (200, 1, 1)
    assert (one_source.p99_ms, one_source.slowest_ms) == (2, 2)
    two_sources = compute_percentiles(make_arm_samples(NONE, times_of_two_sources))
    assert two_sources is not None
    assert (two_sources.token_count, two_sources.p50_ms, two_sources.p99_ms) == (200, 3, 3)
    assert compute_percentiles(make_arm_samples(NONE, {})) is None


@pytest.mark.parametrize("tokens", [FEWEST_TOKENS - 1, FEWEST_TOKENS])
def test_a_p99_needs_a_hundred_tokens(tokens: int) -> None:
    arms = [make_arm_samples(arm, {0: [[1.0] * tokens]}) for arm in (NONE, AGAIN, arm_of("mpi"))]
    samples = make_point_samples(*arms)
    for arm in arms:
        percentiles = compute_percentiles(arm)
        assert percentiles is not None
        assert (percentiles.p99_ms is None) == (tokens < FEWEST_TOKENS)
    assert (estimate_p99_overhead(samples, arms[2]) is None) == (tokens < FEWEST_TOKENS)
    assert (estimate_p99_noise(samples) is None) == (tokens < FEWEST_TOKENS)


def make_tokens(seed: int, rounds: int = 12, tail_by: float = 1.0) -> dict[int, list[list[float]]]:
    """Tokens of rounds that drift alike in all arms. One token in 20 is slow."""
    drift = np.exp(np.random.default_rng(1).normal(0, 0.1, rounds))
    rng = np.random.default_rng(seed)
    rounds_of_tokens = {}
    for number, factor in enumerate(drift):
        times = 10 * factor * np.exp(rng.normal(0, 0.01, 60))
        times[::20] *= 1.5 * tail_by
        rounds_of_tokens[number] = [list(map(float, times))]
    return rounds_of_tokens


def test_only_the_tail_of_an_arm_is_slower() -> None:
    none, second_none = (
        make_arm_samples(NONE, make_tokens(2)),
        make_arm_samples(AGAIN, make_tokens(3)),
    )
    slow_tailed_arm = make_arm_samples(arm_of("mpi"), make_tokens(4, tail_by=1.3))
    unchanged_arm = make_arm_samples(arm_of("host"), make_tokens(5))
    samples = make_point_samples(none, second_none, slow_tailed_arm, unchanged_arm)
    overhead = estimate_p99_overhead(samples, slow_tailed_arm)
    assert overhead is not None
    assert overhead.median == pytest.approx(0.3, abs=0.06)
    assert 0.1 < overhead.low <= overhead.median <= overhead.high
    assert overhead.sample_count == 12
    slow_tail = compute_percentiles(slow_tailed_arm)
    none_tail = compute_percentiles(none)
    assert slow_tail is not None
    assert none_tail is not None
    assert slow_tail.p50_ms == pytest.approx(none_tail.p50_ms, rel=0.02)
    for even in (estimate_p99_overhead(samples, unchanged_arm), estimate_p99_noise(samples)):
        assert even is not None
        assert even.low < 0.03
        assert even.high > -0.03


def test_the_interval_is_that_of_every_choice_of_whole_rounds() -> None:
    """The bisection over weights finds what pooling the drawn rounds anew finds."""
    none = make_tokens(2, rounds=3)
    slow = make_tokens(4, rounds=3, tail_by=1.3)
    arms = [make_arm_samples(NONE, none), make_arm_samples(arm_of("mpi"), slow)]
    overhead = estimate_p99_overhead(make_point_samples(*arms), arms[1])
    assert overhead is not None
    by_hand = []
    for drawn in itertools.product(range(3), repeat=3):
        slow_p99, none_p99 = (
            find_percentile(np.sort(np.concatenate([arm[number][0] for number in drawn])), 0.99)
            for arm in (slow, none)
        )
        by_hand.append(slow_p99 / none_p99 - 1)
    ends = {round(overhead.low, 12), round(overhead.high, 12)}
    assert ends <= {round(ratio, 12) for ratio in by_hand}
    assert min(by_hand) <= overhead.low <= overhead.high <= max(by_hand)


def test_a_table_shows_tails_or_says_why_it_cannot(tmp_path: Path) -> None:
    long_run = read_run(write_run(tmp_path / "long", points=[point_of(output_len=32)], rounds=6))
    run_report = make_report(long_run)
    (block,) = [block for block in run_report.blocks if "single tokens" in block.title]
    cells = {row[0]: row[1:] for group in block.groups for row in group}
    assert cells["none"][-1] == "baseline"
    assert cells["none#2"][-1].startswith("noise ")
    assert "[" in cells["mpi@3"][-1]
    assert cells["mpi@3"][0] == "186"
    assert not any("a p99 needs" in note for note in run_report.note_texts)
    row = flat_rows(long_run)[2]
    assert row["token_p50_ms"] < row["token_p90_ms"] < row["token_p99_ms"] <= row["token_max_ms"]
    short_run = read_run(write_run(tmp_path / "short", rounds=6))
    assert flat_rows(short_run)[2]["token_p99_ms"] is None
    assert flat_rows(short_run)[2]["token_max_ms"] > 0
    assert any(
        "Only 30 tokens: a p99 needs 100" in note for note in make_report(short_run).note_texts
    )


def test_tokens_of_failed_arms_and_of_runs_without_streaming_are_not_shown(tmp_path: Path) -> None:
    report_without_streaming = make_report(read_run(write_run(tmp_path / "alone", [NONE, AGAIN])))
    assert not any("single tokens" in block.title for block in report_without_streaming.blocks)
    failing_arm = make_arm_samples(NONE, {0: [[1.0] * 200]})
    second_none = make_arm_samples(AGAIN, {0: [[4.0] * 200]})
    failing_arm.failure = ArmFailure(
        point="p000", arm="none", iteration=0, phase="tokens", rank=0, error="no space"
    )
    streaming = make_arm_samples(arm_of("mpi"), {0: [[2.0] * 200]})
    overhead = estimate_p99_overhead(
        make_point_samples(failing_arm, second_none, streaming), streaming
    )
    assert overhead is not None
    assert overhead.median == -0.5
    assert np.isnan(overhead.low)
    assert estimate_p99_noise(make_point_samples(failing_arm, second_none)) is None


def test_the_figure_has_every_slow_token_and_some_of_the_others(tmp_path: Path) -> None:
    arms = [NONE, AGAIN, arm_of("host"), arm_of("mpi", "0"), arm_of("mpi", "3")]
    folder = write_run(tmp_path / "r", arms, [point_of(output_len=102)], rounds=4, figure="fig25")
    assert draw_figures(folder, tmp_path / "tails", "--figure", "tails") == ["tails-gpt2"]
    table = pd.read_csv(tmp_path / "tails" / "tails-gpt2.csv")
    tokens = 4 * 101  # rounds, decode steps
    measured = [
        microbatch
        for _, microbatch in read_run(folder).records_of(Microbatch)
        if microbatch.round is not None
    ]
    for arm in arms:
        times = sorted(
            ms
            for microbatch in measured
            if microbatch.arm == arm.name
            for ms in microbatch.token_ms
        )
        part = table[table["arm"] == arm.name]
        assert set(part["tokens"]) == {tokens}
        assert set(part["samples"]) == {4}
        assert 200 < len(part) < 260
        # Every row says how many of the tokens took at least its time.
        counts = [sum(time >= ms - 1e-12 for time in times) for ms in part["token_ms"]]
        assert list(part["at_least_pct"]) == pytest.approx(
            [100 * count / tokens for count in counts]
        )
        assert list(part["token_ms"][:200]) == pytest.approx(times[::-1][:200])
        assert part["at_least_pct"].iloc[-1] == 100


def test_few_tokens_and_other_durabilities_are_drawn(tmp_path: Path) -> None:
    direct = arm_of("disk").model_copy(update={"name": "disk@3/direct", "durability": "direct"})
    arms = [NONE, arm_of("disk"), direct]
    folder = write_run(tmp_path / "r", arms, [point_of(output_len=2)], rounds=1, figure="tails")
    assert draw_figures(folder, tmp_path / "out") == ["tails-gpt2"]
    assert len(pd.read_csv(tmp_path / "out" / "tails-gpt2.csv")) == 3


def test_neighbouring_arms_of_one_level_have_dashes_that_differ(tmp_path: Path) -> None:
    """Tokens of host and mpi often take equally long: a solid line would hide the other one."""
    direct = arm_of("disk").model_copy(update={"name": "disk@3/direct", "durability": "direct"})
    arm_names = ["host@3", "disk@3", "disk@3/direct", "mpi@3"]
    arms = [NONE, AGAIN, arm_of("host"), arm_of("disk"), direct, arm_of("mpi")]
    folder = write_run(tmp_path / "r", arms, rounds=2, figure="fig25")
    ((drawing,), _) = make_drawings([read_run(folder)], name="tails")
    picture = drawing.figure.draw(drawing.frame, drawing.destinations)
    lines = {line.get_label(): line for line in picture.axes[0].get_lines()}
    assert len({lines[name].get_linestyle() for name in arm_names}) == len(arm_names)
    # Durabilities of one destination share its colour.
    assert lines["disk@3"].get_color() == lines["disk@3/direct"].get_color()
