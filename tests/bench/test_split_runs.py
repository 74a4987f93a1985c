"""Models that are split over ranks, streamed by every mode: the same tokens, all bytes, all lines.

Real mpirun jobs on the CPU.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from dejavubench.records import Microbatch, RankInfo, Run, SourceAlone
from helpers.cli_calls import call, stdout_of
from helpers.damage import record_edit
from helpers.jobs import Job, args, process_folder, run
from helpers.paths import DRIVERS
from helpers.text_logs import check_lines
from helpers.verifications import count_verified

pytestmark = pytest.mark.mpi

DUMPING = (str(DRIVERS / "dump_tokens.py"),)
LAYERS, HEADS, HEAD_SIZE, REQUESTS, INPUT_LEN, OUTPUT_LEN = 3, 4, 16, 4, 7, 8
FP32_NBYTES = 4
SIZES = (
    *("--layer-num", LAYERS, "--head-num", HEADS, "--size-per-head", HEAD_SIZE),
    *("--vocab-size", 997, "--input-len", INPUT_LEN, "--output-len", OUTPUT_LEN),
    *args("--inference-data-type fp32 --no-ceilings --warmup 0 --rounds 1"),
)
"""Three layers: two pipeline stages have two layers and one."""

MODES = ("host", "disk", "mpi")
Tokens = list[list[int]]


@dataclass(frozen=True)
class Split:
    """The split of a model, and the levels and layouts at which each mode streams it."""

    tensor: int
    stages: int
    levels: tuple[str, ...]
    layouts: tuple[str, ...]

    @property
    def workers(self) -> int:
        return self.tensor * self.stages

    @property
    def requests(self) -> int:
        """Requests of one microbatch; a microbatch per stage is in flight."""
        return REQUESTS // self.stages

    @property
    def arms(self) -> list[str]:
        return ["none", "none#2", *(f"{mode}@{level}" for mode in MODES for level in self.levels)]

    @property
    def flags(self) -> tuple[object, ...]:
        return (
            *("--tensor-para-size", self.tensor, "--pipeline-para-size", self.stages),
            *("--ubatch-size", self.requests, "--kv-layout", ",".join(self.layouts)),
            *("--streaming", ",".join(("none", *MODES)), "--level", ",".join(self.levels)),
            *("--durability", "page-cache"),
        )


SPLITS = [
    pytest.param(
        Split(tensor=2, stages=1, levels=("0", "0-batched", "1", "2", "3"), layouts=("ft",)),
        id="tensor",
    ),
    pytest.param(
        Split(tensor=1, stages=2, levels=("3", "0"), layouts=("ft", "nhd")), id="pipeline"
    ),
    pytest.param(Split(tensor=2, stages=2, levels=("2", "3"), layouts=("hnd",)), id="both"),
]


@dataclass(frozen=True)
class SplitJob:
    """A job that has ended, and its records."""

    split: Split
    job: Job
    run: Run


@pytest.fixture(scope="module", params=SPLITS)
def split_job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SplitJob:
    split: Split = request.param
    flags = (*SIZES, *split.flags)
    job = run(tmp_path_factory.mktemp("split"), 2 * split.workers, "run", *flags, driver=DUMPING)
    return SplitJob(split, job, job.run)


@pytest.fixture(scope="module")
def tokens_of_one_rank(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """Return the tokens of one rank for the four requests, without streaming or split."""
    flags = ("--ubatch-size", REQUESTS, "--streaming", "none")
    job = run(tmp_path_factory.mktemp("alone"), 1, "run", *SIZES, *flags, driver=DUMPING)
    tokens, _ = read_generated_tokens(job)
    assert len(set(map(tuple, tokens))) == REQUESTS
    assert len({token for request in tokens for token in request}) > 8  # no two alike by accident
    return tokens


def read_generated_tokens(job: Job) -> tuple[Tokens, int]:
    """Return the tokens [requests, T], equal in every iteration on every rank that sees them."""
    lines = [line for file in job.cwd.glob("tokens-*") for line in file.read_text().splitlines()]
    assert len(set(lines)) == 1
    return [request for microbatch in json.loads(lines[0]) for request in microbatch], len(lines)


def test_split_and_streamed_jobs_generate_the_same_tokens(
    split_job: SplitJob, tokens_of_one_rank: Tokens
) -> None:
    split = split_job.split
    tokens, lines = read_generated_tokens(split_job.job)
    assert tokens == tokens_of_one_rank
    ranks = split.workers if split.stages == 1 else 2 * split.tensor  # first and last stage
    assert lines == len(split.layouts) * (len(split.arms) + 1) * ranks  # undisturbed, and each arm


def test_every_arm_of_a_split_model_is_verified(split_job: SplitJob) -> None:
    split = split_job.split
    points = [f"p{number:03d}" for number in range(len(split.layouts))]
    assert count_verified(split_job.job) == {
        (point, arm): 1 for point in points for arm in split.arms
    }


def test_every_arm_of_a_split_model_has_dejavus_lines(split_job: SplitJob) -> None:
    split = split_job.split
    logs = list(split_job.job.folder.glob("*.log"))
    assert len(logs) == len(split.layouts) * len(split.arms)
    for log in logs:
        check_lines(log.read_text(), iterations=1, output_len=OUTPUT_LEN, in_flight=split.stages)


def test_sources_come_before_sinks_and_stream_their_own_layers(split_job: SplitJob) -> None:
    split = split_job.split
    infos = dict(split_job.run.records_of(RankInfo))
    roles = [infos[rank].role for rank in range(2 * split.workers)]
    assert roles == ["source"] * split.workers + ["sink"] * split.workers
    assert {infos[rank].stage for rank in range(split.workers)} == set(range(split.stages))
    for rank, microbatch in split_job.run.records_of(Microbatch):
        layers = LAYERS if split.stages == 1 else (2, 1)[infos[rank].stage]
        heads, positions = HEADS // split.tensor, INPUT_LEN + OUTPUT_LEN - 1
        keys = layers * split.requests * heads * positions * HEAD_SIZE * FP32_NBYTES
        streamed = microbatch.prompt.nbytes + microbatch.tokens.nbytes
        assert streamed == (0 if microbatch.arm.startswith("none") else 2 * keys)  # values as well


# ---- each source by itself ----


def test_each_source_also_streams_to_its_sinks_while_the_others_wait(split_job: SplitJob) -> None:
    split = split_job.split
    nbytes_by_source: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, source_alone in split_job.run.records_of(SourceAlone):
        by_source = nbytes_by_source[source_alone.point, source_alone.arm]
        assert rank not in by_source  # one round, so one pass
        by_source[rank] = source_alone.nbytes
    header = split_job.run.header
    # Only ranks that receive make pairs: host and disk have none.
    assert set(nbytes_by_source) == {
        (point.id, f"mpi@{level}") for point in header.points for level in split.levels
    }
    for point in header.points:
        for level in split.levels:
            by_source = nbytes_by_source[point.id, f"mpi@{level}"]
            assert set(by_source) == set(range(split.workers))
            assert sum(by_source.values()) == point.streamed_nbytes * split.stages


def test_the_rates_of_each_source_are_shown(split_job: SplitJob) -> None:
    split = split_job.split
    folder = split_job.job.folder
    (document,) = json.loads(process_folder(folder, "json"))
    rows = document["sources"]
    assert [(row["point"], row["arm"], row["source"], row["sink_ranks"]) for row in rows] == [
        (point.id, "mpi@3", source, str(split.workers + source))
        for point in split_job.run.header.points
        for source in range(split.workers)
    ]
    times = {
        (record.point, rank): record
        for rank, record in split_job.run.records_of(SourceAlone)
        if record.arm == "mpi@3"
    }
    for row in rows:
        record = times[row["point"], row["source"]]
        assert row["source_bytes"] == record.nbytes
        assert row["isolated_gb_per_s"] == pytest.approx(record.nbytes / record.isolated_ms / 1e6)
        assert row["together_gb_per_s"] == pytest.approx(record.nbytes / record.together_ms / 1e6)
        assert row["together_pct"] == pytest.approx(100 * record.isolated_ms / record.together_ms)
    title = "streams of several sources at level 3, without a model beside them"
    assert title in stdout_of("process", folder, "--long")
    assert title not in stdout_of("process", folder)


def test_sources_that_move_other_bytes_than_an_iteration_are_refused(
    split_job: SplitJob, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(split_job.job.folder, folder)
    record_edit("source-alone", 0, nbytes=9)(folder)
    refused = call("process", folder)
    assert refused.exit_code == 2
    assert "its sources alone had" in refused.stderr
