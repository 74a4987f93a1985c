"""Predictions held against measurement, most of them two runs over links of 19 and 119 MB/s.

Their records are in ``results/epyc-bf16-2core/links.tar.xz``: gpt2, batch 4, prompt 32, levels 0
to 3, ``mpi`` and ``tcp``, 10 rounds each.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from dejavubench.analysis.find_runs import find
from dejavubench.analysis.prediction.forecast import predict
from dejavubench.analysis.prediction.inputs import RunInputs
from dejavubench.analysis.prediction.run_inputs import read_inputs
from dejavubench.analysis.prediction.target import Target
from helpers.cli_calls import call
from helpers.committed_runs import unpacked_links
from helpers.paths import DOCS, GOLDEN, SCRIPTS

SLOW, FAST = "link-20261130T154026Z", "link-20261130T154352Z"

THREE_PROMPTS = "links-three-prompts"
"""Archive of four runs with prompts of 128, 192 and 256 tokens."""

NAIVE_ERROR = 0.25
"""Largest error of level 0, of the overhead: its messages vary from run to run."""


def unpack_runs() -> list[Path]:
    return [unpacked_links() / name for name in (SLOW, FAST)]


@cache
def read_runs() -> tuple[RunInputs, ...]:
    return tuple(read_inputs(run) for run in find(unpack_runs()).runs)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_prediction

    script: ModuleType = check_prediction
    return script


def test_runs_that_were_held_out_are_predicted(check: ModuleType) -> None:
    """Each arm from the other link, and levels 1 and 2 also from the other levels of their run."""
    comparisons = [
        comparison
        for case in check.held_out(list(read_runs()))
        if (comparison := check.hold(*case))
    ]
    kinds = [(comparison.kind, comparison.target.level) for comparison in comparisons]
    assert kinds.count(("rate", "3")) == kinds.count(("rate", "0")) == 4
    assert kinds.count(("level", "1")) == kinds.count(("level", "2")) == 4
    for comparison in comparisons:
        if comparison.target.level == "0":
            assert abs(comparison.error) <= NAIVE_ERROR * comparison.measured
        assert comparison.overlaps, (comparison.kind, comparison.source, comparison.target.name)


def test_a_run_predicts_itself() -> None:
    for run in read_runs():
        assert run.arms
        for arm in run.arms:
            target = Target(arm.point.info, burst_nbytes=arm.link.burst_nbytes)
            forecast = predict(run, arm.mode, arm.level, target)
            assert forecast is not None
            assert forecast.arm is arm
            error = forecast.predict_overhead_pct(arm.link.rate)[0] / 100 - arm.overhead.median
            assert abs(error) <= max(arm.overhead.half_width, 0.1 * arm.overhead.median)


def test_the_links_are_known_for_what_they_are() -> None:
    """A token bucket passes half a millisecond of its rate at once, and at least 10 kB.

    A frame of ``tcp`` and a message of ``mpi`` of 128 bytes take about half as many more.
    """
    slow, fast = read_runs()
    for run, burst, rate in ((slow, 10_000, 19.1e6), (fast, 62_500, 119e6)):
        assert run.arms
        for arm in run.arms:
            assert arm.link.burst_nbytes == burst
            assert arm.link.rate == pytest.approx(rate, rel=0.01)
            packets = arm.link.packet_nbytes
            assert (60 < packets < 90) if arm.level == "0" else packets == 0


def test_the_script_says_what_was_kept_and_left_out() -> None:
    job = subprocess.run(
        [sys.executable, SCRIPTS / "check_prediction.py", "--all", unpacked_links(THREE_PROMPTS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "level: half-width above 2 % of TOTAL" in job.stdout
    assert "level: no measured level to predict level 3 from" in job.stdout
    assert "rate, runs together: 30 of 33 within the bound (90.9 %)" in job.stdout
    assert job.stdout.startswith("ok  level           mpi@1   P=192")


@pytest.mark.parametrize(
    ("archive", "counts"), [("links-jumbo-long", (56, 61)), (THREE_PROMPTS, (81, 88))]
)
def test_as_many_predictions_from_runs_together_are_within_the_bound_as_the_docs_say(
    check: ModuleType, archive: str, counts: tuple[int, int]
) -> None:
    runs = [read_inputs(run) for run in find([unpacked_links(archive)]).runs]
    predictions = [
        check.hold(*case) for case in check.held_out(runs) if case[0].endswith(check.TOGETHER)
    ]
    kept_predictions = [
        prediction
        for prediction in predictions
        if prediction and prediction.width <= check.LARGEST_HALF_WIDTH
    ]
    within = [prediction for prediction in kept_predictions if prediction.within]
    assert (len(within), len(kept_predictions)) == counts
    lines = (DOCS / "method" / "prediction.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{archive}`"))
    assert row.endswith(f"| {counts[0]} of {counts[1]} |")


def test_the_forecast_for_25_gbps_keeps_its_golden_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = unpacked_links("links-jumbo-long") / "link-20261201T011951Z"
    arguments = ["plan", "--from", str(run), "--link", "25GB/s"]
    finished_call = call(*arguments)
    assert finished_call.exit_code == 0, finished_call.stderr
    lines = [line.rstrip() for line in finished_call.stdout.splitlines()]
    assert lines == (GOLDEN / "plan_from.txt").read_text().splitlines()
