"""Fixtures of several files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cards import H200

from dejavubench.config import experiment

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Threads of the tests' own process, unless a test asks for more: beside a busy core two wait for each other."""

os.environ.setdefault(
    "DEJAVUBENCH_KERNEL_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "kernels")
)
"""Tests share compiled kernels with each other and with the jobs that they start, not with their user's runs."""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(experiment, "cuda_devices", lambda: ())


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One H200, as far as experiments know."""
    monkeypatch.setattr(experiment, "cuda_devices", lambda: (H200,))
