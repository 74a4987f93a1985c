"""The clock rate of processors, from ``cpufreq`` in ``/sys``, or else ``/proc/cpuinfo``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, text_of


def mean_mhz(cpus: Collection[int], root: Path = ROOT) -> float:
    """Return the mean clock rate of processors at this moment, in MHz.

    Raises:
        NotReadableError: the kernel does not tell for one of them.
    """
    folder = root / "sys/devices/system/cpu"
    try:
        rates = [
            int(text_of(folder / f"cpu{cpu_number}/cpufreq/scaling_cur_freq")) / 1e3
            for cpu_number in cpus
        ]
    except (NotReadableError, ValueError):
        rates = _read_cpuinfo(cpus, root)
    return sum(rates) / len(rates)


def _read_cpuinfo(cpus: Collection[int], root: Path) -> list[float]:
    path = root / "proc/cpuinfo"
    cpu = -1
    mhz_of_cpu: dict[int, float] = {}
    # Each processor has a block of lines: first its number, then its clock rate.
    for line in text_of(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor" and value.strip().isdecimal():
            cpu = int(value)
        elif key.strip() == "cpu MHz":
            mhz_of_cpu[cpu] = float(value)
    if not cpus or not set(cpus) <= set(mhz_of_cpu):
        raise NotReadableError(f"neither cpufreq nor {path} tells the clock rate")
    return [mhz_of_cpu[cpu_number] for cpu_number in cpus]
