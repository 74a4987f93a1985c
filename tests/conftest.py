"""Fixtures of several files."""

from __future__ import annotations

import pytest
from cards import H200

from dejavubench import experiment


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(experiment, "cuda_devices", lambda: ())


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One H200, as far as experiments know."""
    monkeypatch.setattr(experiment, "cuda_devices", lambda: (H200,))
