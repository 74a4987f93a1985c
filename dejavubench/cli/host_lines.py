"""Cores, CPU time and stream directory of this host, for ``--dry-run``."""

from __future__ import annotations

import os

from dejavubench.config.plan import Plan
from dejavubench.machine.cgroups import read_cpu_quota
from dejavubench.machine.cores import HostDemand, RankDemand
from dejavubench.machine.file_system import MountedFolder, describe_durability, locate_folder


def make_lines(plan: Plan) -> list[str]:
    """Return one line for the cores, and one for the disk if the run streams to it."""
    quota = read_cpu_quota()
    disk = _find_disk(plan)
    quota_text = "" if quota is None else f"; the control group allows {quota.cpus:.3g} CPUs"
    host_lines = [f"Cores    {len(os.sched_getaffinity(0))}{quota_text}"]
    return host_lines if disk is None else [*host_lines, f"Disk     {disk}"]


def make_notes(plan: Plan) -> list[str]:
    """Return notes on what would spoil the numbers if all ranks were on this host."""
    disk = _find_disk(plan)
    has_several = len(plan.experiment.threads) > 1
    texts = [
        f"With {f'--threads {threads} and ' if has_several else ''}all ranks on this host: "
        f"{crowd_note}."
        for threads in sorted(plan.experiment.threads)
        if (crowd_note := _make_demand(plan, threads).describe_shortage()) is not None
    ]
    if disk is not None:
        durabilities = dict.fromkeys(
            arm.durability for arm in plan.arms if arm.durability is not None
        )
        texts += [
            f"{note}."
            for durability in durabilities
            if (note := describe_durability(disk.type, durability)) is not None
        ]
    return texts


def _find_disk(plan: Plan) -> MountedFolder | None:
    """Return the place that this run streams to.

    None if it streams to no disk, or if the kernel does not tell.
    """
    if not any(arm.on_disk for arm in plan.unskipped_arms):
        return None
    return locate_folder(plan.experiment.stream_dir or plan.experiment.log_dir)


def _make_demand(plan: Plan, thread_count: int) -> HostDemand:
    cores = frozenset(os.sched_getaffinity(0))
    quota = read_cpu_quota()
    is_streaming = any(arm.is_streaming for arm in plan.unskipped_arms)
    source = RankDemand(thread_count, int(is_streaming), cores, quota)
    sink = RankDemand(thread_count if plan.experiment.handoff else 1, 0, cores, quota)
    return HostDemand.of_ranks([source] * plan.source_count + [sink] * plan.sink_count)
