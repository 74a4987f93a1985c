"""Hand-over: sinks of any setup go on from the sources' cache, and every token is the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.machine import cpu
from dejavubench.records import Handover, HandoverAtSink, RankInfo, Verification
from helpers.jobs import BF16, QUICK, Job, args, process_folder, read_tokens, run
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
        pytest.param(2, 2, BF16, id="alike in bf16"),
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
    sinks = {rank for rank, info in job.run.records_of(RankInfo) if info.role == "sink"}
    handovers = list(job.run.records_of(Handover))
    at_sinks = list(job.run.records_of(HandoverAtSink))
    assert len(handovers) == 2
    assert len({rank for rank, _ in handovers}) == 1
    assert {rank for rank, _ in at_sinks} == sinks
    assert {len(microbatch.token_ms) for _, microbatch in at_sinks} == {NEW_TOKENS - at_sink - 1}
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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"handoff_tokens": "2"}, "--handoff-tokens 2 needs --handoff"),
        ({"handoff": True, "streaming": "host"}, "--handoff needs --streaming mpi alone"),
        ({"handoff": True, "streaming": "none,mpi"}, "--handoff needs --streaming mpi alone"),
        ({"handoff": True, "compare": True}, "--handoff needs --streaming mpi alone"),
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
    monkeypatch.setattr(cpu, "native_bf16", lambda: True)
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


@pytest.mark.usefixtures("gpu")
def test_a_hand_over_is_refused_on_a_gpu() -> None:
    with pytest.raises(UsageError, match="--handoff needs --device cpu"):
        load(None, {"streaming": "mpi", "device": "cuda", "handoff": True}, {})
