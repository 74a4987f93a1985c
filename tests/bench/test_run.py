"""`dejavubench run` end to end: real mpirun jobs of tiny models, and what they print and record."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from dejavubench.bench.probes.ceilings import PAIRS
from dejavubench.machine.cpu import WITHOUT
from dejavubench.records import (
    Alone,
    Ceiling,
    End,
    Iteration,
    Microbatch,
    RankInfo,
    SinkActivity,
    Skipped,
    read_run,
)
from dejavubench.records.destination_info import held_against
from helpers.faults import FAULTY
from helpers.jobs import BF16, QUICK, TINY, Job, args, processed, run
from helpers.paths import DRIVERS, SCRIPTS
from helpers.verifications import verified

pytestmark = pytest.mark.mpi

DUMPING = (str(DRIVERS / "dump_tokens.py"),)
MS = r"(\d+\.\d{6})"


# ---- DéjàVu's text lines ----


def check_lines(text: str, iterations: int, output_len: int, in_flight: int = 1) -> list[float]:
    """Assert that a log of rank 0 is exactly DéjàVu's; return its TOTALs in ms."""
    lines = iter(text.splitlines(keepends=True))

    def value(what: str) -> float:
        line = next(lines)
        match = re.fullmatch(rf"\[BENCHMARK\] RANK 0 {what} took {MS} ms\n", line)
        assert match, f"{line!r} is not {what!r}"
        return float(match[1])

    totals = []
    for number in range(iterations):
        spent = 0.0
        for microbatch in range(number * in_flight, (number + 1) * in_flight):
            prompt = value(f"Microbatch {microbatch}, PROMPT processing")
            tokens = [
                value(f"ITERATION {microbatch}, TOKEN generation") for _ in range(output_len - 1)
            ]
            all_token = value(f"ITERATION {microbatch}, ALL-TOKEN generation")
            assert min(prompt, *tokens) > 0
            assert sum(tokens) <= all_token + 1e-5  # they are rounded to 1e-6
            spent = max(spent, prompt + all_token)
        totals.append(value(f"ITERATION {number}, TOTAL generation"))
        assert spent <= totals[-1] + 1e-5  # the drain is in it
    assert next(lines, None) is None
    return totals


def script(name: str, log: Path) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, log], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(("ranks", "mode"), [(2, "none"), (1, "disk"), (2, "mpi")])
def test_a_single_arm_prints_dejavus_lines(tmp_path: Path, ranks: int, mode: str) -> None:
    sizes = args("--layer_num 2 --head_num 4 --size_per_head 16 --vocab_size 101 --ubatch_size 2")
    lengths = args("--input_len 8 --output_len 6 --times 3 --inference_data_type fp32")
    split = args("--tensor_para_size 1 --pipeline_para_size 1")
    given = ["--streaming", mode, "--no-ceilings", "--output", "results.csv"]
    # `mpi` starts cold, as a user's job does.
    job = run(tmp_path, ranks, "run", *sizes, *lengths, *split, *given, cold=mode == "mpi")
    totals = check_lines(job.stdout, iterations=2 + 3, output_len=6)

    arm = mode if mode == "none" else f"{mode}@3"
    assert (job.folder / f"{arm}.log").read_text() == job.stdout
    assert [round(i.total_ms, 6) for _, i in job.run.records_of(Iteration)] == totals
    assert verified(job) == {("p000", arm): 5}
    assert not list(tmp_path.rglob("*.kv"))

    printed = script("process_total_times.py", tmp_path / "stdout")
    average = re.search(
        r"^AVERAGE TIME FOR THE WHOLE BATCH \(PROMPT PROCESSING AND TOKEN GENERATION\): (\S+) ms$",
        printed,
        re.M,
    )
    assert average
    assert float(average[1]) == pytest.approx(sum(totals[2:]) / 3)
    printed = script("process_prompt_token_times.py", tmp_path / "stdout")
    assert re.fullmatch(r"AVERAGE PROMPT: \d+\.\d+ ms, AVERAGE TOKEN: \d+\.\d+ ms\n", printed)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["arm"], row["samples"]) for row in rows] == [(arm, "3")]
    assert "results: results.csv" in job.stderr
    assert ("verified" in job.stderr) == (mode != "none")
    assert "no baseline" in job.stderr or mode == "none"


# ---- levels and files ----


