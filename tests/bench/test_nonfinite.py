"""NaN and infinity in files, by rounding, or in logits: a run with them ends unverified."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dejavubench import records
from dejavubench.bench.engine.batch_maker import BatchMaker
from dejavubench.bench.engine.logits import LogitsError
from dejavubench.bench.engine.microbatch_stream import NoStreaming
from dejavubench.bench.engine.prompts import Prompts
from dejavubench.bench.engine.steps import make_steps
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models import loading
from dejavubench.models.backends.cpu.backend import find_largest
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.shard import Shard
from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.models.sampling_options import SamplingOptions
from dejavubench.models.weights import make_random_weights
from dejavubench.parallel.collectives import Collectives
from helpers.jobs import args, run
from helpers.model_folders import INDEX, WHOLE, Tensors, edit, shard, tiny
from helpers.reference_models import GPT2, VOCAB, build, cache_of_nan, prompts
from helpers.saved_models import load_model

UP, KEY, NORM = (
    f"model.layers.1.{name}.weight"
    for name in ("mlp.up_proj", "self_attn.k_proj", "input_layernorm")
)

pytestmark = pytest.mark.usefixtures("one_thread")


def put_value(
    name: str, value: float, *index: int, dtype: torch.dtype = torch.float32
) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name][index] = value

    return change


# ---- weights ----


@pytest.mark.parametrize("piece", [1000, loading.PIECE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_that_is_no_number_is_located(
    stored: torch.dtype, value: float, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIECE", piece)
    folder = tiny(tmp_path / "model")
    for name, index, elements in ((UP, (47, 31), 48 * 32), (NORM, (5,), 32)):
        edit(folder, put_value(name, value, *index, dtype=stored))
        problem = f"1 of {elements} values are NaN or infinite in the file"
        words = f"{folder / WHOLE}: tensor {name}: {problem}"
        with pytest.raises(CheckpointError, match=words):
            load_model(folder)
        edit(folder, put_value(name, 0.0, *index))


def test_the_shard_with_the_bad_value_is_named_and_workers_without_it_load(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    edit(folder, put_value(KEY, float("nan"), 0, 0))
    shard(folder)
    file = json.loads((folder / INDEX).read_text())["weight_map"][KEY]
    for place in (
        Shard(),
        Shard(stage=1, stage_count=2),
        Shard(stage=0, stage_count=1, tensor_rank=0, tensor_size=2),
    ):
        with pytest.raises(CheckpointError, match=f"{file}: tensor {KEY}: 1 of"):
            load_model(folder, place)
    load_model(folder, Shard(stage=0, stage_count=2))
    load_model(folder, Shard(stage=0, stage_count=1, tensor_rank=1, tensor_size=2))


@pytest.mark.parametrize(
    ("stored", "value", "dtype", "rounded_to", "words"),
    [
        (
            torch.float32,
            1e5,
            torch.float16,
            None,
            "its values up to 100000 do not fit in fp16, whose largest is 65504",
        ),
        (
            torch.float32,
            -1e5,
            torch.float16,
            None,
            "values up to 100000 do not fit in fp16, .*; choose fp32 or bf16",
        ),
        (torch.bfloat16, 1e38, torch.float16, None, "do not fit in fp16"),
        (torch.float32, 1e5, torch.float32, torch.float16, "do not fit in fp16"),
        (torch.float32, 3.4e38, torch.bfloat16, None, "do not fit in bf16"),
        (
            torch.float64,
            1e300,
            torch.float32,
            None,
            r"its values up to 1e\+300 do not fit in fp32, .*; no supported type",
        ),
    ],
)
def test_a_weight_that_outgrows_the_inference_type_is_distinguished_from_a_damaged_one(
    stored: torch.dtype,
    value: float,
    dtype: torch.dtype,
    rounded_to: torch.dtype | None,
    words: str,
    tmp_path: Path,
) -> None:
    folder = tiny(tmp_path / "model")
    for name, index in ((UP, (0, 0)), (NORM, (0,))):
        edit(folder, put_value(name, value, *index, dtype=stored))
        with pytest.raises(CheckpointError, match=f"{WHOLE}: tensor {name}: .*{words}"):
            load_model(folder, dtype=dtype, rounded_to=rounded_to)
        edit(folder, put_value(name, 0.0, *index))
    edit(folder, put_value(UP, 6e4, 0, 0))
    load_model(folder, dtype=dtype, rounded_to=rounded_to)  # within every type


# ---- logits ----


ALONE = cast(Collectives, SimpleNamespace(finish=lambda: None))
"""One rank has nobody to wait for."""


def run_iteration(model: GPT, sampling: SamplingOptions | None, steps: int = 4) -> BatchMaker:
    tokens = prompts()
    cache = cache_of_nan(model, tokens.shape[0], tokens.shape[1] + steps)
    asked = Prompts(tokens, torch.arange(len(tokens)))
    maker = BatchMaker(model, make_steps(model, [cache], [asked], sampling), ALONE, [tokens], steps)
    maker.run([NoStreaming()], lambda phase: None)
    return maker


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "sampling",
    [
        None,
        SamplingOptions(temperature=1.0, top_k=None, top_p=None, seed=0),
        SamplingOptions(temperature=0.7, top_k=5, top_p=0.9, seed=0),
    ],
)
def test_a_step_whose_logits_are_no_numbers_is_located(
    sampling: SamplingOptions | None, spoil: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value in one step, which no later step would show."""
    model = build(GPT2, make_random_weights(GPT2, 0))
    run_iteration(model, sampling)
    forward = GPT.forward

    def spoilt(
        self: GPT, x: torch.Tensor, cache: KVCache, position: int, *more: Any
    ) -> torch.Tensor:
        logits = forward(self, x, cache, position, *more).clone()
        if position == 10:
            logits[1, VOCAB - 1] = spoil
        return logits

    monkeypatch.setattr(GPT, "forward", spoilt)
    with pytest.raises(
        LogitsError, match=r"logits of new token 2 of request 1 in microbatch 0 are NaN or inf"
    ):
        run_iteration(model, sampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [255, 256, 1000])
