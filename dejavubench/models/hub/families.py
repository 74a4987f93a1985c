"""The architectures of Hugging Face folders: their sizes, and the names of their tensors.

Names and layouts are those that ``save_pretrained`` of transformers writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dejavubench.models.hub.model_config import ModelConfig
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.rope_config import read_context, read_rope
from dejavubench.models.hub.tensor_file import CheckpointError

# ---- where our tensors are ----


@dataclass(frozen=True)
class StoredTensor:
    """Name and form that a folder keeps one of our tensors in.

    Attributes:
        name: name in the files, without the family's prefix.
        is_transposed: stored as [in, out].
        third: number of its third of a fused query, key and value.
        interleaved: elements of a head if query, key and value alternate head by head (BLOOM);
            0 if all queries come first, then all keys.
    """

    name: str
    is_transposed: bool = False
    third: int | None = None
    interleaved: int = 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its sizes from ``config.json``, and the names of its tensors.

    Attributes:
        prefixes: possible prefixes of the names in the files; all have one of them.
        spared: names of tensors that a folder may hold beside the model's: masks, and what is
            computed from sizes.
        requires: values of the configuration that are implemented; a key that is missing has them.
    """

    read_spec: Callable[[str, ModelConfig], ModelSpec]
    find_tensor: Callable[[str, int], StoredTensor]
    prefixes: tuple[str, ...]
    spared: re.Pattern[str]
    requires: Mapping[str, object] = field(default_factory=dict)


# ---- the families ----


def _read_gpt2_spec(name: str, config: ModelConfig) -> ModelSpec:
    hidden = config.read_size("n_embd")
    head_count, head_size = config.read_heads(hidden, "n_head")
    return ModelSpec(
        name=name,
        layer_num=config.read_size("n_layer"),
        head_num=head_count,
        size_per_head=head_size,
        vocab_size=config.read_size("vocab_size"),
        context=config.read_size("n_positions"),
        ffn_size=config.read_size("n_inner", default=4 * hidden),
    )


def _read_opt_spec(name: str, config: ModelConfig) -> ModelSpec:
    """Return the sizes of OPT; its 350m alone has norms behind and a projected embedding."""
    hidden = config.read_size("hidden_size")
    head_count, head_size = config.read_heads(hidden, "num_attention_heads")
    embed = config.read_size("word_embed_proj_dim", default=hidden)
    return ModelSpec(
        name=name,
        layer_num=config.read_size("num_hidden_layers"),
        head_num=head_count,
        size_per_head=head_size,
        vocab_size=config.read_size("vocab_size"),
        context=config.read_size("max_position_embeddings"),
        ffn_size=config.read_size("ffn_dim"),
        position_offset=2,
        activation="relu",
        norm_first=config.read_flag("do_layer_norm_before", True),
        embed_size=None if embed == hidden else embed,
    )


def _read_bloom_spec(name: str, config: ModelConfig) -> ModelSpec:
    """Return the sizes of BLOOM, whose keys have older and newer spellings."""
    hidden = config.read_size("hidden_size", "n_embed")
    head_count, head_size = config.read_heads(hidden, "n_head", "num_attention_heads")
    layer_count = config.read_size("n_layer", "num_hidden_layers")
    vocab_size = config.read_size("vocab_size")
    return ModelSpec(
        name=name,
        layer_num=layer_count,
        head_num=head_count,
        size_per_head=head_size,
        vocab_size=vocab_size,
        context=None,
        ffn_size=4 * hidden,
        position="alibi",
        embed_norm=True,
    )


def _read_llama_spec(name: str, config: ModelConfig) -> ModelSpec:
    """Return the sizes of Llama, Mistral, Qwen2 and Qwen3, which differ little."""
    hidden = config.read_size("hidden_size")
    head_count = config.read_size("num_attention_heads")
    kv_head_count = config.read_size("num_key_value_heads", default=head_count)
    if head_count % kv_head_count:
        raise CheckpointError(
            f"{config.path}: {kv_head_count} KV heads do not divide {head_count} heads"
        )
    head_size = config.read_size(
        "head_dim", default=0 if hidden % head_count else hidden // head_count
    )
    if head_size % 2:
        raise CheckpointError(
            f"{config.path}: rotary embeddings need an even size of a head, not {head_size}"
        )
    model_type = config.content["model_type"]
    rope = read_rope(config)
    context, limit = read_context(config, rope)
    bias = config.read_flag("attention_bias", False)
    if bias and model_type != "qwen2":  # whose biases do not depend on it
        raise CheckpointError(
            f"{config.path}: {model_type} with attention_bias True is not supported, only False"
        )
    return ModelSpec(
        name=name,
        layer_num=config.read_size("num_hidden_layers"),
        head_num=head_count,
        size_per_head=head_size,
        vocab_size=config.read_size("vocab_size"),
        context=context,
        ffn_size=config.read_size("intermediate_size"),
        position="rope",
        activation="silu",
        kv_head_num=None if kv_head_count == head_count else kv_head_count,
        width=None if hidden == head_count * head_size else hidden,
        rms=True,
        eps=config.read_number("rms_norm_eps", 1e-6),
        rope=rope,
        gated=True,
        qkv_bias=model_type == "qwen2",
        bias=False,
        qk_norm=model_type == "qwen3",
        tied=config.read_flag("tie_word_embeddings", False),
        limit=limit,
    )


