"""Folders of weights as people have them: read as transformers does, or named and refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dejavubench.models.hub.checkpoint import open_checkpoint, read_spec
from dejavubench.models.hub.tensor_file import CheckpointError
from dejavubench.text_file import LFS_POINTER
from helpers.cli_calls import call, usage_error_of
from helpers.jobs import args, run
from helpers.model_folders import (
    INDEX,
    SHARDS,
    SIZES,
    WHOLE,
    Tensors,
    assert_unreadable,
    configure,
    edit,
    require_logits_of_transformers,
    shard,
    tiny,
)
from helpers.reference_models import VOCAB
from helpers.saved_models import load_model

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


# ---- stored types, and quantised folders ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_floating_type_of_16_bits_or_more_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    edit(
        folder,
        lambda tensors: tensors.update(
            {name: tensor.to(dtype) for name, tensor in tensors.items()}
        ),
    )
    require_logits_of_transformers(folder)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.bool, "BOOL"),
    ],
)
def test_other_stored_types_are_refused_by_name_even_with_the_right_shape(
    dtype: torch.dtype, stored: str, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    edit(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))
    assert_unreadable(
        folder,
        rf"{WHOLE}: tensor {QUERY} is stored as {stored}\. "
        "Only weights in BF16, F16, F32, F64 are read",
    )
    with pytest.raises(CheckpointError, match=f"stored as {stored}"):
        read_spec(folder)


QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "fp8": (
        {"quantization_config": {"quant_method": "fp8"}},
        r"quantization_config .* quantised \(fp8\)",
    ),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r".*quantised \(gptq\)"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, r".*quantised \(awq\)"),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        r".*quantised \(bitsandbytes\)",
    ),
    "compressed-tensors": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "compression_config",
    ),
    "no method": (
        {"quantization_config": {}},
        "quantization_config says that the weights are quantised",
    ),
    "mlx": (
        {"quantization": {"group_size": 64, "bits": 4}},
        "quantization says that the weights are quantised",
    ),
    "no object": ({"quantization_config": 4}, "quantization_config must be an object, not 4"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_folder_that_says_it_is_quantised_is_refused_by_that_key(
    kind: str, tmp_path: Path
) -> None:
    folder, (keys, words) = tiny(tmp_path / "model"), QUANTISED[kind]
    configure(folder, **keys)
    assert_unreadable(folder, f"config.json: {words}")


@pytest.mark.parametrize(
    "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
)
def test_a_file_of_a_quantising_tool_is_enough(file: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    (folder / file).write_text("{}")
    assert_unreadable(folder, f"{file} says that the weights are quantised")


@pytest.mark.parametrize(
    ("ends", "tool"),
    [
        (("weight_scale",), "fp8 or int8"),
        (("weight_scale_inv",), "fp8 or int8"),
        (("qweight", "qzeros", "scales"), "GPTQ or AWQ"),
        (("weight.absmax", "weight.quant_state.bitsandbytes__nf4"), "bitsandbytes"),
        (("SCB",), "bitsandbytes"),
        (("weight_packed", "weight_scale"), "compressed-tensors"),
    ],
)
def test_scales_beside_weights_are_recognised_without_a_word_in_the_configuration(
    ends: tuple[str, ...], tool: str, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    edit(
        folder,
        lambda tensors: tensors.update(
            {QUERY.replace("weight", end): torch.ones(4) for end in ends}
        ),
    )
    assert_unreadable(
        folder,
        rf"tensor model\.layers\.0\.self_attn\.q_proj\..* not used.*"
        rf"the weights are quantised \({tool}\)",
    )


@pytest.mark.parametrize("command", ["run --dry-run --device cpu --ckpt-path", "plan --ckpt-path"])
def test_plan_and_dry_run_refuse_what_a_run_would(command: str, tmp_path: Path) -> None:
    fp8, quantised = tiny(tmp_path / "fp8"), tiny(tmp_path / "said")
    edit(fp8, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.float8_e4m3fn)}))
    configure(quantised, quantization_config={"quant_method": "gptq"})
    for folder, words in ((fp8, "stored as F8_E4M3"), (quantised, "quantised (gptq)")):
        error = usage_error_of(*command.split(), folder)
        assert error.startswith(f"--ckpt-path: {folder}")
        assert words in error


def test_plan_needs_the_configuration_alone_whatever_else_is_not_there_yet(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    shard(folder)
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[1]).write_text(f"{LFS_POINTER}v1\noid sha256:0\nsize 9\n")
    plan_call = call("plan", "--ckpt-path", folder)
    assert plan_call.exit_code == 0, plan_call.output


# ---- the index, and whole files ----


def test_the_index_decides_which_copy_of_a_tensor_counts(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    tensors = load_file(folder / WHOLE)
    shard(folder)
    assigned = json.loads((folder / INDEX).read_text())["weight_map"]
    # A stale copy stands before the right one, then behind it.
    for file, right_file in (SHARDS, SHARDS[::-1]):
        stale = {
            name: torch.full_like(tensors[name], 7.0)
            for name in assigned
            if assigned[name] == right_file
        }
        edit(folder, partial(dict[str, torch.Tensor].update, **stale), file)
    model = load_model(folder)
    full = dict(
        zip(
            (place.name for place in model.weight_slices),
            (place.memory for place in model.weight_slices),
            strict=True,
        )
    )
    assert torch.equal(full["embedding"], tensors[EMBEDDING])
    assert torch.equal(full["layers.0.query.weight"], tensors[QUERY])
    assert not any((tensor == 7.0).all() for tensor in full.values())


def test_an_index_that_assigns_a_tensor_to_a_file_without_it_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    shard(folder)
    path = folder / INDEX
    content = json.loads(path.read_text())
    file = content["weight_map"][QUERY]
    content["weight_map"][QUERY] = next(shard_name for shard_name in SHARDS if shard_name != file)
    path.write_text(json.dumps(content))
    assert_unreadable(folder, f"{INDEX}: it assigns tensor {QUERY} to .*, which does not hold it")
    del content["weight_map"][QUERY]
    path.write_text("\ufeff" + json.dumps(content))
    assert_unreadable(folder, f"tensor {QUERY} is in {file}, but {INDEX} assigns it to no file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", f"{INDEX}: line 1, column 2: not JSON"),
        ("[]", "weight_map must name each tensor's file"),
        ('{"weight_map": {}}', "weight_map must name each tensor's file"),
        ('{"weight_map": {"x": 3}}', "weight_map must name each tensor's file"),
        (json.dumps({"weight_map": {"x": "n" * 300}}), "File name too long"),
        (json.dumps({"weight_map": {"x": "a\0b"}}), "which is missing"),
    ],
)
def test_an_index_that_is_none_is_refused(content: str, words: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    shard(folder)
    (folder / INDEX).write_text(content)
    assert_unreadable(folder, words)


def test_a_whole_file_beside_an_index_is_used_as_in_transformers_and_that_is_said(
    tmp_path: Path,
) -> None:
    folder = tiny(tmp_path / "model")
    tensors = load_file(folder / WHOLE)
    shard(folder)
    assert open_checkpoint(folder).notes == ()
    save_file(
        {name: 2 * tensor for name, tensor in tensors.items()}, folder / WHOLE, {"format": "pt"}
    )
    open_checkpoint.cache_clear()
    (note,) = open_checkpoint(folder).notes
    assert note == f"{folder} has both {WHOLE} and {INDEX}: {WHOLE} is used, as transformers does"
    require_logits_of_transformers(folder)
    dry_run = call("run", "--dry-run", "--device", "cpu", "--ckpt-path", folder)
    assert f"{WHOLE} is used" in " ".join(dry_run.output.split())


@pytest.mark.mpi
def test_a_run_says_once_which_of_both_it_uses(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    content = (folder / WHOLE).read_bytes()
    shard(folder)
    (folder / WHOLE).write_bytes(content)
    sizes = args(
        "--input-len 8 --output-len 4 --inference-data-type fp32 --device cpu --no-ceilings"
    )
    one_round = args("--rounds 1 --warmup 0 --streaming none --tensor_para_size 2")
    job = run(tmp_path, 2, "run", "--ckpt-path", "model", *sizes, *one_round)
    note = f"note: model has both {WHOLE} and {INDEX}: {WHOLE} is used, as transformers does\n"
    assert job.stderr.count(note) == 1


def test_an_interrupted_download_is_named(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    shard(folder)
    (folder / SHARDS[1]).rename(folder / f"{SHARDS[1]}.incomplete")
    assert_unreadable(
        folder,
        rf"names {SHARDS[1]}, which is missing; "
        rf"a download was interrupted \({SHARDS[1]}\.incomplete\)",
    )
    (folder / INDEX).unlink()
    assert_unreadable(folder, rf"has {SHARDS[0]}, but neither {WHOLE} nor {INDEX}")
    (folder / SHARDS[0]).unlink()
    (folder / WHOLE).symlink_to("../blobs/none")
    assert_unreadable(folder, "a download was interrupted")
    (folder / f"{SHARDS[1]}.incomplete").unlink()
    assert_unreadable(folder, f"{WHOLE} is a link to a missing file")


# ---- tensors that nothing used ----


def bias_in_the_file(folder: Path) -> str:
    name = QUERY.replace("weight", "bias")
    edit(folder, lambda tensors: tensors.update({name: torch.ones(32)}))
    return (
        f"{WHOLE}: tensor {name} is not used, which changes the model: "
        "config.json describes a llama model without"
    )


def layer_beyond_the_last(folder: Path) -> str:
    configure(folder, num_hidden_layers=1)
    return (
        r"tensor model\.layers\.1\..* and 8 others are not used, "
        ".*as config.json describes it has no such tensor"
    )


def stray_in_a_shard(folder: Path) -> str:
    shard(folder)
    edit(folder, lambda tensors: tensors.update({"model.extra": torch.ones(2)}), SHARDS[0])
    return f"{SHARDS[0]}: tensor model.extra is not used, .*{INDEX} does not name it"


def multimodal(folder: Path) -> str:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        tensors["vision_tower.patch.weight"] = torch.ones(2)

    edit(folder, rename)
    return f"tensor {EMBEDDING} is in none of its files: it holds a multimodal model"


def base_only(folder: Path) -> str:
    def rename(tensors: Tensors) -> None:
        del tensors[HEAD]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit(folder, rename)
    return "it holds a base model without a head, such as LlamaModel saves"


def classifier(folder: Path) -> str:
    edit(
        folder,
        lambda tensors: (tensors.pop(HEAD), tensors.update({"score.weight": torch.ones(2, 32)})),
    )
    configure(folder, architectures=["LlamaForSequenceClassification"])
    return (
        f"tensor {HEAD} is in none of its files: "
        "config.json says that it was saved from LlamaForSequenceClass"
    )


def adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json shows that it is an adapter"


def adapter_alone(folder: Path) -> str:
    adapter(folder)
    (folder / "config.json").unlink()
    return "has no config.json: it is an adapter"


def adapter_tensors(folder: Path) -> str:
    name = QUERY.replace("weight", "lora_A.weight")
    edit(folder, lambda tensors: tensors.update({name: torch.ones(2, 32)}))
    return f"tensor {name} is not used, .* it holds an adapter"


def adapter_file(folder: Path) -> str:
    (folder / WHOLE).rename(folder / "adapter_model.safetensors")
    return "adapter_model.safetensors is an adapter"


def own_head_though_tied(folder: Path) -> str:
    configure(folder, tie_word_embeddings=True)
    return (
        f"tensor {HEAD} differs from {EMBEDDING}, "
        "but tie_word_embeddings in config.json makes them one"
    )


def no_head(folder: Path) -> str:
    edit(folder, lambda tensors: tensors.pop(HEAD))
    return f"tensor {HEAD} is in none of its files; .* set tie_word_embeddings to true"


def strange_name(folder: Path) -> str:
    edit(folder, lambda tensors: tensors.update({"a\nb\x1b[31m": torch.ones(2)}))
    return r"tensor a\\nb\\x1b\[31m is not used"


def resized_embedding(folder: Path) -> str:
    configure(folder, vocab_size=VOCAB + 3)
    return f"tensor {EMBEDDING} is {VOCAB} × 32; by config.json it should be {VOCAB + 3} × 32"


def more_layers_than_tensors(folder: Path) -> str:
    configure(folder, num_hidden_layers=2_000_000_000)
    return "it says 2000000000 layers, but the files hold only 21 tensors"


OTHER_KINDS: list[Callable[[Path], str]] = [
    *(
        bias_in_the_file,
        layer_beyond_the_last,
        stray_in_a_shard,
        multimodal,
        base_only,
        classifier,
        adapter,
    ),
    *(
        adapter_alone,
        adapter_tensors,
        adapter_file,
        own_head_though_tied,
        no_head,
        resized_embedding,
    ),
    *(more_layers_than_tensors, strange_name),
]


@pytest.mark.parametrize("change", OTHER_KINDS, ids=lambda change: change.__name__)
def test_a_folder_of_another_kind_or_with_more_than_the_model_uses_is_named(
    change: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    assert_unreadable(folder, change(folder))


def test_a_multimodal_configuration_is_named(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    configure(folder, model_type="llava", text_config=SIZES, vision_config={})
    assert_unreadable(
        folder,
        "config.json: 'llava' is a multimodal model, which is not supported; "
        "text models are: gpt2, opt",
    )


def test_masks_frequencies_and_a_tied_head_beside_the_model_do_no_harm(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", tie_word_embeddings=True)
    stored = open_checkpoint(folder).stored

    def add(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.rotary_emb.inv_freq"] = torch.ones(4)

    edit(folder, add)
    open_checkpoint.cache_clear()
    assert open_checkpoint(folder).stored == stored
    require_logits_of_transformers(folder)
    edit(folder, lambda tensors: tensors.pop(EMBEDDING))  # tying works either way round
    open_checkpoint.cache_clear()
    require_logits_of_transformers(folder)


def test_gpt2s_masks_are_no_weights(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).bool(),
        "transformer.h.0.attn.masked_bias": torch.ones(1),
    }
    edit(tmp_path, lambda tensors: tensors.update(masks))
    assert open_checkpoint(tmp_path).spec.layer_num == 1
    edit(tmp_path, lambda tensors: tensors.update({"transformer.h.0.attn.other": torch.ones(1)}))
    open_checkpoint.cache_clear()
    assert_unreadable(tmp_path, r"tensor transformer\.h\.0\.attn\.other is not used")


# ---- configurations as text, and paths ----


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbf", "config.json: the file is empty"),
        (b'{"model_type": "llama",}', "config.json: line 1, column 24: not JSON: remove the comma"),
        (b'{"use_cache": True}', "line 1, column 15: not JSON: True is Python's spelling"),
        (b"<html>", "this is an HTML page"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b"[1]", "config.json: it is not a JSON object"),
        (b"{}", "models of type None are not supported"),
        (LFS_POINTER.encode() + b"v1\n", "this is a Git LFS pointer"),
    ],
)
def test_a_configuration_that_is_no_json_is_refused_with_the_place(
    content: bytes, words: str, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    (folder / "config.json").write_bytes(content)
    assert_unreadable(folder, words)


def test_a_byte_order_mark_before_the_configuration_is_read(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model")
    expected = open_checkpoint(folder).spec
    path = folder / "config.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    open_checkpoint.cache_clear()
    assert open_checkpoint(folder).spec == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("hidden_size", "32"),
            ("hidden_size", 32.0),
            ("hidden_size", True),
            ("num_hidden_layers", 0),
        ),
        *(("vocab_size", 10**12), ("rms_norm_eps", float("nan")), ("rms_norm_eps", float("inf"))),
        *(("tie_word_embeddings", "false"), ("rope_parameters", 3), ("head_dim", -8)),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_key(
    key: str, value: Any, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model")
    configure(folder, **{key: value})
    assert_unreadable(folder, f"config.json: {key} must be .*, not {value!r}")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("7", "ckpt_path: 7 is not a folder; give the path of one, as text"),
        ("[1, 2]", r"ckpt_path: \[1, 2\] is not a folder"),
        ("true", "ckpt_path: True is not a folder"),
        ("{ a = 1 }", r"ckpt_path: \{'a': 1\} is not a folder"),
        ('""', "ckpt_path: '' is not a folder"),
        (r'"a\u0000b"', r"ckpt_path: 'a\\x00b' has a NUL character"),
        (json.dumps("n" * 300), "File name too long"),
        ('"none"', "none is not a folder"),
        ('"pyproject.toml"', "pyproject.toml is a file; give the folder that holds config.json"),
    ],
)
def test_a_ckpt_path_that_is_no_path_is_one_message(value: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"ckpt_path = {value}\n")
    error = usage_error_of("run", "--dry-run", path)
    assert re.search(words, error), error


# ---- names ----


NAMES = {
    "models--meta-llama--Llama-3.1-8B": "Llama-3.1-8B",
    "models--a--b--c": "b--c",
    "models--gpt2": "gpt2",
}


def test_a_model_of_a_hubs_cache_is_shown_by_its_name(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    for repository, name in NAMES.items():
        folder = tmp_path / repository / "snapshots" / revision
        folder.parent.mkdir(parents=True)
        tiny(folder)
        link = tmp_path / f"link-{name}"
        link.symlink_to(folder)
        assert open_checkpoint(folder).spec.name == open_checkpoint(link).spec.name == name
        assert_unreadable(
            tmp_path / repository, rf"it is a model's folder in a hub's cache; give {folder}"
        )
    assert open_checkpoint(tiny(tmp_path / "plain")).spec.name == "plain"
    cwd = Path.cwd()
    try:
        os.chdir(folder)
        assert read_spec(Path(".")).name == "gpt2"
    finally:
        os.chdir(cwd)
