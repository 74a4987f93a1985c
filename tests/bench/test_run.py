"""`dejavubench run` end to end: real mpirun jobs of tiny models, and what they print and record."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from dejavubench.bench.probes.ceilings import PAIR_RUN_COUNT
from dejavubench.machine.cpu import WITHOUT_VARIABLE
from dejavubench.records import (
    Ceiling,
    End,
    Iteration,
    Microbatch,
    RankInfo,
    Run,
    SinkActivity,
    Skipped,
    StreamAlone,
    read_run,
)
from dejavubench.records.destination_info import map_raw_loops
from helpers.faults import FAULTY
from helpers.jobs import BF16, QUICK, TINY, Job, args, process_folder, run
from helpers.paths import SCRIPTS
from helpers.text_logs import check_lines
from helpers.verifications import count_verified

pytestmark = pytest.mark.mpi


# ---- DéjàVu's text lines ----


def run_script(name: str, log: Path) -> str:
    completed = subprocess.run(
        [sys.executable, SCRIPTS / name, log], capture_output=True, text=True, check=True
    )
    return completed.stdout


class SingleArmJob(NamedTuple):
    """A job that streams one way: what it prints, and the name of its arm."""

    job: Job
    arm_name: str


SINGLE_WARMUP, SINGLE_ROUNDS = 2, 3


@pytest.fixture(scope="module", params=[(2, "none"), (1, "disk"), (2, "mpi")])
def single_arm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SingleArmJob:
    """Return a job of one arm. No test may change its files."""
    ranks, mode = request.param
    sizes = args("--layer_num 2 --head_num 4 --size_per_head 16 --vocab_size 101 --ubatch_size 2")
    lengths = args("--input_len 8 --output_len 6 --inference_data_type fp32")
    split = args("--tensor_para_size 1 --pipeline_para_size 1")
    modes = ["--streaming", mode, "--no-ceilings", "--output", "results.csv"]
    flags = (*sizes, *lengths, "--times", SINGLE_ROUNDS, *split, *modes)
    # `mpi` starts cold, as a user's job does.
    job = run(tmp_path_factory.mktemp(mode), ranks, "run", *flags, cold=mode == "mpi")
    return SingleArmJob(job, mode if mode == "none" else f"{mode}@3")


def read_totals(job: Job) -> list[float]:
    """Return the TOTALs in ms that a job has printed, one for each iteration."""
    return check_lines(job.stdout, SINGLE_WARMUP + SINGLE_ROUNDS, output_len=6)


def test_a_single_arm_prints_dejavus_lines_and_logs_them(single_arm: SingleArmJob) -> None:
    job, arm_name = single_arm
    assert len(read_totals(job)) == SINGLE_WARMUP + SINGLE_ROUNDS
    assert (job.folder / f"{arm_name}.log").read_text() == job.stdout


def test_the_printed_totals_are_those_of_the_records(single_arm: SingleArmJob) -> None:
    job, _ = single_arm
    recorded = [iteration.total_ms for _, iteration in job.run.records_of(Iteration)]
    assert [round(total_ms, 6) for total_ms in recorded] == read_totals(job)


def test_a_single_arm_is_verified_and_leaves_no_stream_file(single_arm: SingleArmJob) -> None:
    job, arm_name = single_arm
    assert count_verified(job) == {("p000", arm_name): SINGLE_WARMUP + SINGLE_ROUNDS}
    assert not list(job.cwd.rglob("*.kv"))


def test_the_script_of_total_times_prints_the_mean_without_warmup(
    single_arm: SingleArmJob,
) -> None:
    job, _ = single_arm
    printed = run_script("process_total_times.py", job.cwd / "stdout")
    average = re.search(
        r"^AVERAGE TIME FOR THE WHOLE BATCH \(PROMPT PROCESSING AND TOKEN GENERATION\): (\S+) ms$",
        printed,
        re.M,
    )
    assert average
    totals = read_totals(job)[SINGLE_WARMUP:]
    assert float(average[1]) == pytest.approx(sum(totals) / SINGLE_ROUNDS)


def test_the_script_of_prompt_and_token_times_reads_the_lines(single_arm: SingleArmJob) -> None:
    printed = run_script("process_prompt_token_times.py", single_arm.job.cwd / "stdout")
    assert re.fullmatch(r"AVERAGE PROMPT: \d+\.\d+ ms, AVERAGE TOKEN: \d+\.\d+ ms\n", printed)


def test_the_csv_of_a_single_arm_has_its_row(single_arm: SingleArmJob) -> None:
    job, arm_name = single_arm
    rows = list(csv.DictReader((job.cwd / "results.csv").open()))
    assert [(row["arm"], row["samples"]) for row in rows] == [(arm_name, str(SINGLE_ROUNDS))]
    assert "results: results.csv" in job.stderr


def test_a_single_arm_says_on_stderr_that_it_is_verified_and_has_no_baseline(
    single_arm: SingleArmJob,
) -> None:
    job, arm_name = single_arm
    assert ("verified" in job.stderr) == (arm_name != "none")
    assert "no baseline" in job.stderr or arm_name == "none"


# ---- levels and files ----


def test_the_originals_variable_sets_the_level_and_keep_leaves_the_files(tmp_path: Path) -> None:
    one_round = args("--warmup 0 --rounds 1 --stream-dir streams --keep")
    modes = args("--streaming host,disk --durability fdatasync,page-cache,direct")
    job = run(
        tmp_path, 1, "run", *QUICK, *one_round, *modes, environment={"DEJAVULIB_BASELINE": "0"}
    )
    assert [arm.level for arm in job.run.header.arms] == [None, None, "0", "0", "0", "0"]
    arms = ["none", "none#2", "host@0", "disk@0", "disk@0/page-cache", "disk@0/direct"]
    assert count_verified(job) == {("p000", arm): 1 for arm in arms}
    assert [arm.durability for arm in job.run.header.arms[3:]] == [
        "fdatasync",
        "page-cache",
        "direct",
    ]
    assert job.run.header.experiment["level"] == ["0"]
    assert "host@0" in process_folder(job.folder)
    copies = {
        microbatch.arm: microbatch.prompt.copies for _, microbatch in job.run.records_of(Microbatch)
    }
    # Layers × K and V × requests × heads: in hnd each is an extent of its own.
    assert copies["host@0"] == 2 * 2 * 2 * 4
    files = list((tmp_path / "streams").iterdir())
    assert len(files) == 3
    assert all(file.read_bytes()[:8] == b"DEJAVUKV" for file in files)


def test_the_level_flag_wins_over_the_variable_and_files_are_cleaned_up(tmp_path: Path) -> None:
    one_round = args("--warmup 0 --rounds 1 --stream-dir streams --level 1 --compare")
    job = run(
        tmp_path,
        1,
        "run",
        *QUICK,
        *one_round,
        "--streaming",
        "disk",
        environment={"DEJAVULIB_BASELINE": "0"},
    )
    assert [arm.name for arm in job.run.header.arms] == ["none", "none#2", "disk@1"]
    assert count_verified(job)["p000", "disk@1"] == 1
    assert list((tmp_path / "streams").iterdir()) == []


# ---- data types, and CPUs that have more or less of them ----


def test_bf16_is_streamed_whatever_the_cpu_multiplies(tmp_path: Path) -> None:
    sweep = args("--kv-layout ft,hnd --streaming none,host,disk,mpi --level 0,3 --warmup 0")
    split = args("--tensor-para-size 2 --rounds 1 --durability page-cache")
    job = run(tmp_path, 4, "run", *QUICK, *BF16, *split, *sweep)
    arms = [
        "none",
        "none#2",
        *(f"{mode}@{level}" for mode in ("host", "disk", "mpi") for level in "03"),
    ]
    assert count_verified(job) == {(point, arm): 1 for point in ("p000", "p001") for arm in arms}


@pytest.mark.drill
@pytest.mark.parametrize("left_out", ["bf16", "avx512"])
def test_a_cpu_without_a_feature_chooses_and_computes_without_it(
    tmp_path: Path, left_out: str
) -> None:
    one_round = args("--streaming none,host --rounds 1 --warmup 0 --inference-data-type bf16,auto")
    job = run(
        tmp_path, 1, "run", *QUICK, *one_round, environment={WITHOUT_VARIABLE: left_out}, cold=True
    )
    assert [point.data_type for point in job.run.header.points] == ["bf16", "fp32"]
    each_once = {
        (point, arm): 1 for point in ("p000", "p001") for arm in ("none", "none#2", "host@3")
    }
    assert count_verified(job) == each_once
    (info,) = (info for _, info in job.run.records_of(RankInfo))
    assert info.environment["native_bf16"] is False
    assert info.environment["variables"][WITHOUT_VARIABLE] == left_out


# ---- what is recorded ----


ROUNDS, WARMUP, OUTPUT_LEN = 4, 1, 6
COMPARED = ("none", "none#2", "host@3", "mpi@3")


@pytest.fixture(scope="module")
def compared_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return a job of four arms on a source and a sink. No test may change its files."""
    sizes = (*TINY, *args("--ubatch-size 2 --input-len 8 --streaming none,host,mpi"))
    lengths = ("--output-len", OUTPUT_LEN, "--rounds", ROUNDS, "--warmup", WARMUP)
    folder = tmp_path_factory.mktemp("compared")
    return run(folder, 2, "run", *sizes, *lengths, "--no-ceilings")


