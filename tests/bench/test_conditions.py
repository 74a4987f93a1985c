"""Conditions of a run: file systems, CPU quotas, throttling, crowded cores and shared memory.

The kernel's texts are fakes, so every outcome is the same on every machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from dejavubench.analysis.tables import grant_notes
from dejavubench.analysis.tables.report import report
from dejavubench.bench.environment import conditions as measured
from dejavubench.bench.environment.conditions import Conditions
from dejavubench.cli import host_lines as dry
from dejavubench.cli import main
from dejavubench.machine import shared_memory
from dejavubench.machine.cgroups import Quota, Throttling, cpu_quota, cpu_throttling
from dejavubench.machine.cores import Asker, Demand
from dejavubench.machine.file_system import Place, durability_note, find_mount, nature, place_of
from dejavubench.machine.launcher import LAUNCHED
from dejavubench.machine.memory import KEPT_PRIMITIVES, PRIMITIVE_CACHES, available_nbytes
from dejavubench.records import End, RankInfo, RecordError, read_run, to_line
from helpers.jobs import CLI, PATIENCE, QUICK, args, mpirun_program, run
from helpers.paths import ROOT
from helpers.synthetic_runs import AGAIN, NONE, arm, write_run

# ---- file systems ----

MOUNTINFO = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
22 27 0:21 / /proc rw - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
30 25 0:27 / /dev/shm rw - tmpfs second rw
40 27 8:1 / /data rw shared:2 master:3 - xfs /dev/sda1 rw
41 40 0:50 / /data/hidden rw - nfs4 server:/old rw
42 40 8:17 /inner /data rw - xfs /dev/sdb1 rw
43 27 0:51 / /mnt/two\\040words rw - nfs4 server:/a\\040b rw,vers=4.2
44 27 0:52 / /mnt/back\\134slash rw - fuse.sshfs me@there: rw
45 27 254:0 /srv/cache /mnt/bound rw - ext4 /dev/vda rw
46 27 0:53 / /host rw - 9p share rw
47 27 0:54 / /var rw - overlay overlay rw,lowerdir=/l
a line that is cut o
"""


@pytest.mark.parametrize(
    ("path", "fstype", "point", "source"),
    [
        ("/home/me/logs", "ext4", "/", "/dev/vda"),
        ("/dev/shm/run", "tmpfs", "/dev/shm", "second"),  # the last of those stacked on one folder
        ("/dev/shmoo", "devtmpfs", "/dev", "devtmpfs"),  # no part of /dev/shm
        ("/data", "xfs", "/data", "/dev/sdb1"),
        # The second mount of /data hides what lay below the first.
        ("/data/hidden/x", "xfs", "/data", "/dev/sdb1"),
        ("/mnt/two words/x", "nfs4", "/mnt/two words", "server:/a b"),
        ("/mnt/back\\slash", "fuse.sshfs", "/mnt/back\\slash", "me@there:"),
        ("/mnt/bound/x", "ext4", "/mnt/bound", "/dev/vda"),
        ("/host", "9p", "/host", "share"),
        ("/var/lib", "overlay", "/var", "overlay"),
    ],
)
def test_the_mount_that_holds_a_path_is_found(
    path: str, fstype: str, point: str, source: str
) -> None:
    found = find_mount(path, MOUNTINFO)
    assert found is not None
    assert (found.type, found.point, found.source) == (fstype, point, source)


