"""Limits of a control group, of both versions, from files that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavubench.machine.cgroups import Throttling, read_cpu_quota, read_cpu_throttling
from dejavubench.machine.memory import measure_available_nbytes
from helpers.machine_files import write_machine

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        pytest.param("0::/\n", {}, None, id="no limit"),
        pytest.param("0::/a\n", {f"{V2}/a/cpu.max": "max 100000\n"}, None, id="unlimited"),
        pytest.param("0::/a/b\n", {f"{V2}/a/b/cpu.max": "150000 100000\n"}, 1.5, id="version 2"),
        pytest.param(
            "0::/a/b\n",
            {f"{V2}/a/b/cpu.max": "400000 100000\n", f"{V2}/a/cpu.max": "25000 50000\n"},
            0.5,
            id="tighter group above",
        ),
        pytest.param(
            "0::/of/the/host\n",
            {f"{V2}/cpu.max": "300000 100000\n"},
            3.0,
            id="top of a container's tree",
        ),
        pytest.param(
            "0::/../sibling\n",
            {f"{V2}/cpu.max": "200000 100000\n"},
            2.0,
            id="group outside the tree",
        ),
        pytest.param(
            "3:cpu:/a\n",
            {f"{V1}/a/cpu.cfs_quota_us": "-1\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, unlimited",
        ),
        pytest.param(
            "3:cpu,cpuacct:/a\n",
            {f"{V1}/a/cpu.cfs_quota_us": "50000\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
            0.5,
            id="version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/a\n0::/\n",
            {
                f"{V1},cpuacct/cpu.cfs_quota_us": "250000\n",
                f"{V1},cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
            id="version 1, mounted with cpuacct",
        ),
        pytest.param(
            "3:cpuset:/a\n0::/\n",
            {f"{V1}/a/cpu.cfs_quota_us": "50000\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, another controller",
        ),
        pytest.param(
            "0::/a\n",
            {f"{V2}/unified/cgroup.procs": "1\n", f"{V2}/unified/a/cpu.max": "150000 100000\n"},
            1.5,
            id="version 2 beside version 1",
        ),
        pytest.param("0::/a\n", {f"{V2}/a/cpu.max": "torn"}, None, id="torn file"),
    ],
)
def test_the_tightest_cpu_quota_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float | None
) -> None:
    quota = read_cpu_quota(write_machine(tmp_path, cgroup, files))
    assert (quota and quota.cpus) == cpus


def test_throttling_is_counted_in_every_group_above_too(tmp_path: Path) -> None:
    stat = "nr_periods 10\nnr_throttled {}\nthrottled_usec {}\n"
    files = {
        f"{V2}/a/b/cpu.stat": stat.format(3, 2_000_000),
        f"{V2}/a/cpu.stat": stat.format(1, 500_000),
    }
    files[f"{V2}/cpu.stat"] = "usage_usec 17\n"  # the top is never throttled, and has no such lines
    assert read_cpu_throttling(write_machine(tmp_path, "0::/a/b\n", files)) == Throttling(
        periods=4, seconds=2.5
    )


def test_throttling_of_version_1_is_in_nanoseconds(tmp_path: Path) -> None:
    files = {f"{V1}/a/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 3200000000\n"}
    assert read_cpu_throttling(write_machine(tmp_path, "3:cpu:/a\n", files)) == Throttling(
        periods=4, seconds=3.2
    )


def test_without_control_groups_nothing_is_bounded(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path) is None
    assert read_cpu_throttling(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 7 kB\n")
    assert measure_available_nbytes(tmp_path) == 7 * 1024
