"""For tests of models: tiny Hugging Face folders, whole or in shards, and ways to damage them."""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from dejavubench.models.hub.checkpoint import CheckpointError, open_checkpoint
from helpers.reference_models import VOCAB, cache_of_nan, randomize, require_close
from helpers.saved_models import load_model

CONTEXT = 64
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}

Tensors = dict[str, Tensor]


@cache
def template(kind: str, **more: Any) -> Path:
    """Return a folder with a tiny model of a family. It is saved once and never changed."""
    from transformers import CONFIG_MAPPING

    folder = Path(tempfile.mkdtemp(prefix="template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sizes: dict[str, Any] = {**SIZES, **more}
    config: PretrainedConfig = CONFIG_MAPPING[kind](**sizes)
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    return folder


def tiny(folder: Path, kind: str = "llama", **more: Any) -> Path:
    """Copy a tiny model to ``folder``."""
    return Path(shutil.copytree(template(kind, **more), folder))


def configure(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


def edit(folder: Path, change: Callable[[Tensors], Any], file: str = WHOLE) -> None:
    """Change the tensors of a file."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def shard(folder: Path) -> None:
    """Replace the whole file by two shards and an index."""
    tensors = load_file(folder / WHOLE)
    tensor_names = sorted(tensors)
    halves = (tensor_names[: len(tensor_names) // 2], tensor_names[len(tensor_names) // 2 :])
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    assigned = {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": assigned}))
    (folder / WHOLE).unlink()


def write_raw(
    path: Path, entries: Mapping[str, tuple[str, list[int], int, int]], data: bytes
) -> None:
    """Write a safetensors file with any header: type, shape, first and last byte per tensor."""
    header = json.dumps(
        {
            name: {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            for name, (kind, shape, begin, end) in entries.items()
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file, not its bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def assert_unreadable(folder: Path, words: str) -> None:
    """Assert that no checkpoint can be read, with one line that matches the pattern ``words``."""
    with pytest.raises(CheckpointError, match=words) as raised:
        open_checkpoint(folder)
    assert "\n" not in str(raised.value)


def logits_of_transformers(folder: Path, tokens: Tensor) -> Tensor:
    """Return the logits of the last position, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    with torch.inference_mode():
        return model.eval()(input_ids=tokens).logits[:, -1]


def require_logits_of_transformers(folder: Path, length: int = 20, within: float = 1e-4) -> None:
    """Assert that our logits are those of transformers, in fp32 with one thread."""
    torch.set_num_threads(1)
    tokens = torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(1))
    model = load_model(folder)
    empty_cache = cache_of_nan(model, requests=2, positions=length)
    logits = model.forward(tokens, empty_cache, 0)
    require_close(logits, logits_of_transformers(folder, tokens), within)


def cut_off(folder: Path) -> str:
    """Cut the end of a folder's weights off; return the error that must name it."""
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:-5])
    return rf"{WHOLE}: tensor .* ends at byte \d+, the file at \d+: it is cut off"
