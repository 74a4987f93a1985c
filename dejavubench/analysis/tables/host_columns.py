"""Columns of the conditions in which an arm was measured, and of the path that its bytes took."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Annotated

from dejavubench.analysis.breakdown.byte_paths import path_of_bytes
from dejavubench.analysis.facts.host_rounds import HostRound, HostRounds, find_rounds
from dejavubench.analysis.facts.samples import ArmSamples, PointSamples
from dejavubench.records import Run


@dataclass
class HostConditions:
    """Conditions on the hosts during the arm's measured iterations; missing in older records.

    Of several hosts the one with the larger value counts.
    """

    path: Annotated[
        str | None, "Interfaces that carried the arm's bytes, each with the least share it had."
    ] = None
    disturbed_rounds: Annotated[
        int | None, "Rounds of the point in which other programs or the hypervisor took CPU time."
    ] = None
    throttled_rounds: Annotated[
        int | None, "Rounds of the point in which a limit held a GPU's clock down."
    ] = None
    granted_cores: Annotated[int | None, "Processors that the ranks of a host may use."] = None
    other_cores: Annotated[float | None, "Processors that other processes took, on average."] = None
    steal_cores: Annotated[float | None, "Processors that the hypervisor took, on average."] = None
    cpu_wait_pct: Annotated[
        float | None, "Share of the time in which some thread of the host waited for a processor."
    ] = None
    io_wait_pct: Annotated[
        float | None, "Share of the time in which some thread of the host waited for a device."
    ] = None
    load_average: Annotated[float | None, "Load average of the last minute, median."] = None
    cpu_mhz: Annotated[float | None, "Clock of the granted processors, median."] = None
    gpu_mhz: Annotated[float | None, "Clock of the slowest GPU after an iteration, median."] = None
    gpu_power_w: Annotated[float | None, "Power of the GPU that takes most, median."] = None
    gpu_temperature_c: Annotated[float | None, "Temperature of the hottest GPU, median."] = None


def make_host_columns(
    run: Run, hosts: list[HostRounds], point: PointSamples, samples: ArmSamples
) -> HostConditions:
    """Return the columns of one row."""
    if not hosts:
        return HostConditions()
    point_id = point.info.id
    rounds_of_hosts = [host.iterations_of_arm(point_id, samples.info.name) for host in hosts]
    path = path_of_bytes(run, hosts, point, samples) if samples.info.is_streaming else None
    cpu_wait = _find_largest_known(
        host_round.per_second(lambda window: window.cpu_wait_s) for host_round in rounds_of_hosts
    )
    io_wait = _find_largest_known(
        host_round.per_second(lambda window: window.io_wait_s) for host_round in rounds_of_hosts
    )
    windows = [window for host_round in rounds_of_hosts for window in host_round.windows]
    # `gpus` is [window][GPU of the host].
    gpus = [list(window.gpus.values()) for window in windows]
    clocks = (
        [gpu.clock_mhz for gpu in gpus_of_window if gpu.clock_mhz is not None]
        for gpus_of_window in gpus
    )
    powers = (
        [gpu.power_w for gpu in gpus_of_window if gpu.power_w is not None]
        for gpus_of_window in gpus
    )
    heats = (
        [gpu.temperature_c for gpu in gpus_of_window if gpu.temperature_c is not None]
        for gpus_of_window in gpus
    )
    return HostConditions(
        path=None if path is None else str(path),
        disturbed_rounds=_count_rounds(hosts, point_id, lambda host_round: host_round.is_disturbed),
        throttled_rounds=_count_rounds(hosts, point_id, lambda host_round: host_round.limits)
        if any(gpus)
        else None,
        granted_cores=max(host.core_count for host in hosts),
        other_cores=_find_largest_known(
            host_round.other_core_count for host_round in rounds_of_hosts
        ),
        steal_cores=_find_largest_known(
            host_round.steal_core_count for host_round in rounds_of_hosts
        ),
        cpu_wait_pct=_compute_percent(cpu_wait),
        io_wait_pct=_compute_percent(io_wait),
        load_average=find_median_of_known(window.load for window in windows),
        cpu_mhz=find_median_of_known(window.cpu_mhz for window in windows),
        gpu_mhz=find_median_of_known(min(window_clocks, default=None) for window_clocks in clocks),
        gpu_power_w=find_median_of_known(
            max(window_powers, default=None) for window_powers in powers
        ),
        gpu_temperature_c=find_median_of_known(
            max(window_heats, default=None) for window_heats in heats
        ),
    )


def find_median_of_known(maybe_values: Iterable[float | None]) -> float | None:
    """Return the median of the known values."""
    values = [value for value in maybe_values if value is not None]
    return median(values) if values else None


def _find_largest_known(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _compute_percent(share: float | None) -> float | None:
    """Return a share of the time in percent; the kernel's sum may exceed the time by a little."""
    return None if share is None else 100 * min(1.0, share)


def _count_rounds(
    hosts: list[HostRounds], point_id: str, is_marked: Callable[[HostRound], object]
) -> int:
    return sum(marked_id == point_id for marked_id, _ in find_rounds(hosts, is_marked))
