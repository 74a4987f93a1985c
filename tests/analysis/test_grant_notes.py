"""What reports say of the disk, the cores and the CPU quota that a run had."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dejavubench.analysis.notes import grant_notes
from dejavubench.analysis.reports.report import make_report
from dejavubench.machine.cgroups import Quota
from dejavubench.machine.cores import HostDemand, RankDemand
from dejavubench.records import End, RecordError, read_run, to_line
from helpers.synthetic_runs import AGAIN, NONE, arm_of, write_run

TWO_CORES = frozenset({0, 1})
TMPFS = {"path": "/dev/shm/x", "mount": "/dev/shm", "type": "tmpfs", "source": "tmpfs"}
EXT4 = {"path": "/data/x", "mount": "/", "type": "ext4", "source": "/dev/vda"}


def notes_of(
    folder: Path, *environments: dict[str, Any], end: dict[str, float] | None = None
) -> list[str]:
    """The notes on a run of two ranks that recorded these of themselves."""
    infos = [{"environment": environment} for environment in environments]
    write_run(folder, (NONE, AGAIN, arm_of("disk")), infos=infos, rounds=2, ended=end is None)
    if end is not None:
        for rank in range(2):
            with (folder / f"rank-{rank:04d}.jsonl").open("a") as file:
                throttling = end | {
                    "seconds": end["seconds"] - 0.01 * rank
                }  # read a little earlier
                file.write(to_line(End(environment={"cpu_throttling": {"measured": throttling}})))
    return make_report(read_run(folder)).note_texts


def test_the_report_says_where_a_disk_arm_wrote(tmp_path: Path) -> None:
    notes = notes_of(tmp_path / "a", {"stream_dir": TMPFS}, {})
    assert "stream directory: /dev/shm/x is on tmpfs, mounted at /dev/shm from tmpfs" in notes
    assert any(note.startswith("disk: fdatasync on tmpfs: tmpfs is memory; ") for note in notes)
    notes = notes_of(tmp_path / "b", {"stream_dir": EXT4}, {})
    assert "stream directory: /data/x is on ext4, mounted at / from /dev/vda" in notes
    assert not any(note.startswith("disk: ") for note in notes)


def test_the_report_says_quota_throttling_and_crowding(tmp_path: Path) -> None:
    bounded = {
        "cpu_quota": 1.5,
        "cpu_demand": asdict(
            HostDemand.of_ranks(
                [RankDemand(thread_count=2, helper_count=1, cores=TWO_CORES, quota=Quota(1.5, "g"))]
            )
        ),
    }
    notes = notes_of(tmp_path / "a", bounded, bounded, end={"periods": 45, "seconds": 3.2})
    throttled = "the control group was throttled for 3.2 s in 45 periods of the measured points"
    assert notes.count(f"CPU: the control group allows 1.5 CPUs; {throttled}") == 1
    assert sum(note.startswith("CROWDED: 1 rank has 2 busy threads") for note in notes) == 1
    assert sum(note.startswith("CPU: ") for note in notes) == 1
    notes = notes_of(tmp_path / "b", bounded, bounded, end={"periods": 0, "seconds": 0.0})
    assert (
        "CPU: the control group allows 1.5 CPUs; it was not throttled in the measured points"
        in notes
    )


def test_hosts_that_differ_are_told_apart() -> None:
    host_texts = [("a", "one"), ("b", "two"), ("c", "one")]
    assert grant_notes.join_by_host(host_texts) == ["one (a, c)", "two (b)"]


def test_runs_of_before_say_nothing(tmp_path: Path) -> None:
    assert (
        grant_notes.make_notes(
            read_run(write_run(tmp_path / "run", (NONE, arm_of("disk")), rounds=2))
        )
        == []
    )


@pytest.mark.parametrize(
    "wrong", [{"stream_dir": 5}, {"cpu_quota": "much"}, {"cpu_demand": {"ranks": 1}}]
)
def test_an_environment_of_other_types_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(RecordError, match=f"rank 0: environment {next(iter(wrong))}: "):
        notes_of(tmp_path / "run", wrong, {})