def test_the_originals_variable_sets_the_level_and_keep_leaves_the_files(tmp_path: Path) -> None:
    once = args("--warmup 0 --rounds 1 --stream-dir streams --keep")
    modes = args("--streaming host,disk --durability fdatasync,page-cache,direct")
    job = run(tmp_path, 1, "run", *QUICK, *once, *modes, environment={"DEJAVULIB_BASELINE": "0"})
    assert [arm.level for arm in job.run.header.arms] == [None, None, "0", "0", "0", "0"]
    arms = ["none", "none#2", "host@0", "disk@0", "disk@0/page-cache", "disk@0/direct"]
    assert verified(job) == {("p000", arm): 1 for arm in arms}
    assert [arm.durability for arm in job.run.header.arms[3:]] == [
        "fdatasync",
        "page-cache",
        "direct",
    ]
    assert job.run.header.experiment["level"] == ["0"]
    assert "host@0" in processed(job.folder)
    copies = {item.arm: item.prompt.copies for _, item in job.run.records_of(Microbatch)}
    # Layers × K and V × requests × heads: in hnd each is an extent of its own.
    assert copies["host@0"] == 2 * 2 * 2 * 4
    files = list((tmp_path / "streams").iterdir())
    assert len(files) == 3
    assert all(file.read_bytes()[:8] == b"DEJAVUKV" for file in files)


def test_the_level_flag_wins_over_the_variable_and_files_are_cleaned_up(tmp_path: Path) -> None:
    once = args("--warmup 0 --rounds 1 --stream-dir streams --level 1 --compare")
    job = run(
        tmp_path,
        1,
        "run",
        *QUICK,
        *once,
        "--streaming",
        "disk",
        environment={"DEJAVULIB_BASELINE": "0"},
    )
    assert [arm.name for arm in job.run.header.arms] == ["none", "none#2", "disk@1"]
    assert verified(job)["p000", "disk@1"] == 1
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
    assert verified(job) == {(point, arm): 1 for point in ("p000", "p001") for arm in arms}


@pytest.mark.drill
@pytest.mark.parametrize("left_out", ["bf16", "avx512"])
def test_a_cpu_without_a_feature_chooses_and_computes_without_it(
    tmp_path: Path, left_out: str
) -> None:
    once = args("--streaming none,host --rounds 1 --warmup 0 --inference-data-type bf16,auto")
    job = run(tmp_path, 1, "run", *QUICK, *once, environment={WITHOUT: left_out}, cold=True)
    assert [point.data_type for point in job.run.header.points] == ["bf16", "fp32"]
    assert verified(job) == {
        (point, arm): 1 for point in ("p000", "p001") for arm in ("none", "none#2", "host@3")
    }
    (info,) = (info for _, info in job.run.records_of(RankInfo))
    assert info.environment["native_bf16"] is False
    assert info.environment["variables"][WITHOUT] == left_out


# ---- several ranks ----

SPLIT = args("--layer-num 3 --head-num 4 --size-per-head 16 --vocab-size 997 --input-len 7")
ONCE = (
    *SPLIT,
    *args("--output-len 8 --inference-data-type fp32 --no-ceilings --warmup 0 --rounds 1"),
)
"""Three layers: two pipeline stages are of two layers and of one."""

LEVELS = ("0", "0-batched", "1", "2", "3")
Tokens = list[list[int]]


def generated(job: Job) -> tuple[Tokens, int]:
    """Return the tokens [requests, T], equal in every iteration on every rank that sees them."""
    lines = [line for file in job.cwd.glob("tokens-*") for line in file.read_text().splitlines()]
    assert len(set(lines)) == 1
    return [request for microbatch in json.loads(lines[0]) for request in microbatch], len(lines)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """Return the tokens of one rank for the four requests, without streaming or split."""
    flags = args("--ubatch-size 4 --streaming none")
    job = run(tmp_path_factory.mktemp("alone"), 1, "run", *ONCE, *flags, driver=DUMPING)
    tokens, _ = generated(job)
    assert len(set(map(tuple, tokens))) == 4
    assert len({token for request in tokens for token in request}) > 8  # no two alike by accident
    return tokens