def test_a_path_is_followed_through_links_to_its_mount(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    text = tmp_path / "mountinfo"
    text.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:1 / {real} rw - ramfs none rw\n")
    place = place_of(tmp_path / "link" / "not there yet", text)
    assert place is not None
    assert (place.mount, place.type, place.source) == (str(real), "ramfs", "none")
    assert place.path == str(tmp_path / "link" / "not there yet")


def test_names_that_are_not_utf_8_can_be_recorded(tmp_path: Path) -> None:
    text = tmp_path / "mountinfo"
    text.write_bytes(b"1 0 8:1 / / rw - ext4 \xff/[disk] rw\n")
    place = place_of("/x", text, tmp_path)
    assert place == Place("/x", "/", "ext4", "\\udcff/[disk]", "8:1", "rw")
    str(place).encode()


def test_a_place_has_its_device_and_all_its_options(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    (tmp_path / "vda").mkdir()
    devices.mkdir()
    (devices / "254:0").symlink_to(tmp_path / "vda")
    text = tmp_path / "mountinfo"
    text.write_text(MOUNTINFO)
    place = place_of("/home/me/logs", text, devices)
    assert str(place) == (
        "/home/me/logs is on ext4, mounted at / from /dev/vda, device vda, "
        "options rw,relatime,discard"
    )
    shared = place_of("/mnt/two words", text, devices)
    assert shared is not None
    assert (shared.device, shared.options) == ("", "rw,vers=4.2")
    # Older records have neither.
    older = Place("/x", "/", "ext4", "/dev/vda")
    assert str(older) == "/x is on ext4, mounted at / from /dev/vda"
    many = replace(older, options="lowerdir=/" + 3000 * "l")
    assert str(many).endswith("lll …")


def test_without_a_list_of_mounts_no_place_is_known(tmp_path: Path) -> None:
    assert place_of(tmp_path, tmp_path / "absent") is None
    assert find_mount("/x", "") is None
    # A chroot need not be a mount.
    assert find_mount("/x", "2 1 0:1 / /elsewhere rw - ext4 /dev/sda rw\n") is None


@pytest.mark.parametrize(
    ("types", "text"),
    [
        ("tmpfs ramfs", "memory"),
        ("overlay fuse.fuse-overlayfs", "a container's layered file system"),
        ("nfs nfs4 ceph lustre cifs fuse.sshfs fuse.s3fs glusterfs", "a network file system"),
        ("9p virtiofs", "shared by this virtual machine's host"),
        ("fuse.mergerfs fuseblk", "served by a program in user space"),
    ],
)
def test_file_systems_that_are_no_local_disk_are_named_for_what_they_are(
    types: str, text: str
) -> None:
    for fstype in types.split():
        found = nature(fstype)
        assert found is not None, fstype
        assert found.text == text
        for durability in ("fdatasync", "direct"):
            assert f"{durability} on {fstype}: {fstype} is {text}; " in str(
                durability_note(fstype, durability)
            )
        # The page cache promises nothing, so there is nothing to correct.
        assert durability_note(fstype, "page-cache") is None


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "zfs", "f2fs"])
def test_a_local_disk_needs_no_note(fstype: str) -> None:
    assert durability_note(fstype, "fdatasync") is None


