"""An arm whose device fails is out on all ranks; the others go on to the end. Real mpirun jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dejavubench.records import ArmFailure, End, Iteration, RankFailure, Verification
from helpers.faults import FAULTY, SIZES, STRIKES, has_struck
from helpers.jobs import Job, args, process_folder

pytestmark = pytest.mark.mpi

ROUNDS = 4


def run_with_fault(
    cwd: Path, fault: str, *flags: object, ranks: int = 1, streaming: str = "host,disk"
) -> Job:
    """Run a job with a fault in it to its end."""
    common = ("--streaming", streaming, "--warmup", "0", "--rounds", ROUNDS)
    with Job(cwd, ranks, fault, "run", *SIZES, *common, *flags, driver=FAULTY) as job:
        assert job.wait() == 1, job.stderr
        assert has_struck(job)
        assert {end.status for _, end in job.run.records_of(End)} == {"failed"}
        assert not list(job.run.records_of(RankFailure))
        assert "Traceback" not in job.stderr
        assert not [file for file in cwd.rglob("*") if file.suffix in (".kv", ".part")]
        return job


def read_rows(job: Job) -> dict[str, dict[str, object]]:
    return {row["arm"]: row for row in json.loads(process_folder(job.folder, "json"))[0]["rows"]}


@pytest.mark.parametrize(
    ("phase", "error_name", "message"),
    [
        ("prepare", "ENOSPC", "cannot write {}: No space left on device"),
        ("tokens", "EFBIG", "cannot write {}: File too large"),
        ("verify", "EIO", "cannot read {}: Input/output error"),
    ],
)
def test_an_arm_whose_disk_fails_is_out_and_the_others_go_on(
    tmp_path: Path, phase: str, error_name: str, message: str
) -> None:
    job = run_with_fault(tmp_path, f"disk-fails:{phase}:{error_name}")
    path = job.folder / f"{job.run.header.run_id}-p000-rank0000-fdatasync-stream0.kv"
    error = message.format(path)
    # The model computes its request to the end, so the failure shows in the drain.
    failed_phase = "drain" if phase == "tokens" else phase
    require_failure_in_records(job, failed_phase, error)
    assert f"dejavubench: p000 disk@3 FAILED on rank 0: {error}\n" in job.stderr
    require_failed_arm_in_rows(job, failed_phase, error)
    reason = f"FAILED: iteration {STRIKES}, phase {failed_phase}, rank 0: cannot"
    assert reason in process_folder(job.folder)


def require_failure_in_records(job: Job, phase: str, error: str) -> None:
    """Hold that one arm failed, on rank 0 in the round of the fault, and that all bytes are right.

    Args:
        job: a finished job whose disk failed.
        phase, error: where in the round the arm failed, and of what.
    """
    ((_, failure),) = job.run.records_of(ArmFailure)
    assert (failure.arm, failure.iteration, failure.rank) == ("disk@3", STRIKES, 0)
    assert (failure.phase, failure.error) == (phase, error)
    assert all(check.ok for _, check in job.run.records_of(Verification))


def require_failed_arm_in_rows(job: Job, phase: str, error: str) -> None:
    """Hold that the failed arm has a reason and no time, and another arm all of its rounds."""
    table = read_rows(job)
    assert {arm: row["status"] for arm, row in table.items()} == {
        "none": "ok",
        "none#2": "ok",
        "host@3": "ok",
        "disk@3": "FAILED",
    }
    assert table["host@3"]["samples"] == ROUNDS
    failed_row = table["disk@3"]
    assert failed_row["reason"] == f"iteration {STRIKES}, phase {phase}, rank 0: {error}"
    assert failed_row["total_ms"] is None


def test_all_ranks_agree_that_an_arm_failed_on_one_of_them(tmp_path: Path) -> None:
    """Sources wait for each other in every step, and a sink has nothing to do with the disk."""
    job = run_with_fault(
        tmp_path,
        "disk-fails:tokens:EIO:1",
        *args("--tensor-para-size 2 --level 2,3 --no-ceilings"),
        ranks=4,
        streaming="disk,mpi",
    )
    failures = [failure for _, failure in job.run.records_of(ArmFailure)]
    assert {(failure.arm, failure.rank) for failure in failures} == {("disk@2", 1), ("disk@3", 1)}
    table = read_rows(job)
    assert {arm for arm, row in table.items() if row["status"] == "ok"} == {
        "none",
        "none#2",
        "mpi@2",
        "mpi@3",
    }
    counts = {
        arm: sum(iteration.arm == arm for _, iteration in job.run.records_of(Iteration))
        for arm in table
    }
    assert counts == {
        "none": 4,
        "none#2": 4,
        "mpi@2": 4,
        "mpi@3": 4,
        "disk@2": STRIKES,
        "disk@3": STRIKES,
    }


def test_a_run_of_the_failing_arm_alone_ends_at_once(tmp_path: Path) -> None:
    job = run_with_fault(tmp_path, "disk-fails:tokens:ENOSPC", "--rounds", 10**6, streaming="disk")
    assert {row["status"] for row in read_rows(job).values()} == {"FAILED"}
