"""Sources and sinks of different setups: real jobs whose bytes are compared, at every level."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dejavubench.config.points import SetupSizes
from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.records import RankInfo, SinkActivity
from helpers.gpu_marks import SINKS_OF_ANOTHER_SETUP, needs_gpus
from helpers.jobs import QUICK, args, run
from helpers.verifications import count_verified

LEVELS = ("--level", "0,0-batched,1,2,3")
ONE_ROUND = args("--rounds 1 --warmup 0 --inference-data-type fp32")


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "flags", "peers"),
    [
        pytest.param(
            3,
            args("--kv-layout nhd --pipeline-para-size 2 --sink-pipeline-para-size 1"),
            [[2], [2], [0, 1]],
            id="stages-to-one",
        ),
        pytest.param(
            4,
            args(
                "--kv-layout nhd --tensor-para-size 2 --sink-tensor-para-size 1 "
                "--sink-pipeline-para-size 2"
            ),
            [[2, 3], [2, 3], [0, 1], [0, 1]],
            id="heads-to-stages",
        ),
        pytest.param(
            2, args("--ubatch-size 4 --sink-ubatch-size 2"), [[1], [0]], id="to-smaller-batches"
        ),
        pytest.param(
            3,
            args(
                "--kv-layout ft --pipeline-para-size 2 --sink-pipeline-para-size 1 "
                "--sink-ubatch-size 4"
            ),
            [[2], [2], [0, 1]],
            id="to-a-larger-batch",
        ),
        pytest.param(
            3,
            args("--ubatch-size 3 --sink-tensor-para-size 2 --sink-ubatch-size 1"),
            [[1, 2], [0], [0]],
            id="one-to-heads",
        ),
        pytest.param(
            4, args("--kv-layout hnd --tensor-para-size 2"), [[2], [3], [0], [1]], id="heads-alike"
        ),
        pytest.param(
            3,
            args("--kv-layout hnd --tensor-para-size 2 --sink-tensor-para-size 1"),
            [[2], [2], [0, 1]],
            id="heads-to-one",
        ),
        pytest.param(
            4,
            args(
                "--kv-layout hnd --pipeline-para-size 2 --sink-pipeline-para-size 1 "
                "--sink-tensor-para-size 2 --sink-ubatch-size 4"
            ),
            [[2, 3], [2, 3], [0, 1], [0, 1]],
            id="stages-to-heads",
        ),
    ],
)
def test_every_byte_arrives_whatever_the_two_setups(
    ranks: int, flags: tuple[str, ...], peers: list[list[int]], tmp_path: Path
) -> None:
    job = run(tmp_path, ranks, "run", *QUICK, *ONE_ROUND, *LEVELS, "--streaming", "mpi", *flags)
    arms = ["none", "none#2", *(f"mpi@{level}" for level in ("0", "0-batched", "1", "2", "3"))]
    assert count_verified(job) == {("p000", arm): 1 for arm in arms}
    infos = {info.rank: info for _, info in job.run.records_of(RankInfo)}
    assert [infos[rank].peers for rank in range(ranks)] == peers
    point = job.run.header.points[0]
    in_flight = point.streamed_nbytes * point.pipeline_para_size
    for arm in arms[2:]:
        received = [
            activity
            for _, activity in job.run.records_of(SinkActivity)
            if (activity.point, activity.arm) == ("p000", arm)
        ]
        assert sum(activity.nbytes for activity in received) == in_flight


ON_GPUS = args("--device cuda --inference-data-type fp16 --size-per-head 32 --rounds 1 --warmup 0")
"""Flags of the smallest model whose decode step has kernels on a GPU."""


@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        pytest.param(4, args("--tensor-para-size 2"), marks=needs_gpus(4), id="heads-alike"),
        *SINKS_OF_ANOTHER_SETUP,
    ],
)
@pytest.mark.parametrize("mode", ["nccl", "cuda-ipc"])
def test_every_byte_arrives_on_gpus_of_their_own(
    mode: str, ranks: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    modes = ("--streaming", f"none,{mode}", "--level", "0,3")
    job = run(tmp_path, ranks, "run", *QUICK, *ON_GPUS, *modes, *flags)
    arms = ("none", "none#2", f"{mode}@0", f"{mode}@3")
    assert count_verified(job) == {("p000", arm): 1 for arm in arms}
    # Names of GPUs, which may be alike: the program refuses ranks that would share one.
    devices = [info.device for _, info in job.run.records_of(RankInfo)]
    assert len(devices) == ranks
    assert None not in devices


@pytest.mark.mpi
def test_a_run_with_too_few_ranks_says_how_many(tmp_path: Path) -> None:
    job = run(
        *(tmp_path, 4, "run", *QUICK, "--streaming", "mpi"),
        *args("--pipeline-para-size 2 --sink-pipeline-para-size 1"),
        status=2,
    )
    assert job.stderr == (
        "Error: mpi needs 3 ranks here (2 sources by --tensor-para-size 1 × --pipeline-para-size "
        "2, and 1 sink), but 4 were started. Start it with: mpirun -n 3 dejavubench "
        f"{shlex.join(['run', *QUICK, '--streaming', 'mpi'])} --pipeline-para-size 2 "
        "--sink-pipeline-para-size 1\n"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"sink_tensor_para_size": "3"},
            "--sink-tensor-para-size 3 does not divide the 16 heads of custom",
        ),
        (
            {"sink_pipeline_para_size": "25"},
            "--sink-pipeline-para-size 25 is more than the 24 layers of custom",
        ),
        (
            {"ubatch_size": "4", "pipeline_para_size": "2", "sink_ubatch_size": "3"},
            r"--sink-ubatch-size 3 does not divide the 8 requests in flight \(2 × --ubatch-size "
            r"4\)",
        ),
        (
            {"streaming": "host", "sink_ubatch_size": "1"},
            "--sink-ubatch-size 1 needs a destination with sinks",
        ),
        ({"streaming": "host,nccl", "sink_ubatch_size": "1"}, "and none can run"),
        (
            {"streaming": "mpi,tcp", "peer": "a:1", "sink_ubatch_size": "1"},
            "its sinks have the setup of the sources",
        ),
        ({"sink_ubatch_size": "0"}, "--sink-ubatch-size: "),
    ],
)
def test_sinks_that_cannot_be_are_refused(flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(None, {"streaming": "mpi", "device": "cpu", **flags}, {})


def test_sinks_are_as_the_sources_by_default() -> None:
    plan_of_equal_setups = load(
        None, {"streaming": "mpi", "device": "cpu", "sink_tensor_para_size": "1"}, {}
    )
    assert plan_of_equal_setups.points[0].sinks is None
    assert plan_of_equal_setups.rank_counts == (2,)
    plan_of_other_sinks = load(
        None,
        {
            "streaming": "mpi",
            "device": "cpu",
            "pipeline_para_size": "2",
            "sink_tensor_para_size": "4",
        },
        {},
    )
    assert plan_of_other_sinks.points[0].sinks == SetupSizes(
        tensor_para_size=4, pipeline_para_size=2, ubatch_size=1
    )
    assert plan_of_other_sinks.rank_counts == (2 + 8,)
