"""A run under another MPI's launcher ends with one message, before MPI starts.

CPU; no model runs.
"""

from __future__ import annotations

import sys
import time

import pytest
from click.testing import Result

from dejavubench.machine import mpi_library
from dejavubench.machine.launcher import WAIT_FOR_RANK_0_S
from helpers.cli_calls import call
from helpers.jobs import QUICK

MESSAGE = (
    "Error: Open MPI's mpirun started this rank, but mpi4py uses MPICH 5.0.2, which that launcher "
    "cannot connect. Start the ranks with MPICH's mpirun\n"
)


class AskedLibrary:
    """An MPI library that is asked for its name, and must not be started."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0

    def __call__(self, module: str, timeout_s: float) -> dict[str, str]:
        self.asked += 1
        return {"name": self.name, "version": "5.0.2"}


def start_as_rank(
    monkeypatch: pytest.MonkeyPatch, library: AskedLibrary, variables: dict[str, str], *words: str
) -> tuple[Result, list[float]]:
    """Run the command as a rank with these variables; return its result and its sleeps."""
    waited: list[float] = []
    monkeypatch.setattr(mpi_library, "run_probe", library)
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    return call(*words, environment=variables), waited


def rank_of_open_mpi(rank: int) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": str(rank)}


@pytest.mark.parametrize(
    ("rank", "printed", "sleeps"), [(0, MESSAGE, []), (1, "", [WAIT_FOR_RANK_0_S])]
)
def test_rank_0_alone_names_a_foreign_launcher_before_mpi_starts(
    monkeypatch: pytest.MonkeyPatch, rank: int, printed: str, sleeps: list[float]
) -> None:
    library = AskedLibrary("MPICH")
    run_call, waited = start_as_rank(monkeypatch, library, rank_of_open_mpi(rank), "run", *QUICK)
    assert (run_call.exit_code, run_call.stderr, run_call.stdout) == (2, printed, "")
    # The rank that does not speak waits: the launcher ends all ranks with the first one.
    assert waited == sleeps
    assert library.asked
    assert "mpi4py.MPI" not in sys.modules


def test_a_wrong_flag_is_refused_under_another_launcher_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_call, _ = start_as_rank(
        monkeypatch, AskedLibrary("MPICH"), rank_of_open_mpi(0), "run", "--nonsense"
    )
    assert run_call.exit_code == 2
    assert run_call.stderr.count("Error: ") == 1
    assert "--nonsense" in run_call.stderr
    assert "mpi4py.MPI" not in sys.modules


@pytest.mark.parametrize(
    ("variables", "library", "probes"),
    [
        (rank_of_open_mpi(0), "Open MPI", 1),
        # Under Hydra a foreign library starts, so nobody waits for a process that asks it.
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, "Open MPI", 0),
        ({}, "MPICH", 0),
    ],
)
def test_ranks_that_the_launchers_own_library_serves_go_on(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], library: str, probes: int
) -> None:
    answers = AskedLibrary(library)
    monkeypatch.setattr(mpi_library, "run_probe", answers)
    assert mpi_library.find_ending_library(variables) is None
    assert answers.asked == probes
