"""Hugging Face folders: the right weights of each family and split; broken folders are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from dejavubench.config.resolve import load
from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models import loading
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.checkpoint import open_checkpoint
from dejavubench.models.hub.shard import Shard
from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.models.loading import load_checkpoint
from helpers.jobs import args, run
from helpers.model_folders import cut_off
from helpers.reference_models import CONTEXT, FAMILIES, VOCAB, prompts, require_close
from helpers.saved_models import (
    MODELS,
    load_model,
    save,
    save_model,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_has_the_sizes_of_the_model_that_was_saved(family: str, tmp_path: Path) -> None:
    spec, theirs, _ = FAMILIES[family]()
    assert open_checkpoint(save(theirs, tmp_path / "model")).spec == replace(spec, name="model")


@pytest.mark.parametrize(
    ("family", "layout", "shards"),
    [
        pytest.param(
            family,
            list(KVLayout)[(number + shards) % 3],
            shards,
            id=f"{family}-{'sharded' if shards else 'whole'}",
        )
        for number, family in enumerate(MODELS)
        for shards in (False, True)
    ],
)
def test_a_folder_gives_the_model_that_was_saved(
    family: str, layout: KVLayout, shards: bool, tmp_path: Path
) -> None:
    """Prompt and decode steps up to the context; the layouts, which do not matter, take turns."""
    theirs = MODELS[family]()
    model = load_model(save(theirs, tmp_path / "model", shards))
    assert (
        model.parameter_count
        == model.spec.parameter_count
        == sum(p.numel() for p in theirs.parameters())
    )
    tokens, steps = prompts(), 32
    cache = KVCache.allocate(
        model.kv_geometry(tokens.shape[0], tokens.shape[1] + steps, layout), torch.float32
    )
    logits = model.forward(tokens, cache, 0)
    for _ in range(steps):
        with torch.inference_mode():
            expected = theirs(input_ids=tokens).logits[:, -1]
        require_close(logits, expected)
        token = model.greedy(logits).tokens
        assert torch.equal(token, expected.argmax(-1))
        logits = model.forward(token[:, None], cache, tokens.shape[1])
        tokens = torch.cat([tokens, token[:, None]], dim=1)


@pytest.mark.parametrize("piece", [1, 3000, loading.PIECE])
@pytest.mark.parametrize("family", MODELS)
def test_every_worker_reads_its_own_cuts(
    family: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the pieces in which they are read."""
    folder = save_model(family, tmp_path / "model")
    memory = {place.name: place.memory for place in load_model(folder).weight_slices}
    monkeypatch.setattr(loading, "PIECE", piece)
    for stage in range(2):
        for tensor_rank in range(2):
            for place in load_model(
                folder, Shard(stage=stage, stage_count=2, tensor_rank=tensor_rank, tensor_size=2)
            ).weight_slices:
                assert torch.equal(place.memory, memory[place.name][place.cut]), place.name


def test_weights_are_rounded_through_the_type_they_are_to_be_held_in(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    exact, rounded = load_model(folder), GPT(checkpoint.spec, Shard(), torch.float32, torch.float32)
    load_checkpoint(rounded, checkpoint, torch.bfloat16)
    for place, rounded_place in zip(exact.weight_slices, rounded.weight_slices, strict=True):
        assert torch.equal(place.memory.bfloat16().float(), rounded_place.memory)


# ---- jobs ----


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("family", "ranks", "split"),
    [
        ("gpt2", 1, ()),
        ("gpt2", 2, ("--tensor_para_size", 2)),
        ("opt", 2, ("--pipeline_para_size", 2)),
        ("bloom", 4, args("--tensor_para_size 2 --pipeline_para_size 2")),
        ("opt-post-norm", 2, args("--tensor_para_size 2 --kv-layout ft")),
        ("bloom-6-heads", 2, args("--pipeline_para_size 2 --kv-layout nhd")),
        ("llama3", 2, ("--tensor_para_size", 2)),
        ("qwen3", 4, args("--tensor_para_size 2 --pipeline_para_size 2 --kv-layout ft")),
        ("mistral", 2, ("--pipeline_para_size", 2)),
    ],
)
def test_a_run_generates_the_tokens_of_transformers(
    family: str, ranks: int, split: tuple[object, ...], tmp_path: Path
) -> None:
    new_tokens = 32
    theirs = MODELS[family]()
    save(theirs, tmp_path / "model", shards=True)
    sizes = (
        *args("--ubatch-size 2 --input-len 8"),
        "--output-len",
        new_tokens,
        "--inference-data-type",
        "fp32",
    )
    one_round = args("--rounds 1 --warmup 0 --no-ceilings --device cpu --streaming none")
    job = run(tmp_path, ranks, "run", "--ckpt_path", "model", *sizes, *one_round, *split)
    lines = [json.loads(line) for line in (job.folder / "tokens.jsonl").read_text().splitlines()]
    stages = 2 if "--pipeline_para_size" in split else 1
    recorded_requests = [(line["ubatch"], line["request"]) for line in lines]
    all_requests = [(microbatch, request) for microbatch in range(stages) for request in range(2)]
    assert recorded_requests == all_requests
    for line in lines:
        prompt = torch.tensor([line["prompt"]])
        with torch.inference_mode():
            expected = cast(Any, theirs).generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens,
                do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        assert line["tokens"] == expected[0, 8:].tolist()


