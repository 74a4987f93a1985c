"""Probes in a process of their own, which can be given up: a rank that waits cannot."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dejavubench

PACKAGE_PARENT = Path(dejavubench.__file__).parents[1]
"""Folder from which this process imports the package; the processes that it starts do so too."""

WAIT_FOR_KILLED_S = 0.5
"""Seconds for a killed process to end. One that waits for a device may stay for ever."""


class ProbeError(Exception):
    """A probe gave no answer. The message is one line."""


def run_probe(module: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run a module of this package in a process of its own and return the JSON that it prints.

    Raises:
        ProbeError: it failed, or gave no answer within ``timeout_s``.
    """
    text = run_command([sys.executable, "-m", module, *arguments], timeout_s)
    try:
        document = json.loads(text)
    except ValueError:
        raise ProbeError(f"{module} printed no JSON") from None
    assert isinstance(document, dict)
    return document


def run_command(command: Sequence[str], timeout_s: float) -> str:
    """Return the standard output of a command.

    Raises:
        ProbeError: the program is missing, failed, or did not end within ``timeout_s``.
    """
    # The child imports this very package, also from a checkout that is not installed.
    python_path = os.pathsep.join(filter(None, (str(PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path},
        )
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise ProbeError(f"{command[0]}: {reason}") from None
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_FOR_KILLED_S)
        raise ProbeError(f"no answer within {timeout_s:g} s") from None
    if process.returncode:
        lines = stderr.decode(errors="replace").strip().splitlines() or ["without a message"]
        raise ProbeError(f"ended with status {process.returncode}: {lines[-1][:200]}")
    return stdout.decode(errors="replace")
