"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavubench.machine import gpu as machine_gpu
from dejavubench.machine.launcher import RANK_VARIABLES
from helpers.fake_gpu import H200
from helpers.jobs import QUICK, args, run
from helpers.parameter_ids import parameter_id

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Threads of the tests' own process. Beside a busy core two would wait for each other."""

os.environ["COLUMNS"] = "160"
"""Most tests read a table in one piece; those of the layout set their own width."""

USERS_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("DEJAVUBENCH_KERNEL_CACHE", str(USERS_CACHE / "dejavubench-tests"))
"""Tests and jobs of all checkouts share compiled kernels, but not with their user's runs.

A kernel's file is named by a hash of its sources, so no checkout finds another one's code.
"""


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name parameters by their values in the ids of all tests."""
    return parameter_id(val, argname)


@pytest.fixture
def pythons_own_handler() -> Iterator[None]:
    """Give Ctrl-C its usual meaning. A shell that starts tests in the background takes it away."""
    own_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, own_handler)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the GPUs of this machine."""
    monkeypatch.setattr(machine_gpu, "list_cuda_devices", lambda: ())


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this machine has one H200."""
    monkeypatch.setattr(machine_gpu, "list_cuda_devices", lambda: (H200,))


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the launcher under which the tests themselves may run."""
    for variable in RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def one_thread() -> None:
    """Let torch compute on one thread, so that its sums always have the same order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a recorded run: 3 points, 4 arms, 3 rounds, 2 ranks. Copy, or read it.

    fp32, 1 thread per rank, CPU.
    """
    flags = args("--output-len 3,5,6 --streaming none,host,mpi --rounds 3 --warmup 1")
    return run(tmp_path_factory.mktemp("sweep"), 2, "run", *QUICK, *flags).folder
