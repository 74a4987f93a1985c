"""For tests of readings: files of ``/proc`` and ``/sys`` of a machine that is made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_files(root: Path, files: Mapping[str, str]) -> Path:
    """Write texts by their paths below a folder; return the folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def write_machine(root: Path, cgroup: str, files: Mapping[str, str]) -> Path:
    """Write the files of a machine whose process is in a control group; return its root."""
    return write_files(root, {"proc/self/cgroup": cgroup, **files})
