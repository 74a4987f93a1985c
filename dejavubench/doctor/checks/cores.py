"""Cores and CPU time that the ranks may use, and who else uses them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dejavubench.doctor.checks.check import HostCheck, JobCheck, RankCheck
from dejavubench.doctor.facts.cpu import LoadFacts
from dejavubench.doctor.facts.job import HostFacts, Job, RankFacts
from dejavubench.doctor.findings import Finding, ok, warn
from dejavubench.machine.cores import HostDemand, RankDemand
from dejavubench.units import format_count_of

LEAST_BUSY = 0.1
"""Cores that other programs may keep busy, on a small machine."""

BUSY_SHARE = 0.02
"""Share of a host's cores that other programs may keep busy."""

STEAL_SHARE = 0.02
"""Share of the time that a hypervisor may give to other machines."""


def judge_affinity(rank: RankFacts) -> Iterator[Finding]:
    """Judge how many of the host's cores a rank may use."""
    granted_count = len(rank.cores.granted)
    machine_count = rank.cores.machine
    # Launchers bind a rank to one core unless they are told otherwise. The helper thread would then
    # take its time from the model, and every overhead would show it.
    if granted_count == 1 < machine_count:
        yield warn(
            f"bound to 1 core of {machine_count}, which model and helper thread share",
            "Start with --bind-to none (Open MPI, Hydra) or --cpu-bind=none (srun).",
        )
    elif granted_count < machine_count:
        yield ok(f"{granted_count} of {format_count_of(machine_count, 'core')}")
    else:
        yield ok(f"all {format_count_of(machine_count, 'core')} of the host")


def judge_quota(rank: RankFacts) -> Iterator[Finding]:
    """Judge whether a control group grants less CPU time than its cores could use."""
    limit = rank.cores.quota
    throttling = rank.cores.throttling
    if limit is None:
        yield ok("none")
        return
    waiting_text = ""
    # The counters run since the group was made, so they tell of earlier programs as well.
    if throttling is not None and throttling.periods:
        waiting_text = f"; waited {throttling.seconds:.3g} s in {throttling.periods} periods so far"
    cores_text = format_count_of(len(rank.cores.granted), "core")
    reading = f"{limit.cpus:.3g} CPUs for {cores_text}{waiting_text}"
    # A quota above the cores cannot be used up. Below, all threads of the group stop at once until
    # the next period, mostly 100 ms long: most tokens take less than that.
    if limit.cpus < len(rank.cores.granted):
        advice = "Raise it (docker run --cpus, or the pod's limit): ranks pause when it is used up."
        yield warn(reading, advice)
    else:
        yield ok(reading)


def judge_room(job: Job) -> Iterator[tuple[tuple[int, ...], Finding]]:
    """Judge whether the host has a core for one computing thread per rank, the least of a run."""
    ranks_by_machine: dict[str, list[RankFacts]] = defaultdict(list)
    for rank in job.ranks:
        ranks_by_machine[rank.machine].append(rank)  # hosts of one machine share its cores
    for neighbours in ranks_by_machine.values():
        ranks = tuple(rank.rank for rank in neighbours)
        # One computing thread and one helper each. Sinks need less, but which ranks will be sinks
        # is known to a run alone.
        demand = HostDemand.of_ranks(
            [
                RankDemand(1, 1, frozenset(rank.cores.granted), rank.cores.quota)
                for rank in neighbours
            ]
        )
        note = demand.describe_shortage()
        if note is not None:
            yield ranks, warn(note, "Start fewer ranks here, or grant them more cores.")
        else:
            most_threads = demand.cores // demand.ranks  # helper threads sleep most of the time
            yield (
                ranks,
                ok(
                    f"{format_count_of(demand.ranks, 'rank')} on "
                    f"{format_count_of(demand.cores, 'core')}: up to --threads {most_threads}"
                ),
            )


def judge_load(host: HostFacts) -> Iterator[Finding]:
    """Judge how much other programs compute on a host."""
    if host.load.unreadable is not None:
        yield ok(f"not readable: {host.load.unreadable}")
        return
    reading = (
        f"other programs: {host.load.busy:.2f} of {format_count_of(host.load.cores, 'core')} for "
        f"{host.load.seconds:.1f} s; load average {host.load.average:.2f}"
    )
    if is_busy(host.load):
        yield warn(reading, "Stop them or wait: see top. Their work shows as noise.")
    else:
        yield ok(reading)


def is_busy(load: LoadFacts) -> bool:
    """Return whether other programs take enough of a host to be seen in a measurement."""
    # On many cores some daemon is always at work somewhere; it rarely meets a rank.
    return load.busy > max(LEAST_BUSY, BUSY_SHARE * load.cores)


def judge_steal(host: HostFacts) -> Iterator[Finding]:
    """Judge how much time the hypervisor gives to other virtual machines."""
    if host.load.unreadable is not None:
        return
    reading = f"{100 * host.load.steal:.1f} % of the time"
    if host.load.steal > STEAL_SHARE:
        yield warn(
            f"{reading} went to other virtual machines of this hardware",
            "Use a dedicated machine, or measure more rounds.",
        )
    else:
        yield ok(reading)


CHECKS = (
    RankCheck("affinity", judge_affinity),
    RankCheck("CPU quota", judge_quota),
    JobCheck("cores for ranks", judge_room),
    HostCheck("load", judge_load),
    HostCheck("stolen time", judge_steal),
)
