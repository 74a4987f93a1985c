"""For tests of faults: jobs in which something fails at a chosen place, and how they must end."""

from __future__ import annotations

from pathlib import Path

from dejavubench.records import Microbatch, RankFailure
from helpers.jobs import GONE_WITHIN, TINY, Job, args, process_folder
from helpers.paths import DRIVERS

FAULTY = (str(DRIVERS / "faulty.py"),)

SIZES = (*TINY, *args("--ubatch-size 2 --input-len 6 --output-len 6 --no-ceilings"))

STRIKES = 2
"""The iteration in which faulty.py's faults strike; those before it are as they should be."""


def start_faulty(
    cwd: Path, fault: str, *flags: object, streaming: str = "mpi", rounds: int = 4
) -> Job:
    """Start a job of one source and one sink with a fault in it."""
    common = ("--streaming", streaming, "--warmup", "0", "--rounds", rounds)
    return Job(cwd, 2, fault, "run", *SIZES, *common, *flags, driver=FAULTY)


def has_struck(job: Job) -> bool:
    return any(job.cwd.glob("struck-*"))


def has_header(job: Job) -> bool:
    """Return whether the job has begun to record, so that its records can be read."""
    return any((job.cwd / "logs").glob("*/run.json"))


def microbatch_count(job: Job, rank: int = 0) -> int:
    """Return the number of microbatches in the readable records of a rank."""
    return sum(record_rank == rank for record_rank, _ in job.run.records_of(Microbatch))


def wait_for_iterations(job: Job, iterations: int = 1) -> None:
    """Wait until this number of iterations has been measured."""
    job.until(
        lambda: has_header(job) and microbatch_count(job) >= iterations,
        f"{iterations} iterations",
    )


def phase_of(job: Job, rank: int) -> str | None:
    """Return the phase that a rank has marked last."""
    mark = job.run.ranks[rank].last_phase
    return mark.phase if mark else None


def require_failure(job: Job, rank: int, phase: str, error: str) -> None:
    """Assert that the job ends soon after a rank has failed, as stderr and records say."""
    job.until(lambda: has_struck(job), "the fault")
    assert job.wait(GONE_WITHIN) not in (0, None)
    job.all_gone()
    assert f"dejavubench: rank {rank} failed in phase {phase}: {error}" in job.stderr
    assert f"FAILED: rank {rank} " in process_folder(job.folder)
    ((failed_rank, failure),) = job.run.records_of(RankFailure)
    assert (failed_rank, failure.phase) == (rank, phase)
    assert failure.error.startswith(error)
