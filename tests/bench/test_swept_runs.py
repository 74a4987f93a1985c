"""Runs whose threads, cores and staging memory differ from point to point.

Jobs: gpt of 2 layers, fp32, CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from dejavubench.analysis.facts.collect_samples import collect
from dejavubench.analysis.integrity import read_checked
from dejavubench.config.continued_run import find_continued_run
from dejavubench.records import (
    RUN_FILE,
    Microbatch,
    RankInfo,
    Restart,
    Run,
    Verification,
    name_rank_file,
    read_run,
)
from dejavubench.records.json_schemas import make_file_schema
from helpers.cli_calls import call
from helpers.jobs import QUICK, TINY, Job, args, process_folder, run
from helpers.paths import DRIVERS

# A layer of the prompt takes 4 × 640 × 512 bytes, so it is cut to slots of 1 MiB, not of 4 MiB.
SIZES = (*TINY, *args("--ubatch-size 4 --input-len 640 --output-len 3 --no-ceilings"))
SWEEP = args(
    "--threads 1,2 --staging-mib 1,4 --streaming none,mpi --rounds 1 --warmup 0 --name swept"
)
SLOTS = 4
"""Staging slots by default."""

POINTS = [(1, 1), (1, 4), (2, 1), (2, 4)]
"""Threads and staging of each point, in the order of their ids."""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """Return a run of two points, as it was before a session measured the rest, and its folder."""
    cwd = tmp_path_factory.mktemp("swept")
    folder = run(cwd, 2, "run", *SIZES, *SWEEP, "--points", "p001,p002").folder
    first_half = read_checked(folder)
    run(cwd / "rest", 2, "run", "--continue", folder)
    return first_half, folder


@pytest.mark.mpi
def test_every_point_is_measured_and_verified_with_its_own_settings(
    halves: tuple[Run, Path],
) -> None:
    first_half, folder = halves
    assert {verification.point for _, verification in first_half.records_of(Verification)} == {
        "p001",
        "p002",
    }
    assert not find_continued_run(folder, None).starts
    full_run = read_checked(folder)
    samples = collect(full_run)
    settings = [(point.info.threads, point.info.staging_mib) for point in samples.values()]
    assert settings == POINTS
    for point in samples.values():
        assert [len(arm.times.total) for arm in point.arms.values()] == [1] * 3
        assert all(arm.why_failed is None for arm in point.arms.values())
        assert all(arm.checks for arm in point.arms.values() if arm.info.is_streaming)
    checks = [verification for _, verification in full_run.records_of(Verification)]
    assert checks
    assert all(check.ok for check in checks)
    # Smaller slots take more messages for the same bytes.
    chunks = {
        microbatch.point: (microbatch.prompt.copies, microbatch.prompt.nbytes)
        for _, microbatch in full_run.records_of(Microbatch)
        if microbatch.arm == "mpi@3"
    }
    assert chunks["p000"][0] == chunks["p002"][0] > chunks["p001"][0] == chunks["p003"][0]
    assert len({nbytes for _, nbytes in chunks.values()}) == 1


@pytest.mark.mpi
def test_records_tell_the_settings_of_each_point(halves: tuple[Run, Path]) -> None:
    first_half, folder = halves
    header = json.loads((folder / RUN_FILE).read_text())
    assert header["experiment"]["threads"] == [1, 2]
    assert header["experiment"]["staging_slots"] == SLOTS
    assert [(point["threads"], point["staging_mib"]) for point in header["points"]] == POINTS
    assert not {"staging_slots", "confine"} & set(header["points"][0])
    assert header["environment"]["threads"] == 2
    source = next(info for rank, info in first_half.records_of(RankInfo) if rank == 0)
    # Of the largest slots, of a session in which some point had them.
    assert source.staging_nbytes == SLOTS * 4 << 20
    assert source.threads == 2
    points = source.facts.points
    busy_threads = {
        name: point.cpu_demand.threads
        for name, point in points.items()
        if point.cpu_demand is not None
    }
    assert busy_threads == {"p001": 2, "p002": 3}  # the sink receives with one thread
    assert all(point.cores == source.cores for point in points.values())


@pytest.mark.mpi
def test_records_of_a_sweep_keep_to_the_schemas(halves: tuple[Run, Path]) -> None:
    _, folder = halves
    run_schema, rank_schema = map(Draft202012Validator, map(make_file_schema, ("run", "rank")))
    assert list(run_schema.iter_errors(json.loads((folder / RUN_FILE).read_text()))) == []
    for line in (folder / name_rank_file(0)).read_text().splitlines():
        assert list(rank_schema.iter_errors(json.loads(line))) == []


@pytest.mark.mpi
def test_tables_and_dry_runs_name_the_settings(halves: tuple[Run, Path]) -> None:
    _, folder = halves
    table = process_folder(folder)
    heading = next(line for line in table.splitlines() if "prompt ms" in line)
    assert heading.split()[:4] == ["point", "threads", "staging", "MiB"]
    (settings,) = (line for line in table.splitlines() if "settings: " in line)
    assert "--vocab-size 101" in settings
    assert "--threads" not in settings
    rows = json.loads(process_folder(folder, "json"))[0]["rows"]
    assert [(row["threads"], row["staging_mib"]) for row in rows[::3]] == POINTS
    assert {row["confine"] for row in rows} == {False}
    dry_run = call("run", "--dry-run", "--continue", folder)
    assert dry_run.exit_code == 0, dry_run.stderr
    assert "Nothing is missing in" in dry_run.stdout


@pytest.mark.mpi
def test_points_with_and_without_confinement_have_their_cores(tmp_path: Path) -> None:
    flags = args("--confine --no-confine --streaming none,host --rounds 1 --warmup 0")
    job = run(tmp_path, 1, "run", *QUICK, *flags)
    (info,) = [info for _, info in job.run.records_of(RankInfo)]
    granted = sorted(os.sched_getaffinity(0))
    assert info.cores == granted
    cores = {name: point.cores for name, point in info.facts.points.items()}
    assert cores == {"p000": granted[:1], "p001": granted}
    assert [point.confine for point in read_run(job.folder).header.points] == [True, False]


@pytest.mark.mpi
def test_a_request_is_restarted_with_the_settings_of_its_point(tmp_path: Path) -> None:
    sizes = args("--ubatch-size 2 --input-len 8 --output-len 20 --no-ceilings")
    sweep = args("--threads 2,1 --staging-mib 3,5 --streaming disk --keep --warmup 1 --rounds 2")
    words = ("0:step:12", "run", *TINY, *sizes, *sweep)
    with Job(tmp_path / "killed", 1, *words, driver=(DRIVERS / "killed.py",)) as killed:
        killed.wait_killed(0)
    job = run(tmp_path / "again", 1, "run", "--restart-request", killed.folder)
    assert len(list(job.run.records_of(Restart))) == 1
    experiment = job.run.header.experiment
    assert (experiment["threads"], experiment["staging_mib"]) == (2, 3)
    (info,) = [info for _, info in job.run.records_of(RankInfo)]
    assert (info.threads, info.staging_nbytes) == (2, SLOTS * 3 << 20)


MOVED = """
import os, threading
from types import SimpleNamespace
import torch
from dejavubench.bench.startup.process_settings import ProcessSettings
from dejavubench.config.points import PointSettings

def cores():
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}

def product():
    torch.ones(512, 512) @ torch.ones(512, 512)
    torch.ones(1 << 22).exp_()

def wait():
    threading.Thread(target=ended.wait, daemon=True).start()

ended = threading.Event()
wait()
bystanders = set(cores()) - {os.getpid()}
assert bystanders
granted = frozenset(os.sched_getaffinity(0))
own = min(granted)
ranks = SimpleNamespace(is_source=True, own_core=own, cores=granted)
process = ProcessSettings(ranks)
for threads, confine in ((2, False), (2, True), (1, True), (3, False), (3, True)):
    process.apply(PointSettings(threads=threads, confine=confine))
    product()
    wait()
    now = cores()
    assert torch.get_num_threads() == threads
    assert all(now.pop(thread) == granted for thread in bystanders)
    expected = {own} if confine else granted
    assert all(allowed == expected for allowed in now.values()), (now, confine)
    assert len(now) > threads, "torch's pool has no threads of its own"
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is no confinement")
def test_threads_of_the_pool_move_with_the_points_and_bystanders_stay() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", MOVED], capture_output=True, text=True, check=False, timeout=100
    )
    assert completed.returncode == 0, completed.stderr
