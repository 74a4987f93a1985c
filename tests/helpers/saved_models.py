"""For tests of models: tiny ones of every family, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from dejavubench.models.gpt import GPT
from dejavubench.models.hub.checkpoint import open_checkpoint
from dejavubench.models.hub.shard import Shard
from dejavubench.models.loading import load_checkpoint
from helpers.reference_models import CONTEXT, FAMILIES, VOCAB, randomize

SMALL_FILES = "30KB"

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama_like(config: PretrainedConfig) -> PreTrainedModel:
    theirs = AutoModelForCausalLM.from_config(config)
    randomize(theirs)
    return theirs


def another_family(name: str) -> PreTrainedModel:
    return FAMILIES[name]()[1]


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: partial(another_family, name) for name in FAMILIES},
    "llama": lambda: llama_like(LlamaConfig(**SIZES)),
    "llama-tied-linear": lambda: llama_like(
        LlamaConfig(
            **SIZES,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        )
    ),
    "llama3": lambda: llama_like(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama-yarn": lambda: llama_like(LlamaConfig(**SIZES, rope_parameters=YARN)),
    "mistral": lambda: llama_like(MistralConfig(**SIZES, head_dim=16, sliding_window=48)),
    "qwen2": lambda: llama_like(Qwen2Config(**SIZES)),
    "qwen3": lambda: llama_like(Qwen3Config(**SIZES, head_dim=16)),
}


def save(theirs: PreTrainedModel, folder: Path, shards: bool = False) -> Path:
    theirs.save_pretrained(folder, max_shard_size=SMALL_FILES if shards else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == shards
    return folder


def save_model(family: str, folder: Path) -> Path:
    return save(MODELS[family](), folder)


def load_model(
    folder: Path,
    shard: Shard = Shard(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
    rounded_to: torch.dtype | None = None,
) -> GPT:
    """Return the model of a folder; see ``load_checkpoint`` for ``rounded_to``."""
    checkpoint = open_checkpoint(folder)
    model = GPT(checkpoint.spec, shard, dtype, torch.float32)
    load_checkpoint(model, checkpoint, rounded_to)
    return model
