"""Cores, CPU time and stream directory of this host, for ``--dry-run``."""

from __future__ import annotations

import os

from dejavubench.config.experiment import Experiment
from dejavubench.machine.cgroups import cpu_quota
from dejavubench.machine.cores import Asker, Demand
from dejavubench.machine.filesystem import Place, durability_note, place_of


def lines(experiment: Experiment) -> list[str]:
    """Return one line for the cores, and one for the disk if the run streams to it."""
    quota, place = cpu_quota(), _disk(experiment)
    allowed = "" if quota is None else f"; the control group allows {quota.cpus:.3g} CPUs"
    found = [f"Cores    {len(os.sched_getaffinity(0))}{allowed}"]
    return found if place is None else [*found, f"Disk     {place}"]


def notes(experiment: Experiment) -> list[str]:
    """Return notes on what would spoil the numbers if all ranks were on this host."""
    crowded, place = _demand(experiment).note(), _disk(experiment)
    found = [] if crowded is None else [f"With all ranks on this host: {crowded}."]
    if place is not None:
        durabilities = dict.fromkeys(
            arm.durability for arm in experiment.arms() if arm.durability is not None
        )
        found += [
            f"{note}."
            for each in durabilities
            if (note := durability_note(place.type, each)) is not None
        ]
    return found


def _disk(experiment: Experiment) -> Place | None:
    """Return the place that this run streams to; None if it streams to no disk, or the kernel does not tell."""
    if not any(arm.on_disk and not arm.skipped for arm in experiment.arms()):
        return None
    return place_of(experiment.stream_dir or experiment.log_dir)


def _demand(experiment: Experiment) -> Demand:
    cores, quota = frozenset(os.sched_getaffinity(0)), cpu_quota()
    streams = any(arm.mode != "none" and not arm.skipped for arm in experiment.arms())
    source = Asker(experiment.threads, int(streams), cores, quota)
    sink = Asker(experiment.threads if experiment.handoff else 1, 0, cores, quota)
    return Demand.of(
        [source] * experiment.sources + [sink] * (experiment.sinks if experiment.needs_sinks else 0)
    )
