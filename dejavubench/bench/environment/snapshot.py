"""One reading of all counters of a host, and the difference of two."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from dejavubench.machine.readings import frequency, interfaces, load, pressure, processes
from dejavubench.machine.readings.cpu_time import ProcessorTime, read_processor_time
from dejavubench.machine.readings.interfaces import InterfaceCounts
from dejavubench.machine.readings.not_readable import NotReadableError
from dejavubench.machine.readings.nvml import GpuReader, GpuReading
from dejavubench.records.conditions import CarriedBytes, GpuWindow

T = TypeVar("T")

NVLINK = "NVLink"
"""Name of all NVLinks of a host's GPUs, among the names of its interfaces."""


@dataclass(frozen=True)
class Snapshot:
    """All counters of a host at one moment. What cannot be read is None.

    Attributes:
        at_s, cost_s: moment of the reading, and the time that it took.
        unreadable: the reason for each part that cannot be read.
    """

    at_s: float
    cost_s: float = 0.0
    load: float | None = None
    processors: ProcessorTime | None = None
    own_cpu_s: float | None = None
    cpu_wait_s: float | None = None
    io_wait_s: float | None = None
    cpu_mhz: float | None = None
    traffic: Mapping[str, InterfaceCounts] | None = None
    gpus: Mapping[str, GpuReading] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def take(
        cls, cpus: Collection[int], pids: Collection[int], gpu_reader: GpuReader | None
    ) -> Snapshot:
        """Read all counters.

        Args:
            cpus: processors whose time is read.
            pids: processes of the job on this machine; none: their time cannot be told apart.
            gpu_reader: reads the GPUs of the host's ranks, where it can.
        """
        began_s = time.perf_counter()
        unread_reasons: dict[str, str] = {}

        def try_read(subject: str, read_counter: Callable[[], T]) -> T | None:
            try:
                return read_counter()
            except NotReadableError as error:
                unread_reasons[subject] = str(error)
                return None

        # GPUs first: the driver takes milliseconds, during which the other counters would age.
        readings = {} if gpu_reader is None else gpu_reader.read()
        for reading in readings.values():
            unread_reasons |= {
                f"GPU {subject}": reason for subject, reason in reading.unreadable.items()
            }
        processors = try_read("CPU time", lambda: read_processor_time(cpus))
        own_cpu_s = (
            try_read("CPU time of the job", lambda: processes.read_cpu_seconds(pids))
            if pids
            else None
        )
        cpu_wait_s = try_read("CPU pressure", lambda: pressure.read_waited_s("cpu"))
        io_wait_s = try_read("I/O pressure", lambda: pressure.read_waited_s("io"))
        load_average = try_read("load", load.read_load_average)
        cpu_mhz = try_read("CPU clock", lambda: frequency.read_mean_mhz(cpus))
        traffic = try_read("interfaces", interfaces.read_interface_traffic)
        ended_s = time.perf_counter()  # after all of them: the window begins where the reading ends
        return cls(
            at_s=ended_s,
            cost_s=ended_s - began_s,
            load=load_average,
            processors=processors,
            own_cpu_s=own_cpu_s,
            cpu_wait_s=cpu_wait_s,
            io_wait_s=io_wait_s,
            cpu_mhz=cpu_mhz,
            traffic=traffic,
            gpus=readings,
            unreadable=unread_reasons,
        )

    def since(self, earlier_snapshot: Snapshot) -> dict[str, Any]:
        """Return the fields of a window that began with an earlier snapshot and ended with this."""
        # The window runs from the end of the one reading to the beginning of the other.
        wall_s = max(0.0, self.at_s - self.cost_s - earlier_snapshot.at_s)
        return {
            "wall_s": wall_s,
            "cost_s": self.cost_s + earlier_snapshot.cost_s,
            "load": self.load,
            "cpu_mhz": self.cpu_mhz,
            "cpu_wait_s": _compute_growth(self.cpu_wait_s, earlier_snapshot.cpu_wait_s),
            "io_wait_s": _compute_growth(self.io_wait_s, earlier_snapshot.io_wait_s),
            **self._cpu_since(earlier_snapshot),
            "gpus": {
                uuid: _make_gpu_window(reading, earlier_snapshot.gpus[uuid], wall_s)
                for uuid, reading in self.gpus.items()
                if uuid in earlier_snapshot.gpus
            },
            "carried": self._carried_since(earlier_snapshot),
        }

    def _cpu_since(self, earlier_snapshot: Snapshot) -> dict[str, float | None]:
        job_s = _compute_growth(self.own_cpu_s, earlier_snapshot.own_cpu_s)
        if self.processors is None or earlier_snapshot.processors is None:
            return {"own_cpu_s": job_s}
        busy_s = self.processors.busy_s - earlier_snapshot.processors.busy_s
        return {
            "own_cpu_s": job_s,
            # Both are rounded to ticks of their own, so the difference can fall below 0.
            "other_cpu_s": None if job_s is None else round(max(0.0, busy_s - job_s), 9),
            "interrupt_s": _compute_growth(
                self.processors.interrupt_s, earlier_snapshot.processors.interrupt_s
            ),
            "steal_s": _compute_growth(
                self.processors.steal_s, earlier_snapshot.processors.steal_s
            ),
        }

    def _carried_since(self, earlier_snapshot: Snapshot) -> dict[str, CarriedBytes] | None:
        earlier_counts = earlier_snapshot._sum_up_carriers()
        later_counts = self._sum_up_carriers()
        if earlier_counts is None or later_counts is None:
            return None
        # An interface that came or went in between, or was reset, says nothing of this window.
        differences = {
            name: later_counts[name].since(earlier_counts[name])
            for name in later_counts
            if name in earlier_counts
        }
        return {
            name: CarriedBytes(**asdict(traffic))
            for name, traffic in differences.items()
            if min(asdict(traffic).values()) >= 0 and traffic.out_nbytes + traffic.in_nbytes
        }

    def _sum_up_carriers(self) -> dict[str, InterfaceCounts] | None:
        """Return the traffic of the interfaces and, as one more, of all NVLinks together."""
        links = [gpu.links for gpu in self.gpus.values() if gpu.links is not None]
        if self.traffic is None:
            return None
        if not links:
            return dict(self.traffic)
        out_nbytes = sum(link.out_nbytes for link in links)
        in_nbytes = sum(link.in_nbytes for link in links)
        return {**self.traffic, NVLINK: InterfaceCounts(out_nbytes, 0, in_nbytes, 0)}


def _compute_growth(count_after: float | None, count_before: float | None) -> float | None:
    """Return a counter's growth; it is never negative."""
    return (
        None
        if count_after is None or count_before is None
        else round(max(0.0, count_after - count_before), 9)
    )


def _make_gpu_window(
    reading_after: GpuReading, reading_before: GpuReading, wall_s: float
) -> GpuWindow:
    """Return a GPU's window between two readings; None for a counter that either of them lacks."""
    energy_j = _compute_growth(reading_after.energy_j, reading_before.energy_j)
    limited_s = None
    if reading_after.limited_s is not None and reading_before.limited_s is not None:
        limited_s = {
            name: _compute_growth(seconds, reading_before.limited_s[name]) or 0.0
            for name, seconds in reading_after.limited_s.items()
            if name in reading_before.limited_s
        }
    return GpuWindow(
        clock_mhz=reading_after.clock_mhz,
        temperature_c=reading_after.temperature_c,
        # The mean power of the window, by the energy counter: a sample of power is of one moment.
        power_w=None if energy_j is None or not wall_s else energy_j / wall_s,
        limited_s=limited_s,
        reasons=reading_after.reasons,
    )
