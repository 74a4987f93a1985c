"""The load average of ``/proc/loadavg`` (proc(5))."""

from __future__ import annotations

from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file


def read_load_average(root: Path = ROOT) -> float:
    """Return the mean number of running and uninterruptible threads of the last minute.

    Raises:
        NotReadableError: the kernel does not tell.
    """
    path = root / "proc/loadavg"
    first_field, _, _ = read_kernel_file(path).partition(" ")
    try:
        return float(first_field)
    except ValueError:
        raise NotReadableError(f"{path} begins with {first_field!r}, which is no number") from None
