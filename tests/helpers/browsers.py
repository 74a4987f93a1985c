"""The browser of this machine, for tests of pages."""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

REQUIRED = "DEJAVUBENCH_BROWSER_REQUIRED"
"""Variable with which `.ci/run` says that a missing browser is a failure."""


def browser_path() -> str:
    """Return the path of a Chromium or Chrome; skip the test, or fail it, without one."""
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        reason = f"no browser: none of {', '.join(NAMES)} is installed"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    return path
