"""Rotary embeddings and sliding windows: read as transformers does, or refused with the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dejavubench.config.resolve import load
from dejavubench.errors import UsageError
from dejavubench.models.hub.checkpoint import open_checkpoint
from dejavubench.models.hub.model_spec import RopeSpec
from dejavubench.models.hub.tensor_file import CheckpointError
from helpers.model_folders import CONTEXT, configure, require_logits_of_transformers, tiny

SPELLINGS = ("rope_parameters", "rope_scaling", "rope_theta")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def folder_with_rope(folder: Path, kind: str = "llama", **keys: Any) -> Path:
    """Make a folder whose configuration says no more of its rope than ``keys``."""
    model_folder = tiny(folder, kind)
    configure(model_folder, drop=tuple(set(SPELLINGS) - keys.keys()), **keys)
    return model_folder


def rope(folder: Path, **keys: Any) -> RopeSpec | None:
    return open_checkpoint(folder_with_rope(folder, **keys)).spec.rope


READ: dict[str, tuple[dict[str, Any], RopeSpec]] = {
    "old": ({"rope_theta": 5e5}, RopeSpec(5e5)),
    "old with null": ({"rope_theta": 5e5, "rope_scaling": None}, RopeSpec(5e5)),
    "new": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeSpec(5e5)),
    "new without a type": ({"rope_parameters": {"rope_theta": 5e5}}, RopeSpec(5e5)),
    "null beside new": (
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}},
        RopeSpec(5e5),
    ),
    "inner before outer": (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}},
        RopeSpec(5e5),
    ),
    "outer for inner": (
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
        RopeSpec(5e5),
    ),
    "old before new": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5}},
        RopeSpec(theta=1e4, kind="linear", factor=2.0),
    ),
    "neither": ({}, RopeSpec(1e4)),
    "a factor that default ignores": (
        {"rope_scaling": {"type": "default", "factor": 8.0}},
        RopeSpec(1e4),
    ),
    "inner length missing": (
        {"rope_scaling": LLAMA3},
        RopeSpec(theta=1e4, kind="llama3", factor=8.0, low=1.0, high=4.0, original_context=CONTEXT),
    ),
    "outer length first": (
        {
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16},
            "original_max_position_embeddings": 32,
        },
        RopeSpec(theta=1e4, kind="llama3", factor=8.0, low=1.0, high=4.0, original_context=32),
    ),
}


@pytest.mark.parametrize("spelling", READ)
def test_every_spelling_means_what_transformers_makes_of_it(spelling: str, tmp_path: Path) -> None:
    keys, expected = READ[spelling]
    folder = folder_with_rope(tmp_path / "model", **keys)
    assert open_checkpoint(folder).spec.rope == expected
    require_logits_of_transformers(folder, 20)


@pytest.mark.parametrize("types", [["full_attention"] * 2, None], ids=["layer_types", "without"])
def test_parameters_nested_by_layer_type_are_read_where_they_are_the_same_for_all(
    types: list[str] | None, tmp_path: Path
) -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
    keys = {"rope_parameters": nested, **({"layer_types": types} if types else {})}
    assert rope(tmp_path / "model", **keys) == RopeSpec(5e5)


DEFAULT = {"rope_type": "default"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        r"rope_scaling\.type: rope of type 'dynamic' is not supported; "
        "default, linear, llama3, yarn are",
    ),
    "longrope": (
        {"rope_parameters": {"rope_type": "longrope"}},
        r"rope_parameters\.rope_type: rope of type 'longrope'",
    ),
    "no type": (
        {"rope_parameters": {"rope_type": None, "rope_theta": 1e4}},
        r"rope_parameters\.rope_type: rope of type None",
    ),
    "null for theta": (
        {"rope_parameters": {"rope_theta": None}},
        "rope_theta must be a positive number, not None",
    ),
    "null outside": ({"rope_theta": None}, "rope_theta must be a positive number, not None"),
    "1 for theta": (
        {"rope_theta": 1, "rope_scaling": YARN},
        r"rope_theta 1\.0 is .*: it must be more than 1",
    ),
    "negative": ({"rope_theta": -1}, "rope_theta must be a positive number, not -1"),
    "text": ({"rope_scaling": "yarn"}, "rope_scaling must be an object, not 'yarn'"),
    "no factor": (
        {"rope_scaling": {"type": "linear"}},
        "factor must be a positive number, not None",
    ),
    "part of a head": (
        {"partial_rotary_factor": 0.5},
        r"partial_rotary_factor 0\.5 is not supported: only 1",
    ),
    "part, inside": (
        {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}},
        r"rope_parameters\.partial_rotary_factor 0\.5",
    ),
    "yarn's mscale": (
        {"rope_scaling": YARN | {"mscale": 1.0}},
        r"rope_scaling\.mscale 1\.0 is not supported",
    ),
    "llama3 upside down": (
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        r"rope_scaling\.high_freq_factor 1\.0 is not supported: "
        "it must be more than low_freq_factor",
    ),
    "nested and different": (
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": DEFAULT,
                "sliding_attention": DEFAULT | {"rope_theta": 7.0},
            },
        },
        "rope_parameters differs between layers of type full_attention and sliding_attention",
    ),
    "nested and missing": (
        {
            "layer_types": ["full_attention", "other"],
            "rope_parameters": {"full_attention": DEFAULT},
        },
        "rope_parameters has no parameters for layers of type 'other'",
    ),
    "nested and flat": (
        {"rope_parameters": {"full_attention": DEFAULT, "rope_theta": 5e5}},
        r"rope_parameters\.rope_theta 500000\.0 is not supported: it stands beside",
    ),
}


@pytest.mark.parametrize("spelling", REFUSED)
def test_an_unsupported_rope_setting_is_refused_with_its_key(spelling: str, tmp_path: Path) -> None:
    keys, words = REFUSED[spelling]
    with pytest.raises(CheckpointError, match=f"config.json: {words}"):
        open_checkpoint(folder_with_rope(tmp_path / "model", **keys))


# ---- beyond the original length ----


STRETCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5's README": ("qwen2", {"rope_theta": 1e6, "rope_scaling": YARN}),
    "type in the old way": (
        "qwen2",
        {"rope_scaling": {"type": "yarn", **{k: YARN[k] for k in ("factor",)}}},
    ),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "length after stretching": (
        "qwen3",
        {"rope_scaling": YARN | {"original_max_position_embeddings": 16}},
    ),
}


@pytest.mark.parametrize("spelling", STRETCHED)
def test_stretched_embeddings_reach_as_far_as_they_are_stretched(
    spelling: str, tmp_path: Path
) -> None:
    kind, keys = STRETCHED[spelling]
    folder = folder_with_rope(tmp_path / "model", kind, **keys)
    reach = CONTEXT if "after" in spelling else 4 * CONTEXT
    assert open_checkpoint(folder).spec.context == reach
    require_logits_of_transformers(folder, reach)
    sizes = {"ckpt_path": folder, "device": "cpu", "output_len": 2}
    assert load(None, sizes | {"input_len": reach - 1}, {}).points[0].problem is None
    with pytest.raises(UsageError, match=f"take {reach + 1} positions, but model has {reach}$"):
        load(None, sizes | {"input_len": reach}, {})


# ---- sliding windows ----


WINDOWS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "mistral": ("mistral", {"sliding_window": 24}, 24),
    "mistral with a key that it does not know": (
        "mistral",
        {"sliding_window": 24, "use_sliding_window": False},
        24,
    ),
    "mistral without": ("mistral", {"sliding_window": None}, None),
    "mistral, longer than the model": ("mistral", {"sliding_window": 4096}, None),
    "llama has none": ("llama", {"sliding_window": 24}, None),
    "qwen2, not used": ("qwen2", {"sliding_window": 24, "use_sliding_window": False}, None),
    "qwen2, used by no layer": (
        "qwen2",
        {
            "sliding_window": 24,
            "use_sliding_window": True,
            "max_window_layers": 2,
            "layer_types": None,
        },
        None,
    ),
    "qwen2, used by the last layer": (
        "qwen2",
        {
            "sliding_window": 24,
            "use_sliding_window": True,
            "max_window_layers": 1,
            "layer_types": None,
        },
        24,
    ),
    "qwen3, by layer types": (
        "qwen3",
        {
            "sliding_window": 24,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        24,
    ),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_a_request_within_a_sliding_window_is_right_and_a_longer_one_refused_with_the_key(
    case: str, tmp_path: Path
) -> None:
    kind, keys, window = WINDOWS[case]
    folder = tiny(tmp_path / "model", kind)
    configure(folder, **keys)
    spec = open_checkpoint(folder).spec
    assert (spec.context, spec.limit) == (
        (CONTEXT, None) if window is None else (window, "sliding_window")
    )
    require_logits_of_transformers(folder, window or CONTEXT)
    sizes = {"ckpt_path": folder, "device": "cpu", "output_len": 2}
    if window is not None:
        with pytest.raises(
            UsageError,
            match=f"model has {window} \\(its sliding_window: leaving out earlier tokens",
        ):
            load(None, sizes | {"input_len": window}, {})
        with pytest.raises(
            UsageError,
            match=r"max-seq-len 40 is more than the 24 positions of model .*sliding_window",
        ):
            load(None, sizes | {"input_len": 4, "max_seq_len": 40}, {})


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        (
            "mistral",
            {"sliding_window": "24"},
            "sliding_window must be a positive integer, not '24'",
        ),
        (
            "mistral",
            {"sliding_window": True},
            "sliding_window must be a positive integer, not True",
        ),
        (
            "qwen2",
            {"layer_types": ["chunked_attention"] * 2},
            "layer_types 'chunked_attention' is not supported",
        ),
        (
            "qwen2",
            {"layer_types": ["full_attention"]},
            "layer_types .* must name the kind of each of 2 layers",
        ),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 2},
            "use_sliding_window and sliding_window do not allow it",
        ),
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
    ],
)
def test_a_window_of_another_kind_is_refused_with_its_key(
    kind: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "model", kind)
    configure(folder, **keys)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)
