"""A rank that hangs, and Ctrl-C: the job ends, and the rank at fault is named. Real mpirun jobs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dejavubench.cli.distribute_plan import check_launcher
from dejavubench.errors import UsageError
from dejavubench.machine.launcher import RANK_COUNT_VARIABLES, RANK_VARIABLES
from dejavubench.records import name_rank_file
from helpers.faults import FAULTY, SIZES, has_struck, phase_of, start_faulty, wait_for_iterations
from helpers.jobs import CLI, GONE_WITHIN, PATIENCE, QUICK, Job, process_folder
from helpers.paths import ROOT
from helpers.waits import stays, until

pytestmark = pytest.mark.mpi

TIMEOUT = ("--rank-timeout", "2s")


def until_nothing_is_recorded(job: Job) -> None:
    """Wait until rank 0 has recorded nothing for 0.3 s."""
    file = job.folder / name_rank_file(0)

    def is_quiet() -> bool:
        return time.time() - file.stat().st_mtime > 0.3

    until(is_quiet, "the silence of rank 0")


def start_endless_sources(cwd: Path, *args: object) -> Job:
    """Start two sources that never come to an end."""
    return Job(cwd, 2, "no-fault", "run", *SIZES, "--rounds", 10**6, *args, driver=FAULTY)


def require_hang(job: Job, rank: int, reason: str, phase: str = r"\w+( again)?") -> None:
    """Assert that one rank ended the job; stderr and report name the rank and its phase."""
    assert job.wait(GONE_WITHIN) not in (0, None)
    job.all_gone()
    assert re.findall(r"dejavubench: rank (\d) failed", job.stderr) == [str(rank)], job.stderr
    message = re.search(rf"rank {rank} failed in phase {phase}(, \w+ \S+)*: {reason}", job.stderr)
    assert message, job.stderr
    assert "; --rank-timeout 2s ends the job" in job.stderr
    assert "Traceback" not in job.stderr
    report = process_folder(job.folder)
    assert re.search(
        rf"FAILED: rank {rank} \(\w+ on .*\) hung in phase {phase}.*: {reason}", report
    ), report
    assert not list(job.folder.glob("*.part"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_job(tmp_path: Path, rank: int) -> None:
    with start_faulty(tmp_path, "no-fault", *TIMEOUT, rounds=10**6) as job:
        wait_for_iterations(job)
        os.kill(job.pid(rank), signal.SIGSTOP)
        require_hang(job, rank, "no heartbeat for [23] s: its process is stopped")


@pytest.mark.parametrize("split_by", ["tensor", pytest.param("pipeline", marks=pytest.mark.drill)])
def test_a_rank_that_stops_within_a_collective_call_ends_the_job(
    tmp_path: Path, split_by: str
) -> None:
    with start_endless_sources(tmp_path, f"--{split_by}-para-size", 2, *TIMEOUT) as job:
        wait_for_iterations(job)
        os.kill(job.pid(1), signal.SIGSTOP)
        require_hang(job, 1, "no heartbeat for [23] s: its process is stopped")


@pytest.mark.parametrize("phase", ["verify", pytest.param("prompt", marks=pytest.mark.drill)])
def test_a_stuck_rank_ends_the_job_and_the_rank_that_waits_for_it_is_not_named(
    tmp_path: Path, phase: str
) -> None:
    with start_faulty(tmp_path, f"linger:{phase}", *TIMEOUT) as job:
        job.until(lambda: has_struck(job), "the phase")
        require_hang(job, 0, "no progress for [34] s", phase)


def test_a_rank_may_load_for_longer_than_the_timeout(tmp_path: Path) -> None:
    with start_faulty(tmp_path, "linger:load", "--rank-timeout", "1s") as job:
        job.until(lambda: has_struck(job), "the loading")
        stays(lambda: job.process.poll() is None, "the job", 3.0)
        assert "dejavubench: " not in job.stderr


def test_ctrl_c_ends_a_rank_that_waits_within_mpi_for_a_stopped_one(tmp_path: Path) -> None:
    with start_endless_sources(tmp_path, "--tensor-para-size", 2) as job:
        wait_for_iterations(job)
        os.kill(job.pid(1), signal.SIGSTOP)
        until_nothing_is_recorded(job)  # rank 0 waits in a call of MPI
        job.interrupt()
        assert job.wait(GONE_WITHIN) not in (0, None)
        job.all_gone(2)
        assert re.search(r"dejavubench: rank 0 interrupted in phase \w+", job.stderr)
        assert "Traceback" not in job.stderr


def watchdogs(pids: set[int]) -> list[str]:
    """Return the process ids of the watchdogs of these ranks."""
    process_ids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(f"={pid}:".encode() in entry.read_bytes() for pid in pids):
                process_ids.append(entry.parent.name)
    return process_ids


@pytest.mark.parametrize("victim", ["launcher", pytest.param("rank", marks=pytest.mark.drill)])
def test_no_process_and_no_file_outlives_a_job_that_is_killed(tmp_path: Path, victim: str) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = {"TMPDIR": str(temporary)}
    modes = ("--streaming", "disk,mpi", "--rounds", 10**6)
    with Job(
        tmp_path, 2, "no-fault", "run", *SIZES, *modes, driver=FAULTY, environment=places
    ) as job:
        wait_for_iterations(job)
        pids = {job.pid(rank) for rank in (0, 1)}
        assert len(watchdogs(pids)) == 1
        os.kill(job.process.pid if victim == "launcher" else job.pid(0), signal.SIGKILL)
        job.wait(GONE_WITHIN)
        job.all_gone(2)
        until(lambda: not watchdogs(pids), "the end of the watchdog", 2.0)
        assert not [file.name for file in temporary.iterdir() if not file.name.startswith("hydra")]
        assert not [file.name for file in job.folder.iterdir() if file.suffix in (".kv", ".part")]


STOPPED_IN = {
    "source": ("load", "prompt", "tokens", "drain", "verify"),
    "sink": ("receive", "verify"),
}


@pytest.mark.drill
@pytest.mark.parametrize(
    ("role", "phase"), [(role, phase) for role, phases in STOPPED_IN.items() for phase in phases]
)
def test_a_rank_that_is_stopped_in_any_phase_ends_the_job(
    tmp_path: Path, role: str, phase: str
) -> None:
    rank = ("source", "sink").index(role)
    with start_faulty(
        tmp_path, f"linger:{phase if role == 'source' else 'prompt'}", *TIMEOUT
    ) as job:
        job.until(lambda: has_struck(job), "the phase")
        if role == "sink" and phase == "receive":
            job.until(lambda: phase_of(job, 1) == "receive", "the sink's waiting")
        os.kill(job.pid(rank), signal.SIGSTOP)
        if role == "source":
            require_hang(job, rank, "no heartbeat for [23] s: its process is stopped", phase)
        else:
            require_hang(job, rank, "no heartbeat for [23] s: its process is stopped")


# ---- another MPI's launcher ----


@pytest.mark.parametrize(
    ("rank", "size"),
    [
        ("PMI_RANK", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ],
)
def test_ranks_that_are_each_alone_are_distinguished_from_a_job(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    for variable in [*RANK_VARIABLES, *RANK_COUNT_VARIABLES.values()]:
        monkeypatch.delenv(variable, raising=False)
    check_launcher(1, ("MPICH", (5, 0, 2)))  # nobody's
    monkeypatch.setenv(rank, "1")
    monkeypatch.setenv(size, "2")
    check_launcher(2, ("MPICH", (5, 0, 2)))
    with pytest.raises(
        UsageError,
        match=r"^the launcher started 2 ranks, but this MPI knows 1: .*with MPICH's mpirun",
    ):
        check_launcher(1, ("MPICH", (5, 0, 2)))


def test_another_launchers_ranks_say_so_once_and_write_nothing(tmp_path: Path) -> None:
    """Open MPI's launcher starts MPICH's ranks as single processes that seem to be one of two."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in (*RANK_VARIABLES, *RANK_COUNT_VARIABLES.values())
    }
    command = [sys.executable, *CLI, "run", *QUICK]
    ranks = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **inherited,
                "PYTHONPATH": str(ROOT),
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_SIZE": "2",
            },
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert outputs[0].startswith(
        "Error: Open MPI's mpirun started this rank, but mpi4py uses MPICH"
    )
    assert outputs[0].count("\n") == 1
    assert outputs[1] == ""
    assert list(tmp_path.iterdir()) == []
