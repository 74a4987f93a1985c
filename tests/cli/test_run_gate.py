"""``run --gate``: the verdicts of one run as its exit status. A tiny fp32 model on one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavubench.analysis.comparison.gate import GateVerdict, judge_targets
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.records import Skipped, read_run
from helpers.cli_calls import call, usage_error
from helpers.jobs import QUICK, args, run
from helpers.synthetic_runs import AGAIN, NONE, arm_of, write_run

MPI, DISK = arm_of("mpi"), arm_of("disk")


@pytest.mark.mpi
def test_a_run_that_misses_its_target_ends_with_4_and_names_the_arm(tmp_path: Path) -> None:
    """Naive streaming to a disk waits for it at every extent, so no noise can hide its cost."""
    flags = args("--streaming disk --level 0 --compare --rounds 6 --warmup 1 --gate")
    target = args("--target-overhead 0.01%")
    job = run(tmp_path, 2, "run", *QUICK, *flags, *target, status=4)
    assert "gate: missed: disk@0" in job.stderr
    assert job.stderr.index("records: ") < job.stderr.index("gate: ")


@pytest.mark.parametrize(
    ("factors", "rounds", "verdict", "text"),
    [
        ({}, 12, GateVerdict.PASS, "each arm met its target"),
        ({"disk@3": 1.1}, 12, GateVerdict.REGRESSION, "missed: disk@3"),
        ({"disk@3": 1.1}, 3, GateVerdict.UNRESOLVED, "unresolved: mpi@3, disk@3"),
    ],
)
def test_the_gate_of_a_run_follows_the_verdicts_of_its_table(
    tmp_path: Path, factors: dict[str, float], rounds: int, verdict: GateVerdict, text: str
) -> None:
    folder = write_run(
        tmp_path / "run",
        arms=(NONE, AGAIN, MPI, DISK, arm_of("nccl")),
        factors=factors,
        rounds=rounds,
        skipped=[Skipped(point="p000", arm="nccl@3", reason="no GPU")],
        experiment={"target_overhead": 0.02},
    )
    assert judge_targets(run_rows(read_run(folder))) == (verdict, text)


def test_a_gate_without_arms_to_judge_is_unresolved() -> None:
    assert judge_targets([]) == (GateVerdict.UNRESOLVED, "unresolved: no arm was measured")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--streaming host,disk", "--gate needs a target. Add --target-overhead, such as 2%"),
        ("--streaming host --target-overhead 2%", "Add --compare"),
        ("--streaming none --target-overhead 2%", "Add --streaming, such as host"),
    ],
)
def test_a_gate_that_could_never_pass_is_refused_before_the_run(flags: str, words: str) -> None:
    dry_run = call("run", *QUICK, *args(flags), "--gate", "--dry-run")
    assert words in usage_error(dry_run)