@pytest.fixture(scope="module")
def compared(compared_job: Job) -> Run:
    """Return the records of that job."""
    return compared_job.run


def test_a_compared_job_writes_a_text_log_for_each_arm(compared_job: Job) -> None:
    assert compared_job.stdout == ""  # the lines of several arms would be mixed
    for name in COMPARED:
        check_lines((compared_job.folder / f"{name}.log").read_text(), ROUNDS + WARMUP, OUTPUT_LEN)
    assert count_verified(compared_job) == {("p000", name): ROUNDS + WARMUP for name in COMPARED}


@pytest.mark.parametrize("record_class", [Iteration, Microbatch, SinkActivity])
def test_each_arm_has_its_iterations_and_the_first_are_warmup(
    compared: Run, record_class: type[Iteration | Microbatch | SinkActivity]
) -> None:
    items = [record for _, record in compared.records_of(record_class)]
    assert Counter(record.arm for record in items) == dict.fromkeys(COMPARED, WARMUP + ROUNDS)
    for record in items:
        assert record.round == (record.iteration - WARMUP if record.iteration >= WARMUP else None)


def test_a_microbatch_has_its_times_and_the_bytes_that_it_streamed(compared: Run) -> None:
    (point,) = compared.header.points
    for _, microbatch in compared.records_of(Microbatch):
        streams = not microbatch.arm.startswith("none")
        assert microbatch.total_ms == pytest.approx(
            microbatch.prompt_ms + microbatch.all_token_ms + microbatch.drain_ms
        )
        assert len(microbatch.token_ms) == OUTPUT_LEN - 1
        assert (
            microbatch.prompt.nbytes + microbatch.tokens.nbytes == streams * point.streamed_nbytes
        )
        assert (microbatch.prompt.copies > 0) == (microbatch.tokens.copies > 0) == streams


