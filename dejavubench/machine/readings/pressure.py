"""Pressure of the CPU and of input and output, from ``/proc/pressure`` (the kernel's PSI)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file

_TOTAL = re.compile(r"^some .*\btotal=(\d+)", re.MULTILINE)


def read_waited_s(resource: Literal["cpu", "io"], root: Path = ROOT) -> float:
    """Return the seconds, since the start, in which some thread of the machine waited.

    Raises:
        NotReadableError: the kernel does not tell.
    """
    path = root / "proc/pressure" / resource
    total_match = _TOTAL.search(read_kernel_file(path))
    if total_match is None:
        raise NotReadableError(f"{path} has no total of `some`")
    return int(total_match[1]) / 1e6
