"""The clock rate of processors, from ``cpufreq`` in ``/sys``, or else ``/proc/cpuinfo``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file


def read_mean_mhz(cpus: Collection[int], root: Path = ROOT) -> float:
    """Return the mean clock rate of processors at this moment, in MHz.

    Raises:
        NotReadableError: the kernel does not tell for one of them.
    """
    folder = root / "sys/devices/system/cpu"
    try:
        rates_mhz = [
            int(read_kernel_file(folder / f"cpu{cpu_number}/cpufreq/scaling_cur_freq")) / 1e3
            for cpu_number in cpus
        ]
    except (NotReadableError, ValueError):
        rates_mhz = _read_cpuinfo(cpus, root)
    return sum(rates_mhz) / len(rates_mhz)


def _read_cpuinfo(cpus: Collection[int], root: Path) -> list[float]:
    path = root / "proc/cpuinfo"
    cpu_number = -1
    mhz_of_cpu: dict[int, float] = {}
    # Each processor has a block of lines: first its number, then its clock rate.
    for line in read_kernel_file(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor" and value.strip().isdecimal():
            cpu_number = int(value)
        elif key.strip() == "cpu MHz":
            mhz_of_cpu[cpu_number] = float(value)
    if not cpus or not set(cpus) <= set(mhz_of_cpu):
        raise NotReadableError(f"neither cpufreq nor {path} tells the clock rate")
    return [mhz_of_cpu[cpu_number] for cpu_number in cpus]
