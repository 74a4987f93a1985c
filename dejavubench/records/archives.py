"""Archives of runs, such as those under ``results/``: no command reads one, each says so."""

from __future__ import annotations

import shlex
from pathlib import Path

UNPACKERS = {
    ".zip": "unzip -q {archive} -d {folder}",
    **dict.fromkeys(
        (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tar.zst"),
        "mkdir -p {folder} && tar -xf {archive} -C {folder}",
    ),
}
"""Command that unpacks an archive, by the end of its name."""


def unpack_advice(path: Path) -> str | None:
    """Return the message on an archive that was given as a run; None if the path is none."""
    suffix = next((suffix for suffix in UNPACKERS if path.name.lower().endswith(suffix)), None)
    if suffix is None or not path.is_file():
        return None
    folder = path.name[: -len(suffix)] or "runs"
    command = UNPACKERS[suffix].format(archive=shlex.quote(str(path)), folder=shlex.quote(folder))
    return f"{path} is an archive. Unpack it and give a run's folder in {folder}: {command}"
