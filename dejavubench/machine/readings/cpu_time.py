"""CPU time of a set of processors, from ``/proc/stat`` (proc(5)).

The kernel counts in ticks, most often of 10 ms. It adds a whole tick to whatever runs as the tick
comes, so short windows are counted roughly.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file

TICKS_PER_S: int = os.sysconf("SC_CLK_TCK")
"""Ticks per second of the kernel's counters of CPU time."""

_USER, _NICE, _SYSTEM, _IDLE, _IOWAIT, _IRQ, _SOFTIRQ, _STEAL = range(8)


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds since the machine started, summed over processors.

    Attributes:
        busy_s: of processes and the kernel's threads.
        interrupt_s: of interrupts, network packets among them.
        steal_s: time in which a hypervisor ran something else.
    """

    busy_s: float
    interrupt_s: float
    steal_s: float


def read_processor_time(cpus: Collection[int], root: Path = ROOT) -> ProcessorTime:
    """Return the time of the processors with these numbers.

    Raises:
        NotReadableError: the kernel does not list one of them.
    """
    path = root / "proc/stat"
    missing_cpus = {f"cpu{cpu_number}" for cpu_number in cpus}
    ticks = [0] * 8
    for line in read_kernel_file(path).splitlines():
        name, *fields = line.split()
        if name in missing_cpus:
            missing_cpus.discard(name)
            if len(fields) < len(ticks) or not all(field.isdecimal() for field in fields):
                raise NotReadableError(f"{path}: {name} has no counts of steal time")
            ticks = [total + int(field) for total, field in zip(ticks, fields, strict=False)]
    if missing_cpus:
        raise NotReadableError(f"{path} does not list {', '.join(sorted(missing_cpus))}")
    if not any(ticks):  # some sandboxes show the file and count nothing
        raise NotReadableError(f"{path} counts no time, not even idle time")
    return ProcessorTime(
        busy_s=(ticks[_USER] + ticks[_NICE] + ticks[_SYSTEM]) / TICKS_PER_S,
        interrupt_s=(ticks[_IRQ] + ticks[_SOFTIRQ]) / TICKS_PER_S,
        steal_s=ticks[_STEAL] / TICKS_PER_S,
    )
