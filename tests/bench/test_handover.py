"""Hand-over: sinks of any setup go on from the sources' cache, and every token is the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavubench.config.resolve import load
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.errors import UsageError
from dejavubench.machine import cpu
from dejavubench.records import Handover, HandoverAtSink, RankInfo, Verification
from helpers.fake_gpu import pretend_cupy
from helpers.gpu_marks import SINKS_OF_ANOTHER_SETUP, needs_gpus
from helpers.jobs import BF16, QUICK, Job, args, process_folder, read_tokens, run
from helpers.nixl_mark import needs_nixl
from helpers.paths import DRIVERS
from helpers.verifications import count_verified

SHORT_HANDOFF = args("--rounds 1 --warmup 0 --inference-data-type fp32 --streaming mpi --handoff")
NEW_TOKENS = 6
"""New tokens of QUICK's requests."""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "at_sink", "flags"),
    [
        pytest.param(2, 1, (), id="alike"),
        pytest.param(2, 2, BF16, id="alike-in-bf16"),
        pytest.param(
            3,
            2,
            args("--pipeline-para-size 2 --sink-pipeline-para-size 1 --sink-ubatch-size 4"),
            id="stages-to-one",
        ),
        pytest.param(
            4,
            3,
            args(
                "--tensor-para-size 2 --sink-tensor-para-size 1 "
                "--sink-pipeline-para-size 2 --kv-layout ft"
            ),
            id="heads-to-stages",
        ),
        pytest.param(
            3,
            5,
            args("--sink-tensor-para-size 2 --sink-ubatch-size 1 --temperature 1.2"),
            id="one-to-heads-drawn",
        ),
        pytest.param(4, 1, args("--tensor-para-size 2"), id="heads-alike"),
        pytest.param(
            3, 2, args("--tensor-para-size 2 --sink-tensor-para-size 1"), id="heads-to-one"
        ),
        pytest.param(
            4,
            3,
            args(
                "--pipeline-para-size 2 --sink-pipeline-para-size 1 --sink-tensor-para-size 2 "
                "--sink-ubatch-size 4"
            ),
            id="stages-to-heads",
        ),
    ],
)
def test_sinks_go_on_with_the_tokens_of_an_undisturbed_run(
    ranks: int, at_sink: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    job = run(
        tmp_path,
        ranks,
        "run",
        *QUICK,
        *SHORT_HANDOFF,
        "--level",
        "0,3",
        "--handoff-tokens",
        at_sink,
        *flags,
    )
    assert count_verified(job) == {("p000", "mpi@0"): 1, ("p000", "mpi@3"): 1}
    require_records_of_both_sides(job, tokens_at_sink=NEW_TOKENS - at_sink)
    require_times_in_report(job)


def require_records_of_both_sides(job: Job, tokens_at_sink: int) -> None:
    """Hold that one source notes each of two hand-overs, and every sink the times of its tokens."""
    handovers = list(job.run.records_of(Handover))
    assert len(handovers) == 2
    assert len({rank for rank, _ in handovers}) == 1
    at_sinks = list(job.run.records_of(HandoverAtSink))
    sinks = {rank for rank, info in job.run.records_of(RankInfo) if info.role == "sink"}
    assert {rank for rank, _ in at_sinks} == sinks
    # The sink's first token has a time of its own.
    assert {len(microbatch.token_ms) for _, microbatch in at_sinks} == {tokens_at_sink - 1}


def require_times_in_report(job: Job) -> None:
    rows = json.loads(process_folder(job.folder, "json"))[0]["rows"]
    assert all(row["handover_ms"] > 0 and row["sink_first_ms"] > 0 for row in rows)
    assert "hand-over ms" in job.stderr


@pytest.mark.mpi
def test_prompts_of_unequal_lengths_are_taken_over(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("5,6,7\n8\n9,10,11,12,13,14\n99,1\n")
    quick = [flag for flag in QUICK if flag not in ("--input-len", "8")]
    job = run(
        tmp_path,
        2,
        "run",
        *quick,
        *SHORT_HANDOFF,
        "--prompts",
        prompts,
        *args("--ubatch-size 4 --sink-ubatch-size 2"),
    )
    assert count_verified(job) == {("p000", "mpi@3"): 1}
    assert [len(line["prompt"]) for line in read_tokens(job.folder)] == [3, 1, 6, 2]


def start_faulty_job(cwd: Path, fault: str) -> Job:
    driver = (str(DRIVERS / "faulty.py"),)
    return Job(
        cwd, 2, fault, "run", *QUICK, *SHORT_HANDOFF, *args("--rounds 4 --warmup 0"), driver=driver
    )


@pytest.mark.mpi
def test_a_wrong_token_of_a_sink_is_found(tmp_path: Path) -> None:
    with start_faulty_job(tmp_path, "wrong-token:3:1") as job:
        assert job.wait() == 1
        (check,) = [check for _, check in job.run.records_of(Verification) if not check.ok]
    assert check.where is not None
    assert check.where.startswith("rank 1: new token 3 of request 1 after the hand-over is ")
    assert check.tokens_equal is False


@pytest.mark.mpi
def test_a_sink_that_fails_as_it_takes_over_ends_the_job(tmp_path: Path) -> None:
    with start_faulty_job(tmp_path, "throw:sink:take over") as job:
        assert job.wait() not in (0, 2)
        assert "rank 1 failed in phase take over: RuntimeError: injected" in job.stderr


ONE_DESTINATION = "--handoff needs --streaming mpi or .* alone, without --compare"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"handoff_tokens": "2"}, "--handoff-tokens 2 needs --handoff"),
        ({"handoff": True, "streaming": "host"}, ONE_DESTINATION),
        ({"handoff": True, "streaming": "none,mpi"}, ONE_DESTINATION),
        ({"handoff": True, "compare": True}, ONE_DESTINATION),
        (
            {"handoff": True, "output_len": "4", "handoff_tokens": "4"},
            "leaves nothing for the sinks: --output-len is 4",
        ),
        ({"handoff": True, "output_len": "1"}, "leaves nothing for the sinks: --output-len is 1"),
    ],
)
def test_a_hand_over_that_cannot_be_is_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(None, {"streaming": "mpi", "device": "cpu", **flags}, {})