# ---- control groups ----


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"
CASES: list[tuple[str, dict[str, str], float | None]] = [
    ("0::/\n", {}, None),
    ("0::/a\n", {f"{V2}/a/cpu.max": "max 100000\n"}, None),
    ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "150000 100000\n"}, 1.5),
    (
        "0::/a/b\n",
        {f"{V2}/a/b/cpu.max": "400000 100000\n", f"{V2}/a/cpu.max": "25000 50000\n"},
        0.5,
    ),
    # A container sees the top of the tree only.
    ("0::/of/the/host\n", {f"{V2}/cpu.max": "300000 100000\n"}, 3.0),
    ("0::/../sibling\n", {f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
    (
        "3:cpu:/a\n",
        {f"{V1}/a/cpu.cfs_quota_us": "-1\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    (
        "3:cpu,cpuacct:/a\n",
        {f"{V1}/a/cpu.cfs_quota_us": "50000\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
        0.5,
    ),
    (
        "3:cpu,cpuacct:/a\n0::/\n",
        {
            f"{V1},cpuacct/cpu.cfs_quota_us": "250000\n",
            f"{V1},cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    (
        "3:cpuset:/a\n0::/\n",
        {f"{V1}/a/cpu.cfs_quota_us": "50000\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    (
        "0::/a\n",
        {f"{V2}/unified/cgroup.procs": "1\n", f"{V2}/unified/a/cpu.max": "150000 100000\n"},
        1.5,
    ),
    ("0::/a\n", {f"{V2}/a/cpu.max": "torn"}, None),
]


@pytest.mark.parametrize(("cgroup", "files", "cpus"), CASES)
def test_the_tightest_cpu_quota_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float | None
) -> None:
    found = cpu_quota(machine(tmp_path, cgroup, files))
    assert (found and found.cpus) == cpus


def test_throttling_is_counted_in_every_group_above_too(tmp_path: Path) -> None:
    stat = "nr_periods 10\nnr_throttled {}\nthrottled_usec {}\n"
    files = {
        f"{V2}/a/b/cpu.stat": stat.format(3, 2_000_000),
        f"{V2}/a/cpu.stat": stat.format(1, 500_000),
    }
    files[f"{V2}/cpu.stat"] = "usage_usec 17\n"  # the top is never throttled, and has no such lines
    assert cpu_throttling(machine(tmp_path, "0::/a/b\n", files)) == Throttling(4, 2.5)


def test_throttling_of_version_1_is_in_nanoseconds(tmp_path: Path) -> None:
    files = {f"{V1}/a/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 3200000000\n"}
    assert cpu_throttling(machine(tmp_path, "3:cpu:/a\n", files)) == Throttling(4, 3.2)


def test_without_control_groups_nothing_is_bounded(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert cpu_throttling(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 7 kB\n")
    assert available_nbytes(tmp_path) == 7 * 1024


# ---- cores ----

TWO = frozenset({0, 1})
ASKERS: list[tuple[list[Asker], str | None]] = [
    ([Asker(2, 1, TWO, None)], None),  # a helper thread mostly sleeps: alone it crowds nobody
    ([Asker(1, 1, TWO, None), Asker(1, 0, TWO, None)], None),
    ([Asker(3, 0, TWO, None)], "1 rank has 3 busy threads, for 2 cores"),
    (
        [Asker(2, 1, TWO, None), Asker(1, 0, TWO, None)],
        "2 ranks have 3 busy threads, and 1 helper thread beside, for 2 co",
    ),
    ([Asker(1, 0, frozenset({0}), None), Asker(1, 0, frozenset({1}), None)], None),
    ([Asker(1, 0, frozenset({0}), None)] * 2, "2 ranks have 2 busy threads, for 1 core:"),
    (
        [Asker(2, 0, frozenset({0}), None), Asker(1, 0, frozenset(range(8)), None)],
        "; 1 of them has more threads than",
    ),
    ([Asker(2, 0, TWO, Quota(1.5, "g"))], "for 2 cores; the control group allows 1.5 CPUs:"),
    ([Asker(1, 0, TWO, Quota(1.5, "g"))] * 2, "; the control group allows 1.5 CPUs:"),  # together
    ([Asker(1, 0, TWO, Quota(1, "g")), Asker(1, 0, TWO, Quota(1, "h"))], None),  # each
    ([Asker(2, 0, TWO, Quota(16, "g"))], None),  # more than there are cores
]


@pytest.mark.parametrize(("askers", "said"), ASKERS)
def test_more_busy_threads_than_cores_are_said(askers: list[Asker], said: str | None) -> None:
    note = Demand.of_askers(askers).note()
    assert (note is None) if said is None else (note is not None and said in note), note


# ---- the report ----

TMPFS = {"path": "/dev/shm/x", "mount": "/dev/shm", "type": "tmpfs", "source": "tmpfs"}
EXT4 = {"path": "/data/x", "mount": "/", "type": "ext4", "source": "/dev/vda"}


def told(
    folder: Path, *environments: dict[str, Any], end: dict[str, float] | None = None
) -> list[str]:
    """The notes on a run of two ranks that recorded these of themselves."""
    infos = [{"environment": each} for each in environments]
    write_run(folder, (NONE, AGAIN, arm("disk")), infos=infos, rounds=2, ended=end is None)
    if end is not None:
        for rank in range(2):
            with (folder / f"rank-{rank:04d}.jsonl").open("a") as file:
                mine = end | {"seconds": end["seconds"] - 0.01 * rank}  # read a little earlier
                file.write(to_line(End(environment={"cpu_throttling": {"measured": mine}})))
    return report(read_run(folder)).note_texts


def test_the_report_says_where_a_disk_arm_wrote(tmp_path: Path) -> None:
    notes = told(tmp_path / "a", {"stream_dir": TMPFS}, {})
    assert "stream directory: /dev/shm/x is on tmpfs, mounted at /dev/shm from tmpfs" in notes
    assert any(note.startswith("disk: fdatasync on tmpfs: tmpfs is memory; ") for note in notes)
    notes = told(tmp_path / "b", {"stream_dir": EXT4}, {})
    assert "stream directory: /data/x is on ext4, mounted at / from /dev/vda" in notes
    assert not any(note.startswith("disk: ") for note in notes)


def test_the_report_says_quota_throttling_and_crowding(tmp_path: Path) -> None:
    bounded = {
        "cpu_quota": 1.5,
        "cpu_demand": asdict(Demand.of_askers([Asker(2, 1, TWO, Quota(1.5, "g"))])),
    }
    notes = told(tmp_path / "a", bounded, bounded, end={"periods": 45, "seconds": 3.2})
    throttled = "the control group was throttled for 3.2 s in 45 periods of the measured points"
    assert notes.count(f"CPU: the control group allows 1.5 CPUs; {throttled}") == 1
    assert sum(note.startswith("CROWDED: 1 rank has 2 busy threads") for note in notes) == 1
    assert sum(note.startswith("CPU: ") for note in notes) == 1
    notes = told(tmp_path / "b", bounded, bounded, end={"periods": 0, "seconds": 0.0})
    assert (
        "CPU: the control group allows 1.5 CPUs; it was not throttled in the measured points"
        in notes
    )


def test_hosts_that_differ_are_told_apart() -> None:
    said = [("a", "one"), ("b", "two"), ("c", "one")]
    assert grant_notes.by_host(said) == ["one (a, c)", "two (b)"]


def test_runs_of_before_say_nothing(tmp_path: Path) -> None:
    assert (
        grant_notes.notes(read_run(write_run(tmp_path / "run", (NONE, arm("disk")), rounds=2)))
        == []
    )


@pytest.mark.parametrize(
    "wrong", [{"stream_dir": 5}, {"cpu_quota": "much"}, {"cpu_demand": {"ranks": 1}}]
)
def test_an_environment_of_other_types_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(RecordError, match=f"rank 0: environment {next(iter(wrong))}: "):
        told(tmp_path / "run", wrong, {})


# ---- before and during a run ----


def test_a_dry_run_says_what_it_would_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        dry, "place_of", lambda path: Place(str(path), "/dev/shm", "tmpfs", "tmpfs")
    )
    monkeypatch.setattr(dry, "cpu_quota", lambda: Quota(0.5, "g"))
    options = [
        *args("--streaming none,disk --durability fdatasync,page-cache"),
        "--stream-dir",
        str(tmp_path),
    ]
    result = CliRunner().invoke(
        main, ["run", *QUICK, "--dry-run", *options], env=dict.fromkeys(LAUNCHED)
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "; the control group allows 0.5 CPUs Disk" in said
    assert f"{tmp_path} is on tmpfs, mounted at /dev/shm from tmpfs" in said.replace("- ", "-")
    assert "fdatasync on tmpfs: tmpfs is memory" in said
    assert "page-cache on tmpfs" not in said
    assert (
        "With all ranks on this host: 1 rank has 1 busy thread, and 1 helper thread beside, for "
        in said
    )


class World:
    """A communicator of two ranks, the other of which asks for as much on another host."""

    rank = 0

    def allgather(self, mine: Asker) -> list[Asker]:
        return [mine, replace(mine, helpers=0)]


def found_by(
    monkeypatch: pytest.MonkeyPatch, threads: int, counters: list[Throttling | None]
) -> Conditions:
    monkeypatch.setattr(measured, "cpu_quota", lambda: Quota(1.5, "g"))
    monkeypatch.setattr(measured, "cpu_throttling", iter(counters).__next__)
    return Conditions(cast(Any, World()), ["a", "b"], threads, 1, {0, 1}, None)


def test_the_throttling_of_all_measured_points_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counters: list[Throttling | None] = [
        Throttling(n, t) for n, t in [(5, 1.0), (7, 1.5), (9, 2.0), (10, 2.25)]
    ]
    conditions = found_by(monkeypatch, 1, counters)
    assert conditions.outcome() == {}
    for _ in range(2):
        with conditions.measuring():
            pass
    (found,) = conditions.outcome().values()
    assert found["before"] == {"periods": 5, "seconds": 1.0}
    assert found["after"] == {"periods": 10, "seconds": 2.25}
    # The throttling between the two points does not count.
    assert found["measured"] == {"periods": 3, "seconds": 0.75}


def test_without_counters_nothing_is_said_of_throttling(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = found_by(monkeypatch, 1, [None, None])
    with conditions.measuring():
        pass
    assert conditions.outcome() == {}


def test_crowded_hosts_are_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = found_by(monkeypatch, 2, [])
    notes = conditions.notes()
    assert [note.partition(":")[0] for note in notes] == ["a", "b"]
    assert all(
        "1 rank has 2 busy threads" in note and "the control group allows 1.5 CPUs" in note
        for note in notes
    )
    assert conditions.facts()["cpu_quota"] == 1.5
    assert found_by(monkeypatch, 1, []).notes() == []


@pytest.mark.mpi
def test_a_run_records_and_shows_where_it_ran(tmp_path: Path) -> None:
    modes = (*args("--streaming disk --rounds 1 --warmup 0"), "--stream-dir", tmp_path / "streamed")
    job = run(tmp_path, 1, "run", *QUICK, *modes)
    (info,) = [info for _, info in job.run.records_of(RankInfo)]
    place = place_of(tmp_path / "streamed")
    assert info.environment["stream_dir"] == (place and asdict(place))
    assert info.environment["cpu_demand"]["ranks"] == 1
    quota = cpu_quota()
    assert info.environment["cpu_quota"] == (quota and quota.cpus)
    assert {info.environment["variables"][name] for name in PRIMITIVE_CACHES} == {
        str(KEPT_PRIMITIVES)
    }
    (end,) = [end for _, end in job.run.records_of(End)]
    assert bool(end.environment) == (cpu_throttling() is not None)
    assert f"stream directory: {place}" in report(job.run).note_texts


# ---- shared memory ----


def room(mib: float) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=int(mib * 256), f_frsize=4096)


@pytest.mark.parametrize(
    ("free_mib", "environment", "short"),
    [
        (64, {}, False),
        (0.25, {}, True),
        (2, {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}, True),
        (64, {"OMPI_COMM_WORLD_LOCAL_SIZE": "64", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, True),
        (64, {"MPI_LOCALNRANKS": "32"}, False),
        (0, {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}, False),  # one rank of a host says it
    ],
)
def test_too_little_shared_memory_is_said(
    free_mib: float, environment: dict[str, str], short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: room(free_mib))
    note = shared_memory.shortage(environment)
    assert (note is not None) == short
    assert note is None or f"/dev/shm has {free_mib:.1f} MiB left" in note


@pytest.mark.parametrize(
    ("free_mib", "rank", "notes", "waits"), [(0, "0", 1, 1), (0, "1", 0, 1), (64, "1", 0, 0)]
)
def test_no_rank_begins_mpi_before_a_shortage_is_read(
    free_mib: float, rank: str, notes: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that dies of it ends the job, and so the rank that says why."""
    said: list[str] = []
    waited: list[float] = []
    monkeypatch.setattr(os, "statvfs", lambda folder: room(free_mib))
    monkeypatch.setattr(time, "sleep", waited.append)
    shared_memory.say_shortage({"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": rank}, said.append)
    assert (len(said), len(waited)) == (notes, waits)


def test_without_shared_memory_it_is_left_to_mpi(tmp_path: Path) -> None:
    assert shared_memory.shortage({}, tmp_path / "absent") is None


@pytest.mark.mpi
def test_a_job_without_shared_memory_says_so_before_it_dies(tmp_path: Path) -> None:
    """In a mount namespace of its own, with a tiny /dev/shm."""
    command = [mpirun_program(), "-n", "2", sys.executable, *CLI, "run", *QUICK]
    small = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"',
        "sh",
        *command,
    ]
    inherited = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    try:
        done = subprocess.run(
            small,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"cannot mount a small /dev/shm: {done.stderr.strip()}")
    # the other rank's MPI may have taken some of the 0.1 MiB by then
    notes = re.findall(
        r"note: /dev/shm has 0\.[01] MiB left, and MPI may need 2\.2 MiB there", done.stderr
    )
    assert len(notes) == 1, done.stderr
