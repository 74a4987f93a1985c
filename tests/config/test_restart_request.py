"""Which iteration a run ended in, and what is run of its experiment when that is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavubench.config.experiment import Experiment
from dejavubench.config.plan import Plan
from dejavubench.config.resolve import load
from dejavubench.config.restart_request import PHASES_WITH_CACHE, find_restart_request
from dejavubench.errors import UsageError
from helpers.killed_runs import write_killed_run


@pytest.mark.parametrize("phase", PHASES_WITH_CACHE)
def test_one_point_and_one_arm_are_left_of_a_sweep(phase: str, tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "run", phase, "p001", "disk@0")
    request, values = find_restart_request(folder)
    assert (request.point_id, request.arm_name, request.durability, request.phase) == (
        "p001",
        "disk@0",
        "fdatasync",
        phase,
    )
    assert request.stream_dir == folder
    assert request.stream_name(3) == "0123456789abcdef-p001-rank0003-fdatasync"
    experiment = Experiment.model_validate(values)
    plan = Plan(experiment)
    (point,), (arm,) = plan.points, plan.arms
    assert (point.spec.name, point.ubatch_size, point.input_len) == ("gpt2-xl", 4, 256)
    assert (point.output_len, point.positions) == (7, 256 + 7 - 1)
    assert (arm.name, arm.level, experiment.keep) == ("disk@0", "0", True)


def test_stream_files_are_looked_for_in_the_killed_runs_stream_dir(tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "run", "tokens", "p000", "disk@3", stream_dir="/somewhere")
    assert find_restart_request(folder)[0].stream_dir == Path("/somewhere")


@pytest.mark.parametrize(
    ("phase", "point_id", "arm_name", "message"),
    [
        (
            "prepare",
            "p000",
            "disk@3",
            "{} ended in phase prepare of disk@3, when no request was under way",
        ),
        (
            "alone",
            "p000",
            "disk@3",
            "{} ended in phase alone of disk@3, when no request was under way",
        ),
        (
            "tokens",
            "p000",
            "none",
            "{} ended in phase tokens of none: only a request that is streamed to disk can be "
            "restarted",
        ),
        ("load", "p000", None, "{} ended in phase load, when no request was under way"),
        (
            "tokens",
            "p007",
            "disk@3",
            "the records in {} name p007 disk@3, but its run.json does not: they are of different "
            "runs, or damaged",
        ),
    ],
)
def test_a_request_that_was_not_on_disk_yet_cannot_be_restarted(
    phase: str, point_id: str, arm_name: str | None, message: str, tmp_path: Path
) -> None:
    folder = write_killed_run(tmp_path / "run", phase, point_id, arm_name)
    with pytest.raises(UsageError) as caught:
        find_restart_request(folder)
    assert str(caught.value) == f"--restart-request: {message.format(folder)}"


@pytest.mark.parametrize(
    ("phase", "arm_name"),
    [("restore", "disk@3"), ("stream again", "disk@3"), ("reference tokens", None)],
)
def test_a_restart_that_was_killed_as_it_began_names_the_run_to_restart(
    phase: str, arm_name: str | None, tmp_path: Path
) -> None:
    folder = write_killed_run(tmp_path / "run", phase, "p000", arm_name, resume="logs/first")
    with pytest.raises(
        UsageError,
        match=r"when no request was under way\. Restart logs/first again, which it was restarting",
    ):
        find_restart_request(folder)


def test_points_cannot_be_chosen_for_a_restart(tmp_path: Path) -> None:
    folder = write_killed_run(tmp_path / "run", "tokens", "p001", "disk@0")
    with pytest.raises(UsageError, match="--points cannot be combined with --restart-request"):
        load(None, {"resume": folder, "device": "cpu"}, {}, only_points=("p001",))