# ---- broken folders ----


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "has no config.json"


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def another_architecture(folder: Path) -> str:
    change_config(model_type="mixtral")(folder)
    return (
        "config.json: models of type 'mixtral' are not supported; "
        "gpt2, opt, bloom, llama, mistral, qwen2, qwen3 are"
    )


def another_activation(folder: Path) -> str:
    change_config(activation_function="relu")(folder)
    return "gpt2 with activation_function 'relu' is not supported, only 'gelu_new'"


def heads_that_do_not_fit(folder: Path) -> str:
    change_config(n_head=5)(folder)
    return "config.json: 5 heads do not divide a width of 32"


def another_width(folder: Path) -> str:
    change_config(n_positions=CONTEXT + 1)(folder)
    problem = (
        f"tensor transformer.wpe.weight is {CONTEXT} × 32; "
        f"by config.json it should be {CONTEXT + 1} × 32"
    )
    return f"model.safetensors: {problem}"


def torn_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json: line 1, column 2: not JSON"


def missing_tensor(folder: Path) -> str:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, path)
    return "tensor transformer.h.1.mlp.c_fc.bias is in none of its files"


def cut_off_in_the_header(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return "model.safetensors: not a safetensors file, or cut off in its header"


def no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "has neither model.safetensors nor model.safetensors.index.json"


def pickle_weights(folder: Path) -> str:
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    return r"pytorch_model.bin is a pickle, .* write safetensors instead: .*save_pretrained"


def missing_shard(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"transformer.wte.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "index.json: it names model-00002-of-00002.safetensors, which is missing"


def index_that_leads_out(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../model.safetensors"}})
    )
    return "which is not a file of this folder"


def no_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    return "is not a folder"


BROKEN = [
    *(
        without_config,
        another_architecture,
        another_activation,
        heads_that_do_not_fit,
        another_width,
        torn_config,
    ),
    *(
        missing_tensor,
        cut_off,
        cut_off_in_the_header,
        no_weights,
        pickle_weights,
        missing_shard,
        index_that_leads_out,
    ),
    no_folder,
]


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
def test_a_broken_folder_is_refused_naming_what_is_wrong(
    damage: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = save_model("gpt2", tmp_path / "model")
    words = damage(folder)
    with pytest.raises(CheckpointError, match=words) as raised:
        open_checkpoint(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.mpi
def test_a_broken_folder_is_one_message_and_status_2(tmp_path: Path) -> None:
    folder = save_model("opt", tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    job = run(tmp_path, 2, "run", *args("--ckpt-path model --streaming none"), status=2)
    assert job.stderr.startswith("Error: --ckpt-path: ")
    assert job.stderr.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_model_of_its_own_is_not_named_beside_a_folder(tmp_path: Path) -> None:
    from dejavubench.errors import UsageError

    folder = save_model("gpt2", tmp_path / "model")
    with pytest.raises(UsageError, match="--ckpt-path, which has a model of its own"):
        load(None, {"ckpt_path": folder, "model": "gpt2"}, {})
    with pytest.raises(UsageError, match=r"layer-num 3 is for --model custom"):
        load(None, {"ckpt_path": folder, "layer_num": 3}, {})


def test_other_weights_change_the_hash_and_another_path_does_not(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path / "model")
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "model"))
    plan = load(None, {"ckpt_path": folder}, {})
    assert plan.points[0].spec.vocab_size == VOCAB
    assert load(None, {"ckpt_path": copy}, {}).hash() == plan.hash()
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.h.2.attn.c_proj.bias"] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    open_checkpoint.cache_clear()
    assert load(None, {"ckpt_path": copy}, {}).hash() != plan.hash()
