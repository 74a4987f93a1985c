"""File systems of the folders that a run would write to."""

from __future__ import annotations

from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck
from dejavubench.doctor.facts.folders import DiskSpeed, FolderFacts
from dejavubench.doctor.facts.job import HostFacts
from dejavubench.doctor.findings import Finding, bad, ok, warn
from dejavubench.machine.file_system import describe_durability
from dejavubench.units import format_binary_nbytes

LEAST_FREE_NBYTES = 1 << 30
"""Bytes of room below which a run of a small model may fill the disk."""

SLOW_GB_S = 0.1
"""Rate of large durable writes below which streaming waits for the disk: that of a hard disk."""

SLOW_SYNC_MS = 10.0
"""Time of a small durable write above which each token waits for the disk."""


def judge_file_systems(host: HostFacts) -> Iterator[Finding]:
    """Judge the room, the promises and the speed of each folder's file system."""
    for folder in host.folders:
        yield _judge_folder(folder)


def _judge_folder(folder: FolderFacts) -> Finding:
    """Judge a folder: can it be written, is it durable, has it room, is it fast?"""
    file_system_place = folder.place
    file_system = (
        "unknown file system"
        if file_system_place is None
        else f"{file_system_place.type} from {file_system_place.source}"
    )
    reading = f"{folder.path} on {file_system}: {format_binary_nbytes(folder.free)} free"
    if folder.problem is not None:
        advice = "Choose another folder: --log-dir and --stream-dir of run, --dir of doctor."
        return bad(f"{reading}; {folder.problem}", advice)
    speed = folder.speed
    if speed is not None:
        reading += f"; {format_disk_speed(speed)}"
    # A file system in memory, or behind a network that caches, is fast as it promises less. So its
    # weakness is judged before its speed.
    weakness = (
        None
        if file_system_place is None
        else describe_durability(file_system_place.type, "fdatasync")
    )
    if weakness is not None:
        return warn(
            f"{reading}. {weakness[0].upper()}{weakness[1:]}", "Use --stream-dir on a local disk."
        )
    if folder.free < LEAST_FREE_NBYTES:
        return warn(reading, "Free some space, or use --stream-dir on another disk.")
    if speed is not None and (speed.write_gb_s < SLOW_GB_S or speed.sync_ms > SLOW_SYNC_MS):
        advice = "A slow disk for streaming with fdatasync: use --stream-dir on a faster one."
        return warn(reading, advice)
    return ok(reading)


def format_disk_speed(speed: DiskSpeed) -> str:
    """Return the numbers of a probe."""
    return (
        f"{speed.write_gb_s:.2f} GB/s in writes of {format_binary_nbytes(speed.write_nbytes)} with "
        f"fdatasync, {speed.sync_ms:.2f} ms for 4 KiB with fdatasync (p99 {speed.sync_p99_ms:.2f})"
    )


CHECKS = (HostCheck("file system", judge_file_systems),)