def test_the_sink_counts_the_bytes_that_came(compared: Run) -> None:
    (point,) = compared.header.points
    for rank, activity in compared.records_of(SinkActivity):
        assert rank == 1
        assert activity.nbytes == (point.streamed_nbytes if activity.arm == "mpi@3" else 0)
    assert {alone.arm for _, alone in compared.records_of(StreamAlone)} == {"host@3", "mpi@3"}


def test_rounds_have_every_arm_once_in_a_balanced_order(compared: Run) -> None:
    by_round: dict[int, list[str]] = {}
    for _, iteration in compared.records_of(Iteration):
        if iteration.round is not None:
            in_round = by_round.setdefault(iteration.round, [])
            assert iteration.order == len(in_round)  # records are in the order of what happened
            in_round.append(iteration.arm)
    assert sorted(by_round) == list(range(ROUNDS))
    assert all(sorted(order) == sorted(COMPARED) for order in by_round.values())
    follows = Counter(pair for order in by_round.values() for pair in pairwise(order))
    assert follows == {
        (arm, next_arm): 1 for arm in COMPARED for next_arm in COMPARED if arm != next_arm
    }
    arms_by_place = [set(place) for place in zip(*by_round.values(), strict=True)]
    assert all(arms == set(COMPARED) for arms in arms_by_place)


def test_files_that_are_changed_after_a_run_are_named(compared: Run, tmp_path: Path) -> None:
    assert {info.run_id for _, info in compared.records_of(RankInfo)} == {compared.header.run_id}
    assert [end.digest is not None for _, end in compared.records_of(End)] == [True, True]
    assert compared.notes == []
    copy = shutil.copytree(compared.path, tmp_path / compared.path.name)
    file = copy / "rank-0001.jsonl"
    file.write_text(file.read_text().replace('"cpu_s":0', '"cpu_s":1', 1))
    notes = read_run(copy).notes
    assert [note.text.split(" was")[0] for note in notes] == ["CHANGED: rank-0001.jsonl"]


