"""Readers of the kernel's and the driver's counters. Their files and NVML are fakes; no GPU.

Only the tests of processes that they start read this machine's own counters.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dejavubench.bench.environment.snapshot import Snapshot
from dejavubench.machine.readings import nvml
from dejavubench.machine.readings.cpu_time import TICKS_PER_S, ProcessorTime, read_processor_time
from dejavubench.machine.readings.frequency import read_mean_mhz
from dejavubench.machine.readings.interfaces import InterfaceCounts, read_interface_traffic
from dejavubench.machine.readings.listeners import find_listening_pids
from dejavubench.machine.readings.load import read_load_average
from dejavubench.machine.readings.not_readable import NotReadableError
from dejavubench.machine.readings.nvml import GpuReader
from dejavubench.machine.readings.pressure import read_waited_s
from dejavubench.machine.readings.processes import read_cpu_seconds, read_pid_namespace
from helpers.gpu_marks import needs_gpus
from helpers.jobs import PATIENCE

STAT = """\
cpu  999 9 9 9 9 9 9 9 0 0
cpu0 100 10 40 500 5 3 7 20 0 0
cpu1 200 0 60 400 0 1 2 0 0 0
cpu10 7 7 7 7 7 7 7 7 7 7
intr 12345
"""
NET = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0
  eth0:12345678     900    0    0    0     0          0         0   777777     600    0    0    0
"""


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# ---- processors ----


def test_time_is_of_the_processors_asked_for(tmp_path: Path) -> None:
    write_file(tmp_path / "proc/stat", STAT)
    assert read_processor_time([0, 1], tmp_path) == ProcessorTime(
        busy_s=410 / TICKS_PER_S, interrupt_s=13 / TICKS_PER_S, steal_s=20 / TICKS_PER_S
    )
    assert read_processor_time([1], tmp_path).busy_s == 260 / TICKS_PER_S


@pytest.mark.parametrize(
    ("stat", "reason"),
    [
        (STAT, "does not list cpu2"),
        ("cpu2 1 2 3 4 5\n", "cpu2 has no counts of steal time"),
        ("cpu2 0 0 0 0 0 0 0 0 0 0\n", "counts no time"),
    ],
)
def test_processors_that_are_not_counted_are_named(tmp_path: Path, stat: str, reason: str) -> None:
    write_file(tmp_path / "proc/stat", stat)
    with pytest.raises(NotReadableError, match=reason):
        read_processor_time([2], tmp_path)


def test_load_is_that_of_the_last_minute(tmp_path: Path) -> None:
    write_file(tmp_path / "proc/loadavg", "0.65 0.38 0.72 4/116 4409\n")
    assert read_load_average(tmp_path) == 0.65
    write_file(tmp_path / "proc/loadavg", "none\n")
    with pytest.raises(NotReadableError, match="no number"):
        read_load_average(tmp_path)


def test_pressure_is_the_time_in_which_some_thread_waited(tmp_path: Path) -> None:
    write_file(
        tmp_path / "proc/pressure/cpu",
        "some avg10=3.57 avg60=3.15 avg300=1.40 total=12169432\nfull avg10=0.00 total=7\n",
    )
    assert read_waited_s("cpu", tmp_path) == 12.169432
    with pytest.raises(NotReadableError, match="No such file"):
        read_waited_s("io", tmp_path)
    write_file(tmp_path / "proc/pressure/io", "full total=7\n")
    with pytest.raises(NotReadableError, match="no total of `some`"):
        read_waited_s("io", tmp_path)