def test_the_largest_logit_shows_whatever_is_no_number(size: int, dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf")):
        for place in (0, size // 2, size - 1):
            logits = torch.randn(2, size).to(dtype)
            logits[1, place] = value
            values, position = find_largest(logits)
            assert values.isfinite().tolist() == [True, False]
            assert position[1] == place


def enlarge_head(tensors: Tensors) -> None:
    """Enlarge weights, so that they are numbers but their products are not."""
    for name in ("model.norm.weight", "lm_head.weight"):
        tensors[name] = tensors[name].sign() * 1e30


def enlarge_layers(tensors: Tensors) -> None:
    """Enlarge weights, so that the squares summed by the last norm are infinite: it gives 0."""
    for name in tensors:
        if name.endswith("up_proj.weight"):
            tensors[name] = tensors[name] * 1e36


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_all_0_end_the_run(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    run_iteration(load_model(folder, dtype=dtype), None)
    edit(folder, enlarge_layers)
    with pytest.raises(
        LogitsError, match="all logits of request 0 in microbatch 0 are 0: its tokens mean nothing"
    ):
        run_iteration(load_model(folder, dtype=dtype), None)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (1, ()),
        (2, ("--tensor_para_size", 2, "--no-verify")),
        (2, args("--pipeline_para_size 2 --temperature 1.0")),
    ],
    ids=["alone", "tp2-no-verify", "pp2-drawn"],
)
def test_a_run_with_logits_that_are_no_numbers_ends_and_verifies_nothing(
    ranks: int, more: tuple[object, ...], tmp_path: Path
) -> None:
    edit(tiny(tmp_path / "model"), enlarge_head)
    words = (
        r"failed in phase (reference )?drain: LogitsError: "
        r"the logits of new token 0 of request 0 in microbatch 0"
    )
    require_failed_run(tmp_path, ranks, words, *more)


@pytest.mark.mpi
def test_a_run_with_weights_that_are_no_numbers_ends_while_it_loads(tmp_path: Path) -> None:
    edit(tiny(tmp_path / "model"), put_value(KEY, float("nan")))
    error = f"CheckpointError: model/{WHOLE}: tensor {KEY}: .* values are NaN"
    words = f"rank [01] failed in phase load: {error}"
    require_failed_run(tmp_path, 2, words, "--tensor_para_size", 2)


def require_failed_run(cwd: Path, ranks: int, words: str, *more: object) -> None:
    sizes = args(
        "--input-len 8 --output-len 4 --inference-data-type fp32 --device cpu --no-ceilings"
    )
    job = run(
        cwd, ranks, "run", "--ckpt-path", "model", *sizes, "--streaming", "none", *more, status=1
    )
    assert re.search(words, job.stderr), job.stderr
    assert "Traceback" not in job.stderr
    assert not (job.folder / "tokens.jsonl").exists()
    assert not list(job.run.records_of(records.Verification))
    assert not list(job.run.records_of(records.Iteration))
    assert any(
        re.search("LogitsError|CheckpointError", failure.error)
        for _, failure in job.run.records_of(records.RankFailure)
    )
