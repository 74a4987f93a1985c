"""Published models by name, and models of free sizes; neither torch nor MPI is needed."""

from __future__ import annotations

import re
from pathlib import Path

from dejavubench.models.hub.model_spec import ModelSpec


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
    )
}
"""The paper's families in their published sizes, as in Hugging Face's models of these names."""

CUSTOM = "custom"
"""The name of a model of free sizes."""


def spec(name: str) -> ModelSpec:
    """Return the sizes of a named model.

    Raises:
        ValueError: no model has this name; the message names similar ones, or all.
    """
    if name in SPECS:
        return SPECS[name]
    shown = ascii(name) if len(name) <= 200 else f"{name[:200]!a}…"
    raise ValueError(f"unknown model {shown}; {_suggest_name(name)}")


def _suggest_name(name: str) -> str:
    """Return a hint for a name that no model has."""
    import difflib  # only to help with a misspelt name

    if _is_there(name):
        return f"a folder with a model of its own is given as --ckpt-path {name}"
    base_name = name.rstrip("/").rpartition("/")[2]  # openai-community/gpt2
    plain = {"bloom": "bloom-176b"} | {
        re.sub(r"[^a-z0-9.]", "", spec_name): spec_name for spec_name in SPECS
    }
    spelling = re.sub(r"[^a-z0-9.]", "", base_name.lower())
    if spelling in plain:
        return f"did you mean {plain[spelling]}?"
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


def custom(
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