def test_a_hand_over_between_setups_that_round_bf16_apart_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "has_native_bf16", lambda: True)
    flags = {"streaming": "mpi", "device": "cpu", "handoff": True}
    for other_size in ("sink_tensor_para_size", "sink_ubatch_size"):
        values = {
            **flags,
            "ubatch_size": "2",
            "sink_ubatch_size": "2",
            other_size: "1" if "ubatch" in other_size else "2",
        }
        with pytest.raises(UsageError, match="Use --inference-data-type fp32 or --no-verify"):
            load(None, values, {})
        for settled in ({"inference_data_type": "fp32"}, {"verify": False}):
            assert load(None, {**values, **settled}, {}).experiment.handoff
    assert load(None, {**flags, "sink_pipeline_para_size": "2"}, {}).experiment.handoff


# ---- on a GPU ----


@pytest.mark.usefixtures("gpu")
def test_a_hand_over_on_a_gpu_is_refused_only_where_heads_are_cut_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_cupy(monkeypatch)
    flags = {"streaming": "mpi", "device": "cuda", "handoff": True, "ubatch_size": "2"}
    for allowed in (
        {},
        {"streaming": "nccl"},
        {"streaming": "cuda-ipc"},
        {"sink_ubatch_size": "1"},
        {"sink_pipeline_para_size": "2"},
        {"sink_tensor_para_size": "2", "verify": False},
    ):
        assert load(None, {**flags, **allowed}, {}).experiment.handoff
    with pytest.raises(UsageError, match="on a GPU the two sides round differently"):
        load(None, {**flags, "sink_tensor_para_size": "2"}, {})


@pytest.mark.usefixtures("gpu")
def test_a_sink_that_goes_on_may_share_a_gpu_whatever_the_destination() -> None:
    flags = {"streaming": "mpi", "device": "cuda", "nccl_loopback": True, "handoff": True}
    assert load(None, flags, {}).experiment.nccl_loopback


ON_GPU = args(
    "--device cuda --inference-data-type fp16 --size-per-head 32 --rounds 2 --warmup 0 --handoff"
)
"""Flags of a hand-over between the smallest models whose decode step has kernels on a GPU."""


def check_tokens(job: Job, *arms: str) -> None:
    """Assert that tokens and bytes of two rounds of each arm were compared, and were right."""
    assert count_verified(job) == {("p000", arm): 2 for arm in arms}
    handovers = list(job.run.records_of(Handover))
    assert len(handovers) == 2 * len(arms)
    assert all(record.ms > 0 for _, record in handovers)
    devices = {info.device for _, info in job.run.records_of(RankInfo)}
    assert None not in devices


