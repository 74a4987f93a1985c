"""Folders that a run would write to: their file systems, and a probe of each."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from dejavubench.machine.file_system import MountedFolder, locate_folder
from dejavubench.machine.probe_process import ProbeError, run_probe

DISK_PROBE = "dejavubench.doctor.facts.disk_probe"
"""Module that probes a folder, in a process of its own."""

PROBE_S = 2.0
"""Seconds of writing, half of it in large pieces."""

TIMEOUT_S = 6.0
"""Seconds after which the file system is said not to answer."""


@dataclass(frozen=True)
class DiskSpeed:
    """Speed of durable writes: each write is followed by fdatasync.

    Attributes:
        write_gb_s: GB/s of large writes.
        write_nbytes: bytes of one of them.
        sync_ms, sync_p99_ms: median and 99th percentile of a 4 KiB write.
        syncs: number of 4 KiB writes.
    """

    write_gb_s: float
    write_nbytes: int
    sync_ms: float
    sync_p99_ms: float
    syncs: int


@dataclass(frozen=True)
class FolderFacts:
    """One folder.

    Attributes:
        path: the folder, or the nearest one above that exists.
        place: its file system and mount; None if the kernel does not tell.
        free: free bytes.
        device: identifies the file system on its host.
        speed: None if it was not probed on this host, or could not be.
        problem: why it could not be probed.
    """

    path: str
    place: MountedFolder | None
    free: int
    device: str
    speed: DiskSpeed | None = None
    problem: str | None = None


def read_folder_facts(path: Path) -> FolderFacts:
    """Find a folder's file system. Nothing is written."""
    # A run makes its folders, so the nearest one that exists tells where they will be.
    existing_folder = path.absolute()
    while not existing_folder.is_dir() and existing_folder != existing_folder.parent:
        existing_folder = existing_folder.parent
    status = os.statvfs(existing_folder)
    device_number = os.stat(existing_folder).st_dev
    return FolderFacts(
        str(existing_folder),
        locate_folder(existing_folder),
        status.f_bavail * status.f_frsize,
        f"{os.major(device_number)}:{os.minor(device_number)}",
    )


def probe_folder(
    folder: FolderFacts, seconds: float = PROBE_S, timeout_s: float = TIMEOUT_S
) -> FolderFacts:
    """Return the folder with its speed, or with the reason why it has none."""
    try:
        speeds = run_probe(DISK_PROBE, folder.path, str(seconds), timeout_s=timeout_s)
    except ProbeError as error:
        return replace(folder, problem=str(error))
    if "problem" in speeds:
        return replace(folder, problem=str(speeds["problem"]))
    return replace(folder, speed=DiskSpeed(**speeds))
