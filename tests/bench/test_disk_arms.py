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
    ((_, failure),) = job.run.records_of(ArmFailure)
    error = message.format(
        job.folder / f"{job.run.header.run_id}-p000-rank0000-fdatasync-stream0.kv"
    )
    assert (failure.arm, failure.iteration, failure.rank, failure.error) == (
        "disk@3",
        STRIKES,
        0,
        error,
    )
    # The model computes its request to the end, so the failure shows in the drain.
    assert failure.phase == ("drain" if phase == "tokens" else phase)
    assert f"dejavubench: p000 disk@3 FAILED on rank 0: {error}\n" in job.stderr
    table = read_rows(job)
    statuses = {arm: row["status"] for arm, row in table.items()}
    assert statuses == {
        "none": "ok",
        "none#2": "ok",
        "host@3": "ok",
        "disk@3": "FAILED",
    }
    assert table["host@3"]["samples"] == ROUNDS
    assert (
        table["disk@3"]["reason"] == f"iteration {STRIKES}, phase {failure.phase}, rank 0: {error}"
    )
    assert table["disk@3"]["total_ms"] is None
    assert all(check.ok for _, check in job.run.records_of(Verification))
    assert f"FAILED: iteration {STRIKES}, phase {failure.phase}, rank 0: cannot" in process_folder(
        job.folder
    )


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
