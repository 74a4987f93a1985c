"""The raw loop of ``contrib/yardstick`` moves as many bytes as ``mpi``, and is never verified.

On a CPU, fp32, with 1 thread per rank.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from dejavubench.records import Microbatch, SinkActivity, Verification
from dejavubench.transports.registry import PLUGINS_VARIABLE
from helpers.jobs import QUICK, Job, args, process_folder, run
from helpers.paths import ROOT

YARDSTICK = ROOT / "contrib" / "yardstick"
WITH_RAW = {
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(YARDSTICK))),
    PLUGINS_VARIABLE: "raw_mpi_transport",
}
RAW = ("raw-mpi@3", "raw-mpi-posted@3")
RAW_NOTHING = "raw-nothing@3"


@pytest.mark.mpi
def test_the_raw_loop_is_an_arm_of_the_same_rounds(tmp_path: Path) -> None:
    job = run(
        tmp_path,
        2,
        *("run", "--streaming", "none,mpi,raw-mpi,raw-mpi-posted,raw-nothing", *QUICK),
        *args("--rounds 2 --warmup 1"),
        environment=WITH_RAW,
        cold=True,
    )
    # The verdict on bytes is left to the arm that moves the cache.
    checks = [check for _, check in job.run.records_of(Verification) if check.nbytes]
    assert {check.arm for check in checks} == {"mpi@3"}
    received = defaultdict(set)
    for _, activity in job.run.records_of(SinkActivity):
        if activity.nbytes:
            received[activity.nbytes, activity.messages].add(activity.arm)
    handed = defaultdict(set)
    for _, microbatch in job.run.records_of(Microbatch):
        if microbatch.tokens.nbytes:
            handed[
                microbatch.tokens.nbytes, microbatch.prompt.copies, microbatch.tokens.copies
            ].add(microbatch.arm)
    assert [*received.values()] == [{"mpi@3", *RAW}]
    assert [*handed.values()] == [{"mpi@3", *RAW, RAW_NOTHING}]

    # Its records are read where the yardstick is not installed, and nothing is missing in them.
    (records,) = json.loads(process_folder(job.folder, "json"))
    rows = {row["arm"]: row for row in records["rows"]}
    assert rows["mpi@3"]["verified"] == "yes (3)"
    assert {(rows[arm]["verified"], rows[arm]["status"]) for arm in (*RAW, RAW_NOTHING)} == {
        ("no", "ok")
    }


@pytest.mark.mpi
def test_the_raw_loop_refuses_single_extents(tmp_path: Path) -> None:
    with Job(
        tmp_path,
        1,
        *("run", "--streaming", "raw-mpi", "--level", "0", *QUICK, "--dry-run"),
        environment=WITH_RAW,
        cold=True,
    ) as job:
        assert job.wait() == 2, job.stderr
    assert "raw-mpi moves whole chunks: use --level 1, 2 or 3" in job.stderr