@pytest.mark.parametrize(
    ("tensor", "stages", "streaming", "levels", "layouts"),
    [
        (2, 1, "none,host,disk,mpi", LEVELS, ("ft",)),
        (1, 2, "none,host,disk,mpi", ("3", "0"), ("ft", "nhd")),
        (2, 2, "none,host,disk,mpi", ("2", "3"), ("hnd",)),
    ],
    ids=["tensor", "pipeline", "both"],
)
def test_split_and_streamed_jobs_generate_the_same_tokens(
    tmp_path: Path,
    alone: Tokens,
    tensor: int,
    stages: int,
    streaming: str,
    levels: tuple[str, ...],
    layouts: tuple[str, ...],
) -> None:
    workers = tensor * stages
    split = (
        "--tensor-para-size",
        tensor,
        "--pipeline-para-size",
        stages,
        "--ubatch-size",
        4 // stages,
    )
    sweep = (
        "--streaming",
        streaming,
        "--level",
        ",".join(levels),
        "--kv-layout",
        ",".join(layouts),
    )
    job = run(
        tmp_path,
        2 * workers,
        "run",
        *ONCE,
        *split,
        *sweep,
        "--durability",
        "page-cache",
        driver=DUMPING,
    )

    modes = [mode for mode in streaming.split(",") if mode != "none"]
    arms = [f"{mode}@{level}" for mode in modes for level in levels]
    if len(arms) > 1:
        arms += ["none", "none#2"]
    assert verified(job) == {
        (f"p{point:03d}", arm): 1 for point in range(len(layouts)) for arm in arms
    }
    tokens, lines = generated(job)
    assert tokens == alone
    seen_by = workers if stages == 1 else 2 * tensor  # first and last stage
    assert lines == len(layouts) * (len(arms) + 1) * seen_by  # undisturbed, and in each arm

    for log in job.folder.glob("*.log"):
        check_lines(log.read_text(), iterations=1, output_len=8, in_flight=stages)
    assert len(list(job.folder.glob("*.log"))) == len(layouts) * len(arms)

    infos = dict(job.run.records_of(RankInfo))
    assert [infos[rank].role for rank in range(2 * workers)] == ["source"] * workers + [
        "sink"
    ] * workers
    assert {infos[rank].stage for rank in range(workers)} == set(range(stages))
    for rank, item in job.run.records_of(Microbatch):
        layers = 3 if stages == 1 else (2, 1)[infos[rank].stage]
        # K and V × layers × requests × heads × positions × head size × bytes
        mine = 2 * layers * (4 // stages) * (4 // tensor) * (7 + 8 - 1) * 16 * 4
        assert item.prompt.nbytes + item.tokens.nbytes == (
            0 if item.arm.startswith("none") else mine
        )


# ---- what is recorded ----


def check_warmup(
    items: Sequence[Iteration | Microbatch | SinkActivity],
    arms: list[str],
    warmup: int,
    rounds: int,
) -> None:
    """Each arm has its iterations, and the first of them are marked as warm-up."""
    assert Counter(item.arm for item in items) == dict.fromkeys(arms, warmup + rounds)
    for item in items:
        assert item.round == (item.iteration - warmup if item.iteration >= warmup else None)


def test_records_of_a_compared_run(tmp_path: Path) -> None:
    rounds, warmup, output_len = 4, 1, 6
    sizes = (*TINY, *args("--ubatch-size 2 --input-len 8"), "--output-len", output_len)
    job = run(
        tmp_path,
        2,
        "run",
        *sizes,
        "--streaming",
        "none,host,mpi",
        "--no-ceilings",
        "--rounds",
        rounds,
        "--warmup",
        warmup,
    )
    arms = ["none", "none#2", "host@3", "mpi@3"]
    assert job.stdout == ""  # the lines of several arms would be mixed
    for arm in arms:
        check_lines((job.folder / f"{arm}.log").read_text(), rounds + warmup, output_len)
    assert verified(job) == {("p000", arm): rounds + warmup for arm in arms}

    (point,) = job.run.header.points
    for items in (
        job.run.records_of(Iteration),
        job.run.records_of(Microbatch),
        job.run.records_of(SinkActivity),
    ):
        check_warmup([item for _, item in items], arms, warmup, rounds)
    for _, item in job.run.records_of(Microbatch):
        assert item.total_ms == pytest.approx(item.prompt_ms + item.all_token_ms + item.drain_ms)
        assert len(item.token_ms) == output_len - 1
        assert item.prompt.nbytes + item.tokens.nbytes == (
            0 if "none" in item.arm else point.streamed_nbytes
        )
        assert (item.prompt.copies > 0) == (item.tokens.copies > 0) == ("none" not in item.arm)
    for rank, activity in job.run.records_of(SinkActivity):
        assert rank == 1
        assert activity.nbytes == (point.streamed_nbytes if activity.arm == "mpi@3" else 0)

    by_round: dict[int, list[str]] = {}
    for _, iteration in job.run.records_of(Iteration):
        if iteration.round is not None:
            in_round = by_round.setdefault(iteration.round, [])
            assert iteration.order == len(in_round)  # records are in the order of what happened
            in_round.append(iteration.arm)
    assert sorted(by_round) == list(range(rounds))
    assert all(sorted(order) == sorted(arms) for order in by_round.values())
    follows = Counter(pair for order in by_round.values() for pair in pairwise(order))
    assert follows == {(one, other): 1 for one in arms for other in arms if one != other}
    assert all(len(set(place)) == len(arms) for place in zip(*by_round.values(), strict=True))

    assert {item.arm for _, item in job.run.records_of(Alone)} == {"host@3", "mpi@3"}

    assert {info.run_id for _, info in job.run.records_of(RankInfo)} == {job.run.header.run_id}
    assert [end.digest is not None for _, end in job.run.records_of(End)] == [True, True]
    assert job.run.notes == []  # and so nothing was changed
    file = job.folder / "rank-0001.jsonl"
    file.write_text(file.read_text().replace('"cpu_s":0', '"cpu_s":1', 1))
    assert [note.text.split(" was")[0] for note in job.run.notes] == ["CHANGED: rank-0001.jsonl"]


def test_ceilings_are_measured_beside_what_they_bound(tmp_path: Path) -> None:
    sizes = (*TINY, *args("--input-len 8 --output-len 3 --warmup 0 --rounds 2"))
    job = run(tmp_path, 2, "run", *sizes, "--streaming", "disk,mpi")
    found = {item.name: item for _, item in job.run.records_of(Ceiling)}
    pairs = {
        "memory-read",
        "memory-copy",
        "matmul",
        "disk-write",
        "disk-destination",
        "mpi-windowed",
        "mpi-destination",
    }
    assert pairs <= set(found)
    held = held_against(job.run.header.destinations.values())
    table = processed(job.folder, long=True)
    for item in found.values():
        assert item.value > 0
        paired = item.name in {name for pair in held.items() for name in pair}
        assert len(item.samples) == (2 * PAIRS if paired else 2)  # two rounds
        assert item.name in table
    assert {item.arm for _, item in job.run.records_of(Alone)} == {"disk@3", "mpi@3"}
    assert not list(tmp_path.rglob("*.kv"))


def test_a_waiting_sink_does_not_burn_a_core(tmp_path: Path) -> None:
    flags = args("--streaming mpi --rounds 1 --warmup 0")
    job = run(tmp_path, 2, "slow-model", "run", *QUICK, *flags, driver=FAULTY)
    took = {item.iteration: item.total_ms / 1e3 for _, item in job.run.records_of(Iteration)}
    used = {item.iteration: item.cpu_s for _, item in job.run.records_of(SinkActivity)}
    assert set(took) == set(used) == {0}
    for iteration, seconds in took.items():
        assert seconds > 0.5  # 6 steps of 0.1 s, in which the sink has next to nothing to do
        assert used[iteration] < 0.3 * seconds


# ---- how long it goes on ----


def rounds_of(job: Job) -> int:
    return len({item.round for _, item in job.run.records_of(Iteration)} - {None})


def test_precision_that_cannot_be_had_ends_with_max_time(tmp_path: Path) -> None:
    until = args("--precision 0.001% --max-time 4s --rounds 3 --warmup 0")
    job = run(tmp_path, 1, "run", *QUICK, "--streaming", "none,host", *until)
    assert rounds_of(job) > 3
    assert verified(job)["p000", "host@3"] == rounds_of(job)


def test_precision_that_is_reached_ends_at_once(tmp_path: Path) -> None:
    until = args("--precision 95% --max-time 1h --rounds 3 --warmup 0")
    job = run(tmp_path, 1, "run", *QUICK, "--streaming", "none,host", *until)
    assert 3 <= rounds_of(job) < 100


# ---- folders and sweeps ----


def test_two_runs_in_the_same_second_keep_to_themselves(tmp_path: Path) -> None:
    flags = args("--streaming none --rounds 1 --warmup 0 --name twin")
    frozen = ("frozen-clock", "run", *QUICK, *flags)
    run(tmp_path, 1, *frozen, driver=FAULTY)
    first = tmp_path / "logs" / "twin-20240506T070809Z"
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    run(tmp_path, 1, *frozen, driver=FAULTY)
    second = first.with_name(f"{first.name}-2")
    assert sorted(first.parent.iterdir()) == [first, second]
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert sorted(file.name for file in second.iterdir()) == sorted(before)
    assert read_run(first).header.run_id != read_run(second).header.run_id


def test_a_sweep_skips_points_and_arms_that_cannot_run(tmp_path: Path) -> None:
    once = args("--warmup 0 --rounds 1 --no-ceilings --streaming none,nccl,host")
    job = run(
        tmp_path,
        1,
        "run",
        *TINY,
        *args("--model custom,gpt2 --input-len 1020 --output-len 6"),
        *once,
    )
    assert verified(job) == {("p000", arm): 1 for arm in ("none", "none#2", "host@3")}
    skipped = {(item.point, item.arm): item.reason for _, item in job.run.records_of(Skipped)}
    context = "--input-len 1020 and --output-len 6 take 1025 positions, but gpt2 has 1024"
    assert skipped["p001", None] == context
    assert skipped["p000", "nccl@3"] == skipped["p001", "nccl@3"] == "no CUDA device"
    rows = {
        (row["point"], row["arm"]): row
        for row in json.loads(processed(job.folder, "json"))[0]["rows"]
    }
    assert rows["p000", "nccl@3"]["status"] == "SKIPPED"
    assert rows["p001", "none"]["status"] == "SKIPPED"
    assert rows["p000", "host@3"]["status"] == "ok"
    assert "SKIPPED" in job.stderr
    assert context in job.stderr
