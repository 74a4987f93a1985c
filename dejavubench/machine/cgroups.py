"""Memory and CPU time that control groups (v1 and v2) grant this process.

A group's limits hold for all groups below it, so each function looks at the process's own group
and all groups above. The kernel documents the files in admin-guide/cgroup-v2,
admin-guide/cgroup-v1/memory and scheduler/sched-bwc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""Root of the file system; tests give another one."""


@dataclass(frozen=True)
class ControlGroup:
    """The folder of a control group. ``unified`` is True for version 2."""

    folder: Path
    unified: bool

    def read_text(self, name: str) -> str | None:
        """Return the text of one of its files; None if the file cannot be read."""
        try:
            return os.fsdecode((self.folder / name).read_bytes()).strip()
        except OSError:
            return None

    def read_number(self, name: str) -> int | None:
        """Return the number in a file; None without a file, or if the file says ``max`` or -1."""
        text = self.read_text(name)
        return int(text) if text is not None and text.isdecimal() else None


def list_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """Yield the groups of this process that have a controller, each followed by those above.

    Args:
        controller: ``cpu`` or ``memory``.
        root: the folder of ``proc`` and ``sys``.
    """
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return  # a kernel without control groups limits nothing
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount_folder = _find_mount(root / "sys/fs/cgroup", controllers, controller)
        # In a container the path may be the host's, with only the top mounted.
        path_parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        group_folder = mount_folder.joinpath(*path_parts)
        for folder in (group_folder, *group_folder.parents):
            yield ControlGroup(folder, unified=not controllers)
            if folder == mount_folder:
                break


def _find_mount(folder: Path, controllers: str, controller: str) -> Path:
    """Return the mount of a hierarchy.

    A hierarchy of version 1 is named for one of its controllers, or for all of them. Version 2
    may be mounted beside these.
    """
    if not controllers:
        beside_v1 = folder / "unified"
        return beside_v1 if (beside_v1 / "cgroup.procs").exists() else folder
    joint_folder = folder / controllers
    return (
        joint_folder
        if joint_folder.is_dir() and not (folder / controller).is_dir()
        else folder / controller
    )


# ---- memory ----


def read_memory_room(root: Path = ROOT) -> list[int]:
    """Return the bytes that are left in each group that limits memory."""
    free_nbytes = []
    for group in list_groups("memory", root):
        limit_file, usage_file = (
            ("memory.max", "memory.current")
            if group.unified
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        limit_nbytes = group.read_number(limit_file)
        if limit_nbytes is not None:
            free_nbytes.append(max(0, limit_nbytes - (group.read_number(usage_file) or 0)))
    return free_nbytes


# ---- CPU time ----


@dataclass(frozen=True)
class Quota:
    """The CPU time that a group may take, over all cores together.

    Attributes:
        cpus: seconds of CPU time per second, such as 1.5.
        group: folder of the group; equal for processes that share the time.
    """

    cpus: float
    group: str


def read_cpu_quota(root: Path = ROOT) -> Quota | None:
    """Return the tightest quota of this process's groups; None without a quota."""
    quotas = [
        Quota(cpus, str(group.folder))
        for group in list_groups("cpu", root)
        if (cpus := _read_cpus(group)) is not None
    ]
    return min(quotas, key=lambda quota: quota.cpus, default=None)


def _read_cpus(group: ControlGroup) -> float | None:
    if group.unified:
        quota, _, period = (group.read_text("cpu.max") or "").partition(" ")
    else:
        quota = group.read_text("cpu.cfs_quota_us") or ""
        period = group.read_text("cpu.cfs_period_us") or ""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max", or -1
    return int(quota) / int(period)


@dataclass(frozen=True)
class Throttling:
    """Waits of groups for CPU time after their quota was used up: their number and length.

    Attributes:
        periods: periods with a wait, summed over the groups of this process.
        seconds: time of waiting, which the kernel sums over cores.
    """

    periods: int
    seconds: float

    def since(self, earlier_reading: Throttling) -> Throttling:
        """Return the waits counted after an earlier reading."""
        return Throttling(
            self.periods - earlier_reading.periods, self.seconds - earlier_reading.seconds
        )


def read_cpu_throttling(root: Path = ROOT) -> Throttling | None:
    """Return the counts since the groups were made; None if the kernel counts nothing."""
    counts_of_groups = [
        counts
        for group in list_groups("cpu", root)
        if (counts := _read_throttling(group)) is not None
    ]
    return (
        Throttling(
            periods=sum(counts.periods for counts in counts_of_groups),
            seconds=sum(counts.seconds for counts in counts_of_groups),
        )
        if counts_of_groups
        else None
    )


def _read_throttling(group: ControlGroup) -> Throttling | None:
    lines = [line.split(" ") for line in (group.read_text("cpu.stat") or "").splitlines()]
    counts = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
    if "nr_throttled" not in counts:
        return None
    seconds = (
        counts["throttled_usec"] / 1e6
        if "throttled_usec" in counts
        else counts.get("throttled_time", 0) / 1e9
    )
    return Throttling(counts["nr_throttled"], seconds)
