"""Too little shared memory is said before MPI dies of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dejavubench.machine import shared_memory
from dejavubench.machine.launcher import RANK_VARIABLES
from helpers.jobs import CLI, PATIENCE, QUICK, mpirun_program
from helpers.paths import ROOT


def make_file_system(mib: float) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=int(mib * 256), f_frsize=4096)


@pytest.mark.parametrize(
    ("free_mib", "environment", "short"),
    [
        pytest.param(64, {}, False, id="enough"),
        pytest.param(0.25, {}, True, id="too little"),
        pytest.param(
            2,
            {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"},
            True,
            id="too little for two ranks",
        ),
        pytest.param(
            64,
            {"OMPI_COMM_WORLD_LOCAL_SIZE": "64", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            True,
            id="too little for 64 ranks of Open MPI",
        ),
        pytest.param(64, {"MPI_LOCALNRANKS": "32"}, False, id="enough for 32 ranks"),
        pytest.param(
            0,
            {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"},
            False,
            id="another rank of the host says it",
        ),
    ],
)
def test_too_little_shared_memory_is_noted(
    free_mib: float, environment: dict[str, str], short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: make_file_system(free_mib))
    note = shared_memory.find_shortage(environment)
    assert (note is not None) == short
    assert note is None or f"/dev/shm has {free_mib:.1f} MiB left" in note


@pytest.mark.parametrize(
    ("free_mib", "rank", "notes", "waits"),
    [
        pytest.param(0, "0", 1, 1, id="first rank, too little"),
        pytest.param(0, "1", 0, 1, id="another rank, too little"),
        pytest.param(64, "1", 0, 0, id="enough"),
    ],
)
def test_no_rank_begins_mpi_before_a_shortage_is_read(
    free_mib: float, rank: str, notes: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that dies of it ends the job, and so the rank that says why."""
    printed: list[str] = []
    waited: list[float] = []
    monkeypatch.setattr(os, "statvfs", lambda folder: make_file_system(free_mib))
    monkeypatch.setattr(time, "sleep", waited.append)
    shared_memory.say_shortage_and_wait(
        {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": rank}, printed.append
    )
    assert (len(printed), len(waited)) == (notes, waits)


def test_without_shared_memory_it_is_left_to_mpi(tmp_path: Path) -> None:
    assert shared_memory.find_shortage({}, tmp_path / "absent") is None


@pytest.mark.mpi
def test_a_job_without_shared_memory_says_so_before_it_dies(tmp_path: Path) -> None:
    """In a mount namespace of its own, with a tiny /dev/shm."""
    command = [mpirun_program(), "-n", "2", sys.executable, *CLI, "run", *QUICK]
    short_notes = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"',
        "sh",
        *command,
    ]
    inherited = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    try:
        completed = subprocess.run(
            short_notes,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "unshare" in completed.stderr or "mount:" in completed.stderr:
        pytest.skip(f"cannot mount a small /dev/shm: {completed.stderr.strip()}")
    # The other rank's MPI may have taken some of the 0.1 MiB by then.
    notes = re.findall(
        r"note: /dev/shm has 0\.[01] MiB left, and MPI may need 2\.2 MiB there", completed.stderr
    )
    assert len(notes) == 1, completed.stderr