def test_clock_rates_come_from_cpufreq_or_else_from_cpuinfo(tmp_path: Path) -> None:
    write_file(
        tmp_path / "proc/cpuinfo",
        "processor\t: 0\ncpu MHz\t\t: 2500.0\n\nprocessor\t: 1\ncpu MHz\t\t: 2700.5\n",
    )
    assert read_mean_mhz([0, 1], tmp_path) == 2600.25
    assert read_mean_mhz([1], tmp_path) == 2700.5
    for number, khz in ((0, 1_000_000), (1, 3_000_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        write_file(folder / "scaling_cur_freq", f"{khz}\n")
    assert read_mean_mhz([0, 1], tmp_path) == 2000.0
    with pytest.raises(NotReadableError, match="tells the clock rate"):
        read_mean_mhz([0, 2], tmp_path)


# ---- processes ----


def write_process(root: Path, pid: int, ticks: tuple[int, ...], children: str = "") -> None:
    fields = ["S", *["1"] * 10, *map(str, ticks), "20", "0"]
    write_file(root / f"proc/{pid}/stat", f"{pid} (a) b (c) {' '.join(fields)}\n")
    write_file(root / f"proc/{pid}/task/{pid}/children", children)


def test_cpu_time_is_that_of_a_process_and_all_that_it_started(tmp_path: Path) -> None:
    write_process(tmp_path, 7, (10, 20, 3, 4), "8 99 ")  # 99 has just ended
    write_process(tmp_path, 8, (100, 0, 0, 0))
    write_file(tmp_path / "proc/7/task/70/children", "9 ")  # started by another thread
    write_process(tmp_path, 9, (1000, 0, 0, 0))
    write_process(tmp_path, 10, (5000, 0, 0, 0))
    assert read_cpu_seconds([7], tmp_path) == 1137 / TICKS_PER_S
    assert read_cpu_seconds([7, 9], tmp_path) == 1137 / TICKS_PER_S  # nothing counts twice
    assert read_cpu_seconds([8, 10], tmp_path) == 5100 / TICKS_PER_S


def test_processes_that_cannot_be_counted_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match="/proc/7/stat: No such file"):
        read_cpu_seconds([7], tmp_path)
    write_process(tmp_path, 7, (10, 20, 3, 4))
    (tmp_path / "proc/7/task/7/children").unlink()  # a kernel without CONFIG_PROC_CHILDREN
    with pytest.raises(NotReadableError, match="children: No such file"):
        read_cpu_seconds([7], tmp_path)
    write_file(tmp_path / "proc/7/stat", "7 (a) S 1\n")
    with pytest.raises(NotReadableError, match="7 \\(a\\) S 1"):
        read_cpu_seconds([7], tmp_path)
    with pytest.raises(NotReadableError, match="ns/pid"):
        read_pid_namespace(tmp_path)


BUSY_PROGRAM = """\
import time
while time.process_time() < 0.3: pass
print('done', flush=True)
input()
"""
"""Takes 0.3 s of CPU time, however loaded the machine is, and stays."""


def window_beside_a_busy_child(job: int) -> dict[str, Any]:
    """Return what a window says in which a child takes 0.3 s of CPU time.

    Args:
        job: the process that counts as the job's.
    """
    cpus, pids = os.sched_getaffinity(0), {job}
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        first_reading = Snapshot.take(cpus, pids, None)
        assert child.stdout.readline() == "done\n"
        window = Snapshot.take(cpus, pids, None).since(first_reading)
        child.communicate("\n", timeout=PATIENCE)
    return window


def test_a_process_that_the_job_started_is_its_own() -> None:
    assert window_beside_a_busy_child(os.getpid())["own_cpu_s"] > 0.2  # both rounded to ticks


def test_a_process_of_somebody_else_is_seen() -> None:
    with subprocess.Popen(["sleep", "100"]) as job:
        window = window_beside_a_busy_child(job.pid)
        job.kill()
    assert window["own_cpu_s"] < 0.1
    assert window["other_cpu_s"] > 0.1


def test_a_listener_is_found_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert find_listening_pids([port]) == {os.getpid()}
    assert find_listening_pids([port]) == set()
    assert find_listening_pids([]) == set()


# ---- interfaces ----


def test_traffic_of_interfaces_and_infiniband_ports_is_read_together(tmp_path: Path) -> None:
    write_file(tmp_path / "proc/net/dev", NET)
    assert read_interface_traffic(tmp_path) == {
        "lo": InterfaceCounts(out_nbytes=100, out_packets=2, in_nbytes=100, in_packets=2),
        "eth0": InterfaceCounts(
            out_nbytes=777777, out_packets=600, in_nbytes=12345678, in_packets=900
        ),
    }
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1/counters"
    counts = {"xmit_data": 1000, "xmit_packets": 3, "rcv_data": 50, "rcv_packets": 2}
    for name, count in counts.items():
        write_file(port / f"port_{name}", f"{count}\n")
    assert read_interface_traffic(tmp_path)["mlx5_0/1"] == InterfaceCounts(
        out_nbytes=4000, out_packets=3, in_nbytes=200, in_packets=2
    )
    write_file(port / "port_xmit_data", f"{2**32 - 1}\n")
    with pytest.raises(NotReadableError, match="has reached its end"):
        read_interface_traffic(tmp_path)
    (port / "port_xmit_data").unlink()
    with pytest.raises(NotReadableError, match="port_xmit_data: No such file"):
        read_interface_traffic(tmp_path)
    write_file(tmp_path / "proc/net/dev", NET + "  eth1: 1 2\n")
    with pytest.raises(NotReadableError, match="eth1"):
        read_interface_traffic(tmp_path)


# ---- GPUs ----


class FakeError(Exception):
    """What NVML raises."""

    def __str__(self) -> str:
        return {3: "Not Supported", 6: "Not Found"}[self.args[0]]


class FakeNvml:
    """The module ``pynvml`` with one GPU, whose counters a test sets."""

    NVMLError = FakeError
    NVML_SUCCESS = 0
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_PERF_POLICY_POWER = 74
    NVML_FI_DEV_PERF_POLICY_THERMAL = 75
    NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT = 77
    NVML_FI_DEV_PERF_POLICY_RELIABILITY = 79
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX = 138
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 139
    nvmlClocksThrottleReasonSwPowerCap = 4  # noqa: N815 - as NVML spells it
    nvmlClocksThrottleReasonHwSlowdown = 8  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = 32  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = 64  # noqa: N815
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128  # noqa: N815

    def __init__(self) -> None:
        self.energy, self.bits = 5000, 1 | 4
        self.counts = {74: 2_000_000_000, 75: 0, 77: 0, 79: 0, 138: 10, 139: 20}
        self.failing: set[int] = set()

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-aaaa":
            raise FakeError(6)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, device: str) -> int:  # noqa: N802
        return self.energy

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: str) -> int:  # noqa: N802
        return self.bits

    def nvmlDeviceGetClockInfo(self, device: str, kind: int) -> int:  # noqa: N802
        return 1755

    def nvmlDeviceGetTemperature(self, device: str, kind: int) -> int:  # noqa: N802
        return 54

    def nvmlDeviceGetFieldValues(  # noqa: N802
        self, device: str, fields: list[tuple[int, int]]
    ) -> list[Any]:
        assert all(scope == (2**32 - 1 if number in (138, 139) else 0) for number, scope in fields)
        return [
            SimpleNamespace(
                nvmlReturn=3 if number in self.failing else 0,
                value=SimpleNamespace(ullVal=self.counts[number]),
            )
            for number, _ in fields
        ]