def test_ceilings_are_measured_beside_what_they_bound(tmp_path: Path) -> None:
    sizes = (*TINY, *args("--input-len 8 --output-len 3 --warmup 0 --rounds 2"))
    job = run(tmp_path, 2, "run", *sizes, "--streaming", "disk,mpi")
    ceilings = {ceiling.name: ceiling for _, ceiling in job.run.records_of(Ceiling)}
    pairs = {
        "memory-read",
        "memory-copy",
        "matmul",
        "disk-write",
        "disk-destination",
        "mpi-windowed",
        "mpi-destination",
    }
    assert pairs <= set(ceilings)
    raw_loops = map_raw_loops(job.run.header.destinations.values())
    table = process_folder(job.folder, long=True)
    for ceiling in ceilings.values():
        assert ceiling.value > 0
        paired = ceiling.name in {name for pair in raw_loops.items() for name in pair}
        assert len(ceiling.samples) == (2 * PAIR_RUN_COUNT if paired else 2)  # two rounds
        assert ceiling.name in table
    assert {alone.arm for _, alone in job.run.records_of(StreamAlone)} == {"disk@3", "mpi@3"}
    assert not list(tmp_path.rglob("*.kv"))


def test_a_waiting_sink_does_not_burn_a_core(tmp_path: Path) -> None:
    flags = args("--streaming mpi --rounds 1 --warmup 0")
    job = run(tmp_path, 2, "slow-model", "run", *QUICK, *flags, driver=FAULTY)
    duration_s = {
        iteration.iteration: iteration.total_ms / 1e3
        for _, iteration in job.run.records_of(Iteration)
    }
    cpu_s = {activity.iteration: activity.cpu_s for _, activity in job.run.records_of(SinkActivity)}
    assert set(duration_s) == set(cpu_s) == {0}
    for iteration, seconds in duration_s.items():
        assert seconds > 0.5  # 6 steps of 0.1 s, in which the sink has next to nothing to do
        assert cpu_s[iteration] < 0.3 * seconds


# ---- how long it goes on ----


def rounds_of(job: Job) -> int:
    return len({iteration.round for _, iteration in job.run.records_of(Iteration)} - {None})


def test_precision_that_cannot_be_had_ends_with_max_time(tmp_path: Path) -> None:
    until = args("--precision 0.001% --max-time 2s --rounds 3 --warmup 0")
    job = run(tmp_path, 1, "run", *QUICK, "--streaming", "none,host", *until)
    assert rounds_of(job) > 3
    assert count_verified(job)["p000", "host@3"] == rounds_of(job)


def test_precision_that_is_reached_ends_at_once(tmp_path: Path) -> None:
    until = args("--precision 95% --max-time 1h --rounds 3 --warmup 0")
    job = run(tmp_path, 1, "run", *QUICK, "--streaming", "none,host", *until)
    assert 3 <= rounds_of(job) < 100


# ---- folders and sweeps ----


def test_two_runs_in_the_same_second_keep_to_themselves(tmp_path: Path) -> None:
    flags = args("--streaming none --rounds 1 --warmup 0 --name twin")
    frozen = ("frozen-clock", "run", *QUICK, *flags)
    run(tmp_path, 1, *frozen, driver=FAULTY)
    first_folder = tmp_path / "logs" / "twin-20240506T070809Z"
    first_contents = {file.name: file.read_bytes() for file in first_folder.iterdir()}
    run(tmp_path, 1, *frozen, driver=FAULTY)
    second_folder = first_folder.with_name(f"{first_folder.name}-2")
    assert sorted(first_folder.parent.iterdir()) == [first_folder, second_folder]
    assert {file.name: file.read_bytes() for file in first_folder.iterdir()} == first_contents
    assert sorted(file.name for file in second_folder.iterdir()) == sorted(first_contents)
    assert read_run(first_folder).header.run_id != read_run(second_folder).header.run_id


def test_a_sweep_skips_points_and_arms_that_cannot_run(tmp_path: Path) -> None:
    one_round = args("--warmup 0 --rounds 1 --no-ceilings --streaming none,nccl,host")
    job = run(
        tmp_path,
        1,
        "run",
        *TINY,
        *args("--model custom,gpt2 --input-len 1020 --output-len 6"),
        *one_round,
    )
    assert count_verified(job) == {("p000", arm): 1 for arm in ("none", "none#2", "host@3")}
    skipped = {
        (skipped.point, skipped.arm): skipped.reason for _, skipped in job.run.records_of(Skipped)
    }
    context = "--input-len 1020 and --output-len 6 take 1025 positions, but gpt2 has 1024"
    assert skipped["p001", None] == context
    assert skipped["p000", "nccl@3"] == skipped["p001", "nccl@3"] == "no CUDA device"
    rows = {
        (row["point"], row["arm"]): row
        for row in json.loads(process_folder(job.folder, "json"))[0]["rows"]
    }
    assert rows["p000", "nccl@3"]["status"] == "SKIPPED"
    assert rows["p001", "none"]["status"] == "SKIPPED"
    assert rows["p000", "host@3"]["status"] == "ok"
    assert "SKIPPED" in job.stderr
    assert context in job.stderr