@needs_gpus(1)
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("layout", "flags"),
    [
        ("hnd", ()),
        ("ft", args("--sink-ubatch-size 1 --handoff-tokens 3")),
        ("nhd", args("--temperature 1.2")),
    ],
)
def test_a_sink_goes_on_over_a_cache_that_came_to_its_gpu_through_host_memory(
    layout: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    flags = (*args("--streaming mpi --nccl-loopback --level 0,0-batched,1,3"), *flags)
    job = run(tmp_path, 2, "run", *QUICK, *ON_GPU, "--kv-layout", layout, *flags)
    check_tokens(job, "mpi@0", "mpi@0-batched", "mpi@1", "mpi@3")
    assert "loopback: ranks 0, 1 share a GPU" in process_folder(job.folder, long=True)


@needs_gpus(1)
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["nccl", "cuda-ipc", pytest.param("nixl", marks=needs_nixl)])
def test_a_sink_goes_on_over_a_cache_that_came_from_memory_of_the_same_gpu(
    mode: str, tmp_path: Path
) -> None:
    flags = args("--nccl-loopback --level 0,3 --sink-ubatch-size 1")
    job = run(tmp_path, 2, "run", *QUICK, *ON_GPU, "--streaming", mode, *flags)
    check_tokens(job, f"{mode}-loopback@0", f"{mode}-loopback@3")


@needs_gpus(1)
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("layout", ["hnd", "nhd", "ft"])
def test_a_sink_goes_on_over_a_cache_that_was_put_into_its_memory(
    layout: str, tmp_path: Path
) -> None:
    """Straight into the cache, by slots, or extent by extent; a later round writes over both."""
    flags = args("--streaming cuda-ipc --nccl-loopback --ceilings --input-len 32")
    flags = (*flags, *args("--handoff-tokens 3 --level"), ",".join(LEVELS))
    job = run(tmp_path, 2, "run", *QUICK, *ON_GPU, "--kv-layout", layout, *flags)
    check_tokens(job, *(f"cuda-ipc-loopback@{level}" for level in LEVELS))
    for row in json.loads(process_folder(job.folder, "json"))[0]["rows"]:
        assert row["handover_floor_ms"] >= row["sink_token_ms"] > 0


@needs_gpus(1)
@pytest.mark.gpu
@pytest.mark.mpi
def test_one_sink_takes_over_from_two_stages_on_its_gpu(tmp_path: Path) -> None:
    flags = args("--streaming mpi --nccl-loopback --pipeline-para-size 2")
    setup = args("--sink-pipeline-para-size 1 --sink-ubatch-size 4")
    job = run(tmp_path, 3, "run", *QUICK, *ON_GPU, *flags, *setup)
    check_tokens(job, "mpi@3")


@needs_gpus(2)
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(
    "mode", ["mpi", "nccl", "cuda-ipc", pytest.param("nixl", marks=needs_nixl)]
)
def test_a_sink_goes_on_on_the_other_gpu(mode: str, tmp_path: Path) -> None:
    flags = ("--streaming", mode, *args("--level 0,1,3 --sink-ubatch-size 1"))
    job = run(tmp_path, 2, "run", *QUICK, *ON_GPU, *flags)
    check_tokens(job, *(f"{mode}@{level}" for level in (0, 1, 3)))


@needs_gpus(4)
@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["mpi", "nccl"])
def test_two_sinks_of_one_model_go_on_on_gpus_of_their_own(mode: str, tmp_path: Path) -> None:
    flags = ("--streaming", mode, *args("--level 0,3 --tensor-para-size 2"))
    job = run(tmp_path, 4, "run", *QUICK, *ON_GPU, *flags)
    check_tokens(job, f"{mode}@0", f"{mode}@3")


@pytest.mark.gpu
@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "flags"), SINKS_OF_ANOTHER_SETUP)
def test_sinks_that_round_differently_go_on_unverified(
    ranks: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    nccl = args("--streaming nccl --no-verify")
    job = run(tmp_path, ranks, "run", *QUICK, *ON_GPU, *nccl, *flags)
    assert count_verified(job) == {}
    handovers = [record for _, record in job.run.records_of(Handover)]
    assert [record.ms > 0 for record in handovers] == [True, True]
    token_counts = {len(record.token_ms) for _, record in job.run.records_of(HandoverAtSink)}
    assert token_counts == {NEW_TOKENS - 2}