def test_a_gpus_window_is_the_difference_of_two_readings() -> None:
    fake = FakeNvml()
    reader = GpuReader(["aaaa"], fake)
    first_reading = Snapshot(at_s=10.0, gpus=reader.read(), traffic={})
    fake.energy, fake.bits = 605_000, 1 | 64
    fake.counts |= {74: 2_500_000_000, 138: 1010, 139: 22}
    second_reading = Snapshot(at_s=12.5, cost_s=0.5, gpus=reader.read(), traffic={})
    window = second_reading.since(first_reading)
    assert window["wall_s"] == 2.0
    (gpu,) = window["gpus"].values()
    assert (gpu.clock_mhz, gpu.temperature_c, gpu.power_w) == (1755, 54, 300)
    assert gpu.reasons == ["temperature (hardware)"]  # idleness spoils nothing
    assert gpu.limited_s == {"power": 0.5, "temperature": 0, "board limit": 0, "reliability": 0}
    assert window["carried"]["NVLink"].out_nbytes == 1000 * 1024
    assert window["carried"]["NVLink"].in_nbytes == 2 * 1024


def test_what_a_gpu_does_not_count_is_named() -> None:
    fake = FakeNvml()
    fake.failing = {75, 138, 139}
    (reading,) = GpuReader(["GPU-aaaa"], fake).read().values()
    assert reading.links is None
    assert reading.limited_s is not None
    assert "temperature" not in reading.limited_s
    assert reading.unreadable == {
        "temperature": "NVML_FI_DEV_PERF_POLICY_THERMAL: Not Supported",
        "NVLink": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: Not Supported",
    }
    with pytest.raises(NotReadableError, match="NVML: Not Found"):
        GpuReader(["bbbb"], fake)


def test_without_the_library_there_is_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NotReadableError, match="nvidia-ml-py is not installed"):
        GpuReader(["aaaa"])


@pytest.mark.gpu
@needs_gpus(1)
def test_a_real_gpu_is_read() -> None:
    pytest.importorskip("pynvml")
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    reader = GpuReader([uuid])
    first_reading = Snapshot(at_s=0.0, gpus=reader.read(), traffic={})
    product = torch.ones(4096, 4096, device="cuda")
    for _ in range(50):
        product = product @ product * 1e-4
    torch.cuda.synchronize()
    (reading,) = reader.read().values()
    window = Snapshot(at_s=1.0, gpus={uuid: reading}, traffic={}).since(first_reading)
    assert set(reading.unreadable) <= {*nvml.LIMIT_COUNTERS, "NVLink"}, reading.unreadable
    assert window["gpus"][uuid].power_w > 0
    assert window["gpus"][uuid].clock_mhz > 0
