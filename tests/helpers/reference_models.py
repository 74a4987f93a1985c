"""For tests of models: Hugging Face's beside ours with the same weights, and comparisons."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout
from dejavubench.models.gpt import GPT
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Shard

PROMPT, STEPS, BATCH, VOCAB = 9, 32, 3, 101

CONTEXT = 64

Weights = Callable[[str], Tensor]


def gpt2() -> tuple[ModelSpec, PreTrainedModel, Weights]:
    spec = ModelSpec(
        "tiny-gpt2",
        layer_num=3,
        head_num=4,
        size_per_head=8,
        vocab_size=VOCAB,
        context=CONTEXT,
        ffn_size=128,
    )
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=3, n_head=4)
    )
    state = randomize(theirs)

    def full(name: str) -> Tensor:
        part = {"query": 0, "key": 1, "value": 2}
        if match := re.fullmatch(r"layers\.(\d+)\.(query|key|value)\.(weight|bias)", name):
            fused_weight = state[f"transformer.h.{match[1]}.attn.c_attn.{match[3]}"]
            return fused_weight.chunk(3, dim=-1)[part[match[2]]].t()  # their linears are [in, out]
        name = name.replace("layers.", "transformer.h.")
        name = (
            name.replace(".norm1.", ".ln_1.")
            .replace(".norm2.", ".ln_2.")
            .replace("final_norm", "transformer.ln_f")
        )
        name = (
            name.replace(".out.", ".attn.c_proj.")
            .replace(".up.", ".mlp.c_fc.")
            .replace(".down.", ".mlp.c_proj.")
        )
        tensor = state[
            {"embedding": "transformer.wte.weight", "position": "transformer.wpe.weight"}.get(
                name, name
            )
        ]
        return tensor.t() if ".c_" in name else tensor

    return spec, theirs, full


def opt(norm_first: bool) -> tuple[ModelSpec, PreTrainedModel, Weights]:
    embed = 32 if norm_first else 16
    spec = ModelSpec(
        "tiny-opt",
        layer_num=3,
        head_num=4,
        size_per_head=8,
        vocab_size=VOCAB,
        context=CONTEXT,
        ffn_size=128,
        position_offset=2,
        activation="relu",
    )
    if not norm_first:
        spec = replace(spec, norm_first=False, embed_size=embed)
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        ffn_dim=128,
        max_position_embeddings=CONTEXT,
        do_layer_norm_before=norm_first,
        word_embed_proj_dim=embed,
        num_attention_heads=4,
    )
    theirs = OPTForCausalLM(config)
    state = randomize(theirs)
    names_of_transformers = {
        "embedding": "embed_tokens.weight",
        "position": "embed_positions.weight",
        ".norm1.": ".self_attn_layer_norm.",
        ".norm2.": ".final_layer_norm.",
        "final_norm": "final_layer_norm",
        ".query.": ".self_attn.q_proj.",
        ".key.": ".self_attn.k_proj.",
        ".value.": ".self_attn.v_proj.",
        ".out.": ".self_attn.out_proj.",
        ".up.": ".fc1.",
        ".down.": ".fc2.",
    }

    def full(name: str) -> Tensor:
        for ours, their_name in names_of_transformers.items():
            name = name.replace(ours, their_name)
        return state[f"model.decoder.{name}"]

    return spec, theirs, full


def bloom(heads: int) -> tuple[ModelSpec, PreTrainedModel, Weights]:
    hidden = heads * 8
    spec = ModelSpec(
        "tiny-bloom",
        layer_num=3,
        head_num=heads,
        size_per_head=8,
        vocab_size=VOCAB,
        context=None,
        ffn_size=4 * hidden,
        position="alibi",
        embed_norm=True,
    )
    theirs = BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB, hidden_size=hidden, n_layer=3, n_head=heads)
    )
    state = randomize(theirs)
    names_of_transformers = {
        "embedding": "word_embeddings.weight",
        "embed_norm": "word_embeddings_layernorm",
        "layers.": "h.",
        ".norm1.": ".input_layernorm.",
        ".norm2.": ".post_attention_layernorm.",
        "final_norm": "ln_f",
        ".out.": ".self_attention.dense.",
        ".up.": ".mlp.dense_h_to_4h.",
        ".down.": ".mlp.dense_4h_to_h.",
    }

    def full(name: str) -> Tensor:
        part = {"query": 0, "key": 1, "value": 2}
        if match := re.fullmatch(r"layers\.(\d+)\.(query|key|value)\.(weight|bias)", name):
            fused_weight = state[
                f"transformer.h.{match[1]}.self_attention.query_key_value.{match[3]}"
            ]
            # BLOOM interleaves query, key and value head by head.
            return fused_weight.unflatten(0, (heads, 3, 8))[:, part[match[2]]].flatten(0, 1)
        for ours, their_name in names_of_transformers.items():
            name = name.replace(ours, their_name)
        return state[f"transformer.{name}"]

    return spec, theirs, full


def randomize(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return its state with random tensors: no bias is 0, no norm 1, and attention not uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.15, generator=generator))
    model.eval()
    return model.state_dict()


FAMILIES: dict[str, Callable[[], tuple[ModelSpec, PreTrainedModel, Weights]]] = {
    "gpt2": gpt2,
    "opt": lambda: opt(norm_first=True),
    "opt-post-norm": lambda: opt(norm_first=False),
    "bloom": lambda: bloom(heads=4),
    "bloom-6-heads": lambda: bloom(heads=6),
}


def build(
    spec: ModelSpec,
    weights: Weights,
    shard: Shard = Shard(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
) -> GPT:
    model = GPT(spec, shard, dtype, torch.float32)
    model.load(weights)
    return model


def cache_of_nan(
    model: GPT, requests: int, positions: int, layout: KVLayout = KVLayout.HND
) -> KVCache:
    """Return a cache full of NaN, so that a read of an unwritten position shows."""
    cache = KVCache.allocate(model.kv_geometry(requests, positions, layout), model.dtype)
    cache.fill(0xFF)
    assert cache.k.isnan().all()
    return cache


def prompts(vocab: int = VOCAB, requests: int = BATCH, length: int = PROMPT) -> Tensor:
    return torch.randint(vocab, (requests, length), generator=torch.Generator().manual_seed(1))


def require_close(ours: Tensor, theirs: Tensor, within: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= within * theirs.abs().max()


GPT2 = ModelSpec(
    "small", layer_num=3, head_num=4, size_per_head=8, vocab_size=VOCAB, context=256, ffn_size=128
)

BLOOM = ModelSpec(
    "small-alibi",
    layer_num=3,
    head_num=6,
    size_per_head=8,
    vocab_size=VOCAB,
    context=None,
    ffn_size=192,
    position="alibi",
    embed_norm=True,
)

OPT_POST = ModelSpec(
    "small-post-norm",
    layer_num=3,
    head_num=4,
    size_per_head=8,
    vocab_size=VOCAB,
    context=256,
    ffn_size=128,
    position_offset=2,
    activation="relu",
    norm_first=False,
    embed_size=16,
)


class Gathered:
    """The collectives of one rank, once all others' contributions are known."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def all_reduce(self, x: Tensor) -> Tensor:
        raise AssertionError("logits need no sum")

    def all_gather(self, x: Tensor) -> Tensor:
        self.parts.append(x)
        return torch.stack([self.parts[i % len(self.parts)] for i in range(3)])
