"""The CPU: its features, its clock's governor, and how busy it is."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.cpu import has_native_bf16, read_cpu_flags, read_cpu_model
from dejavubench.machine.readings.cpu_time import ProcessorTime, read_processor_time
from dejavubench.machine.readings.load import read_load_average
from dejavubench.machine.readings.not_readable import NotReadableError

ROOT = Path("/")


@dataclass(frozen=True)
class CPUFacts:
    """Features of a host's CPU.

    Attributes:
        model: name of the CPU.
        cores: cores of the host.
        avx2, avx512: whether it has these vector instructions.
        native_bf16: whether it multiplies bf16 by itself.
        amx: whether it has matrix instructions (AMX).
        governor: policy of the clock, such as ``performance``; None where the kernel shows none.
    """

    model: str
    cores: int
    avx2: bool
    avx512: bool
    native_bf16: bool
    amx: bool
    governor: str | None


def read_cpu_facts(root: Path = ROOT) -> CPUFacts:
    """Read the features of this host's CPU."""
    flags = read_cpu_flags()
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return CPUFacts(
        model=read_cpu_model(),
        cores=os.cpu_count() or 1,
        avx2="avx2" in flags,
        avx512="avx512f" in flags,
        native_bf16=has_native_bf16(),
        amx="amx_tile" in flags,
        governor=governor.read_text().strip() if governor.exists() else None,
    )


@dataclass(frozen=True)
class LoadFacts:
    """Work of a host while all ranks slept.

    Attributes:
        cores: cores of the host.
        seconds: length of the observation.
        busy: cores that other programs and interrupts kept busy, on average, such as 1.2.
        steal: share of the time that the hypervisor gave to other machines.
        average: load average of the last minute.
        unreadable: why the kernel does not say it; the numbers are then 0.
    """

    cores: int
    seconds: float
    busy: float = 0.0
    steal: float = 0.0
    average: float = 0.0
    unreadable: str | None = None


def read_load_facts(seconds: float, root: Path = ROOT) -> LoadFacts:
    """Sleep and return what the host did meanwhile. All ranks must sleep as well."""
    core_count = os.cpu_count() or 1
    try:
        time_before = read_processor_time(range(core_count), root)
        began_s = time.perf_counter()
        time.sleep(seconds)
        time_after = read_processor_time(range(core_count), root)
        elapsed_s = time.perf_counter() - began_s
        average_load = read_load_average(root)
    except NotReadableError as error:
        time.sleep(seconds)  # other hosts may be able to read theirs
        return LoadFacts(core_count, seconds, unreadable=str(error))
    return compute_load(time_before, time_after, elapsed_s, core_count, average_load)


def compute_load(
    time_before: ProcessorTime,
    time_after: ProcessorTime,
    seconds: float,
    core_count: int,
    average_load: float,
) -> LoadFacts:
    """Return the load between two readings of a host's processors."""
    # Interrupts count as work of others: they take the core from whoever computes there.
    busy_s = (
        time_after.busy_s - time_before.busy_s + time_after.interrupt_s - time_before.interrupt_s
    )
    steal_s = time_after.steal_s - time_before.steal_s
    return LoadFacts(
        core_count, seconds, busy_s / seconds, steal_s / seconds / core_count, average_load
    )
