"""What a dry run says of the host that it would measure on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dejavubench.cli import host_lines
from dejavubench.machine.cgroups import Quota
from dejavubench.machine.file_system import MountedFolder
from helpers.cli_calls import call
from helpers.jobs import QUICK, args


def test_a_dry_run_says_what_it_would_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        host_lines,
        "locate_folder",
        lambda path: MountedFolder(str(path), "/dev/shm", "tmpfs", "tmpfs"),
    )
    monkeypatch.setattr(host_lines, "read_cpu_quota", lambda: Quota(0.5, "g"))
    options = [
        *args("--streaming none,disk --durability fdatasync,page-cache"),
        "--stream-dir",
        str(tmp_path),
    ]
    dry_run = call("run", *QUICK, "--dry-run", *options)
    assert dry_run.exit_code == 0, dry_run.output
    output = " ".join(dry_run.stdout.split())
    assert "; the control group allows 0.5 CPUs Disk" in output
    assert f"{tmp_path} is on tmpfs, mounted at /dev/shm from tmpfs" in output.replace("- ", "-")
    assert "fdatasync on tmpfs: tmpfs is memory" in output
    assert "page-cache on tmpfs" not in output
    assert (
        "With all ranks on this host: 1 rank has 1 busy thread, and 1 helper thread beside, for "
        in output
    )
