"""The CPU: its features, its clock's governor, and how busy it is."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.cpu import cpu_flags, cpu_model, native_bf16

ROOT = Path("/")


@dataclass(frozen=True)
class CPUFacts:
    """Features of a host's CPU.

    Attributes:
        governor: policy of the clock, such as ``performance``; None where the kernel shows none.
    """

    model: str
    cores: int
    avx2: bool
    avx512: bool
    native_bf16: bool
    amx: bool
    governor: str | None


def cpu_facts(root: Path = ROOT) -> CPUFacts:
    """Read the features of this host's CPU."""
    flags = cpu_flags()
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return CPUFacts(
        model=cpu_model(),
        cores=os.cpu_count() or 1,
        avx2="avx2" in flags,
        avx512="avx512f" in flags,
        native_bf16=native_bf16(),
        amx="amx_tile" in flags,
        governor=governor.read_text().strip() if governor.exists() else None,
    )


@dataclass(frozen=True)
class Ticks:
    """CPU time of a whole host since it started, in clock ticks: see proc_stat(5)."""

    busy: int
    steal: int
    total: int


@dataclass(frozen=True)
class LoadFacts:
    """Work of a host while all ranks slept.

    Attributes:
        cores: cores of the host.
        seconds: length of the observation.
        busy: cores that other programs kept busy, on average, such as 1.2.
        steal: share of the time that the hypervisor gave to other machines.
        average: load average of the last minute.
    """

    cores: int
    seconds: float
    busy: float
    steal: float
    average: float


def ticks(root: Path = ROOT) -> Ticks:
    """Read the CPU time from ``/proc/stat``."""
    first = (root / "proc/stat").read_text().splitlines()[0].split()
    # user nice system idle iowait irq softirq steal; what follows is contained in user and nice
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, (first[1:9] + ["0"] * 8)[:8])
    busy = user + nice + system + irq + softirq
    return Ticks(busy, steal, busy + steal + idle + iowait)


def load_facts(seconds: float, root: Path = ROOT) -> LoadFacts:
    """Sleep and return what the host did meanwhile. All ranks must sleep as well."""
    before = ticks(root)
    time.sleep(seconds)
    return load_between(before, ticks(root), seconds, root)


def load_between(before: Ticks, after: Ticks, seconds: float, root: Path = ROOT) -> LoadFacts:
    """Return the load between two readings of ``/proc/stat``."""
    total = max(1, after.total - before.total)
    cores = os.cpu_count() or 1
    return LoadFacts(
        cores=cores,
        seconds=seconds,
        busy=(after.busy - before.busy) / total * cores,
        steal=(after.steal - before.steal) / total,
        average=float((root / "proc/loadavg").read_text().split()[0]),
    )
