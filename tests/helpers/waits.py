"""For tests that wait: each wait has a deadline, and no other test file sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

PAUSE_S = 0.02
"""Seconds between two looks."""


def until(happened: Callable[[], object], description: str, seconds: float = 20.0) -> None:
    """Wait until ``happened`` returns something true; fail the test if it takes too long."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"{description} did not happen within {seconds:g} s")
        time.sleep(PAUSE_S)


def stays(holds: Callable[[], object], description: str, seconds: float) -> None:
    """Assert that ``holds`` returns something true for as long as this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert holds(), f"{description} did not stay so for {seconds:g} s"
        time.sleep(PAUSE_S)