_QKV = {"query": 0, "key": 1, "value": 2}


def _find_gpt2_tensor(name: str, size: int) -> StoredTensor:
    """Return how GPT-2 keeps a tensor: its linears are [in, out] (``Conv1D``)."""
    if name in ("embedding", "position"):
        return StoredTensor({"embedding": "wte.weight", "position": "wpe.weight"}[name])
    layer, tensor, parameter = _split(name)
    if layer is None:
        return StoredTensor(f"ln_f.{parameter}")
    if tensor in _QKV:
        return StoredTensor(
            f"h.{layer}.attn.c_attn.{parameter}", parameter == "weight", _QKV[tensor]
        )
    stored_name = {
        "norm1": "ln_1",
        "out": "attn.c_proj",
        "norm2": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }[tensor]
    return StoredTensor(
        f"h.{layer}.{stored_name}.{parameter}",
        parameter == "weight" and not tensor.startswith("norm"),
    )


def _find_opt_tensor(name: str, size: int) -> StoredTensor:
    """Return how OPT keeps a tensor."""
    outer_names = {"embedding": "embed_tokens.weight", "position": "embed_positions.weight"}
    if name in outer_names:
        return StoredTensor(outer_names[name])
    layer, tensor, parameter = _split(name)
    if layer is None:
        return StoredTensor(
            f"{'final_layer_norm' if tensor == 'final_norm' else tensor}.{parameter}"
        )  # project_in, project_out
    stored_name = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
        "norm1": "self_attn_layer_norm",
        "norm2": "final_layer_norm",
    }[tensor]
    return StoredTensor(f"layers.{layer}.{stored_name}.{parameter}")


def _find_bloom_tensor(name: str, size: int) -> StoredTensor:
    """Return how BLOOM keeps a tensor: queries, keys and values alternate by heads of ``size``."""
    if name == "embedding":
        return StoredTensor("word_embeddings.weight")
    layer, tensor, parameter = _split(name)
    if layer is None:
        stored_name = {"embed_norm": "word_embeddings_layernorm", "final_norm": "ln_f"}[tensor]
        return StoredTensor(f"{stored_name}.{parameter}")
    if tensor in _QKV:
        return StoredTensor(
            f"h.{layer}.self_attention.query_key_value.{parameter}", False, _QKV[tensor], size
        )
    stored_name = {
        "norm1": "input_layernorm",
        "out": "self_attention.dense",
        "norm2": "post_attention_layernorm",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }[tensor]
    return StoredTensor(f"h.{layer}.{stored_name}.{parameter}")


def _find_llama_tensor(name: str, size: int) -> StoredTensor:
    """Return how Llama and its kin keep a tensor."""
    outer_names = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}
    if name in outer_names:
        return StoredTensor(outer_names[name])
    layer, tensor, parameter = _split(name)
    if layer is None:
        return StoredTensor(f"model.norm.{parameter}")
    stored_name = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "query_norm": "self_attn.q_norm",
        "key_norm": "self_attn.k_norm",
        "out": "self_attn.o_proj",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }[tensor]
    return StoredTensor(f"model.layers.{layer}.{stored_name}.{parameter}")


def _split(name: str) -> tuple[int | None, str, str]:
    """Split a name: ``layers.3.up.weight`` → (3, "up", "weight")."""
    if match := re.fullmatch(r"layers\.(\d+)\.(\w+)\.(\w+)", name):
        return int(match[1]), match[2], match[3]
    tensor, _, parameter = name.partition(".")
    return None, tensor, parameter


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        read_spec=_read_gpt2_spec,
        find_tensor=_find_gpt2_tensor,
        prefixes=("transformer.", ""),
        spared=re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),
        requires={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    ),
    "opt": Family(
        read_spec=_read_opt_spec,
        find_tensor=_find_opt_tensor,
        prefixes=("model.decoder.", "decoder."),
        spared=re.compile(r"(model\.)?decoder\.version"),
        requires={
            "activation_function": "relu",
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "_remove_final_layer_norm": False,
            "tie_word_embeddings": True,
        },
    ),
    "bloom": Family(
        read_spec=_read_bloom_spec,
        find_tensor=_find_bloom_tensor,
        prefixes=("transformer.", ""),
        spared=re.compile(r"(transformer\.)?h\.\d+\.self_attention\.masked_bias"),
        requires={
            "layer_norm_epsilon": 1e-5,
            "apply_residual_connection_post_layernorm": False,
            "tie_word_embeddings": True,
        },
    ),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"),
        Family(
            read_spec=_read_llama_spec,
            find_tensor=_find_llama_tensor,
            prefixes=("",),
            spared=re.compile(
                r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
            ),
            requires={"hidden_act": "silu", "mlp_bias": False},
        ),
    ),
}
"""Each family by its ``model_type``."""
