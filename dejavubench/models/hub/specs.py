"""Published models by name, and models of free sizes; neither torch nor MPI is needed."""

from __future__ import annotations

import re
from pathlib import Path

from dejavubench.models.hub.model_spec import ModelSpec, RopeSpec


def _make_gpt2(name: str, layer_num: int, head_num: int) -> ModelSpec:
    return ModelSpec(
        name, layer_num, head_num, 64, vocab_size=50257, context=1024, ffn_size=4 * head_num * 64
    )


def _make_opt(
    name: str, layer_num: int, head_num: int, size_per_head: int, embed_size: int | None = None
) -> ModelSpec:
    """Return the sizes of a published OPT; only 350m has ``embed_size``, and norms behind."""
    return ModelSpec(
        name,
        layer_num,
        head_num,
        size_per_head,
        vocab_size=50272,
        context=2048,
        ffn_size=4 * head_num * size_per_head,
        position_offset=2,
        activation="relu",
        norm_first=embed_size is None,
        embed_size=embed_size,
    )


def _make_bloom(name: str, layer_num: int, head_num: int, size_per_head: int) -> ModelSpec:
    return ModelSpec(
        name,
        layer_num,
        head_num,
        size_per_head,
        vocab_size=250880,
        context=None,
        ffn_size=4 * head_num * size_per_head,
        position="alibi",
        embed_norm=True,
    )


def _make_llama3(
    name: str,
    layer_num: int,
    head_num: int,
    size_per_head: int,
    ffn_size: int,
    rope_factor: float,
    tied: bool = False,
) -> ModelSpec:
    """Return the sizes of a published Llama 3.1 or 3.2; the small ones of 3.2 are tied."""
    return ModelSpec(
        name,
        layer_num,
        head_num,
        size_per_head,
        vocab_size=128256,
        context=131072,
        ffn_size=ffn_size,
        position="rope",
        activation="silu",
        kv_head_num=8,
        rms=True,
        eps=1e-5,
        rope=RopeSpec(theta=500000.0, kind="llama3", factor=rope_factor),
        gated=True,
        qkv_bias=False,
        bias=False,
        tied=tied,
    )


def _make_qwen3(
    name: str, layer_num: int, head_num: int, width: int, ffn_size: int, tied: bool = False
) -> ModelSpec:
    """Return the sizes of a published Qwen3, whose heads have 128 elements each."""
    return ModelSpec(
        name,
        layer_num,
        head_num,
        128,
        vocab_size=151936,
        context=40960,
        ffn_size=ffn_size,
        position="rope",
        activation="silu",
        kv_head_num=8,
        width=None if width == 128 * head_num else width,
        rms=True,
        eps=1e-6,
        rope=RopeSpec(theta=1000000.0),
        gated=True,
        qkv_bias=False,
        bias=False,
        qk_norm=True,
        tied=tied,
    )


SPECS: dict[str, ModelSpec] = {
    model.name: model
    for model in (
        _make_gpt2("gpt2", 12, 12),
        _make_gpt2("gpt2-medium", 24, 16),
        _make_gpt2("gpt2-large", 36, 20),
        _make_gpt2("gpt2-xl", 48, 25),
        _make_opt("opt-125m", 12, 12, 64),
        _make_opt("opt-350m", 24, 16, 64, embed_size=512),
        _make_opt("opt-1.3b", 24, 32, 64),
        _make_opt("opt-2.7b", 32, 32, 80),
        _make_opt("opt-6.7b", 32, 32, 128),
        _make_opt("opt-13b", 40, 40, 128),
        _make_opt("opt-30b", 48, 56, 128),
        _make_opt("opt-66b", 64, 72, 128),
        _make_bloom("bloom-560m", 24, 16, 64),
        _make_bloom("bloom-1b1", 24, 16, 96),
        _make_bloom("bloom-1b7", 24, 16, 128),
        _make_bloom("bloom-3b", 30, 32, 80),
        _make_bloom("bloom-7b1", 30, 32, 128),
        _make_bloom("bloom-176b", 70, 112, 128),
        _make_llama3("llama-3.2-1b", 16, 32, 64, 8192, rope_factor=32.0, tied=True),
        _make_llama3("llama-3.2-3b", 28, 24, 128, 8192, rope_factor=32.0, tied=True),
        _make_llama3("llama-3.1-8b", 32, 32, 128, 14336, rope_factor=8.0),
        _make_llama3("llama-3.1-70b", 80, 64, 128, 28672, rope_factor=8.0),
        _make_qwen3("qwen3-0.6b", 28, 16, 1024, 3072, tied=True),
        _make_qwen3("qwen3-4b", 36, 32, 2560, 9728, tied=True),
        _make_qwen3("qwen3-8b", 36, 32, 4096, 12288),
        _make_qwen3("qwen3-32b", 64, 64, 5120, 25600),
    )
}
"""The paper's families and two of today's, in their published sizes, as Hugging Face has them."""

CUSTOM = "custom"
"""The name of a model of free sizes."""

LONGEST_SHOWN_NAME = 40
"""Characters of an unknown name that a message shows beside the list of all names."""


def find_spec(name: str) -> ModelSpec:
    """Return the sizes of a named model.

    Raises:
        ValueError: no model has this name; the message names similar ones, or all.
    """
    if name in SPECS:
        return SPECS[name]
    raise ValueError(f"unknown model {_show_name(name)}; {_suggest_name(name)}")


def _show_name(name: str) -> str:
    """Return a name in quotes, for a message of one line."""
    quoted = ascii(name)
    return quoted if len(quoted) <= LONGEST_SHOWN_NAME else f"{quoted[:LONGEST_SHOWN_NAME]}…"


def _suggest_name(name: str) -> str:
    """Return a hint for a name that no model has."""
    import difflib  # only to help with a misspelt name

    if _is_there(name):
        return f"a folder with a model of its own is given as --ckpt-path {name}"
    base_name = name.rstrip("/").rpartition("/")[2]  # openai-community/gpt2
    name_by_spelling = {"bloom": "bloom-176b"} | {
        re.sub(r"[^a-z0-9.]", "", spec_name): spec_name for spec_name in SPECS
    }
    spelling = re.sub(r"[^a-z0-9.]", "", base_name.lower())
    if spelling in name_by_spelling:
        return f"did you mean {name_by_spelling[spelling]}?"
    similar_names = difflib.get_close_matches(base_name.lower(), SPECS, n=3)
    advice = "for any other model download its folder and give it as --ckpt-path"
    is_path = "/" in name or name[:1] in (".", "~")
    if similar_names:
        return f"did you mean {' or '.join(similar_names)}?{f' Else: {advice}' if is_path else ''}"
    return advice if is_path else f"known are {', '.join(SPECS)} and {CUSTOM}; {advice}"


def _is_there(name: str) -> bool:
    """Return whether there is a file or folder of this name."""
    try:
        return name not in ("", ".", "..") and Path(name).exists()
    except (OSError, ValueError):
        return False


def make_custom_spec(
    layer_num: int, head_num: int, size_per_head: int, vocab_size: int, context: int
) -> ModelSpec:
    """Return a GPT-2-like model of free sizes with ``context`` learned positions."""
    return ModelSpec(
        name=CUSTOM,
        layer_num=layer_num,
        head_num=head_num,
        size_per_head=size_per_head,
        vocab_size=vocab_size,
        context=context,
        ffn_size=4 * head_num * size_per_head,
    )
