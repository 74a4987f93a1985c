"""Models that are split over ranks, streamed by every mode: the same tokens, all bytes, all lines.

Real mpirun jobs on the CPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from dejavubench.records import Microbatch, RankInfo, Run
from helpers.jobs import Job, args, run
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
