"""Rotary embeddings and the longest request, as ``config.json`` spells them.

Transformers 5 keeps all of the rotary embeddings in ``rope_parameters``, earlier versions in
``rope_theta`` and ``rope_scaling``. What is read means what transformers 5 makes of it
(``modeling_rope_utils.py``); the rest is refused.
"""

from __future__ import annotations

from math import log
from typing import Any

from dejavubench.models.hub.model_config import ModelConfig
from dejavubench.models.hub.model_spec import RopeSpec
from dejavubench.models.hub.tensor_file import CheckpointError

DEFAULT_THETA = 10000.0
"""Base of the frequencies where ``config.json`` gives none."""

KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds of scaling that are supported."""


def read_rope(config: ModelConfig) -> RopeSpec:
    """Return the rotary embeddings of all layers.

    Raises:
        CheckpointError: they are of another kind, or not the same in all layers; the message
            names the key.
    """
    rope_key = "rope_scaling" if config.content.get("rope_scaling") else "rope_parameters"
    rope_entries = _read_parameters_of_all_layers(
        config, rope_key, config.read_object(rope_key).content
    )
    rope_content = rope_entries.content
    for parameters, prefix in ((config.content, ""), (rope_content, f"{rope_key}.")):
        if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
            _refuse(
                config,
                f"{prefix}partial_rotary_factor",
                parameters["partial_rotary_factor"],
                "only 1 is supported",
            )
    # Older folders spell the key ``type``.
    rope_type = rope_content.get("rope_type", rope_content.get("type", "default"))
    if rope_type not in KINDS:
        spelling = "rope_type" if "rope_type" in rope_content else "type"
        raise CheckpointError(
            f"{config.path}: {rope_key}.{spelling}: rope of type {rope_type!r} is not supported; "
            f"{', '.join(KINDS)} are"
        )
    theta = _read_theta(config, rope_entries)
    # Frequencies are powers of 1 / theta: at 1 all would be equal, below it they would grow.
    if theta <= 1:
        _refuse(config, "rope_theta", theta, "it must be more than 1")
    if rope_type == "default":
        return RopeSpec(theta)
    factor = rope_entries.read_number("factor", None)
    if rope_type == "linear":
        return RopeSpec(theta, "linear", factor)
    context = _read_original_context(config, rope_entries)
    if rope_type == "llama3":
        low_factor, high_factor = (
            rope_entries.read_number("low_freq_factor", None),
            rope_entries.read_number("high_freq_factor", None),
        )
        if high_factor <= low_factor:
            _refuse(
                config,
                f"{rope_key}.high_freq_factor",
                high_factor,
                f"it must be more than low_freq_factor, {low_factor:g}",
            )
        return RopeSpec(
            theta=theta,
            kind="llama3",
            factor=factor,
            low=low_factor,
            high=high_factor,
            original_context=context,
        )
    return _read_yarn(config, rope_key, rope_entries, theta, factor, context)


def _read_yarn(
    config: ModelConfig,
    key: str,
    rope_entries: ModelConfig,
    theta: float,
    factor: float,
    context: int,
) -> RopeSpec:
    """Return embeddings stretched by YaRN (Peng et al. 2023, arXiv 2309.00071).

    Args:
        key: the key in ``config.json`` that ``rope_entries`` was read from.
        context: the length before stretching.
    """
    content = rope_entries.content
    # Variants of yarn that scale attention, or round the bounds, in another way.
    for refused_key, usual_value in (
        ("mscale", None),
        ("mscale_all_dim", None),
        ("truncate", True),
    ):
        if content.get(refused_key, usual_value) is not usual_value:
            _refuse(config, f"{key}.{refused_key}", content[refused_key], "only yarn without it is")
    slow_turns, fast_turns = (
        rope_entries.read_number("beta_slow", 1.0),
        rope_entries.read_number("beta_fast", 32.0),
    )
    # The paper's default, which never falls below 1.
    attention = rope_entries.read_number("attention_factor", 0.1 * log(max(factor, 1.0)) + 1.0)
    return RopeSpec(
        theta=theta,
        kind="yarn",
        factor=factor,
        low=slow_turns,
        high=fast_turns,
        original_context=context,
        attention=attention,
    )


def read_context(config: ModelConfig, rope: RopeSpec) -> tuple[int, str | None]:
    """Return the most positions of a request, and the key that bounds them.

    The key is None if the bound is the model's length.

    Within a sliding window's length every token attends to all earlier ones: no window is needed.
    Stretched embeddings reach beyond ``max_position_embeddings`` if that is the length before
    stretching.
    """
    context = config.read_size("max_position_embeddings")
    if rope.kind == "yarn":
        context = max(context, int(rope.factor * rope.original_context))
    if rope.kind == "linear":
        context = max(context, int(rope.factor * context))
    window = _read_window(config)
    return (
        (window, "sliding_window") if window is not None and window < context else (context, None)
    )


def _read_window(config: ModelConfig) -> int | None:
    """Return the sliding window of any layer, as transformers reads each family's configuration."""
    model_type = config.content["model_type"]
    if model_type == "llama":
        return None
    default = 4096  # of both families, where the key is missing; null means none
    window = config.content.get("sliding_window", default)
    if model_type == "mistral":
        return None if window is None else config.read_size("sliding_window", default=default)
    layers = config.read_size("num_hidden_layers")
    layer_types = config.content.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list) or len(layer_types) != layers:
            _refuse(
                config,
                "layer_types",
                layer_types,
                f"it must name the kind of each of {layers} layers",
            )
        if other_types := [
            layer_type
            for layer_type in layer_types
            if layer_type not in ("full_attention", "sliding_attention")
        ]:
            _refuse(
                config,
                "layer_types",
                other_types[0],
                "only full_attention and sliding_attention are supported",
            )
    has_window = config.read_flag("use_sliding_window", False) and window is not None
    if not has_window:
        if layer_types is not None and "sliding_attention" in layer_types:
            _refuse(
                config,
                "layer_types",
                "sliding_attention",
                "use_sliding_window and sliding_window do not allow it",
            )
        return None
    if layer_types is None:
        # As in Qwen2's configuration: the first layers attend to everything, later ones slide.
        full_layers = config.content.get("max_window_layers", 28)
        if not isinstance(full_layers, int) or isinstance(full_layers, bool) or full_layers < 0:
            _refuse(config, "max_window_layers", full_layers, "it must be a number of layers")
        layer_types = ["sliding_attention"] * max(layers - full_layers, 0)
    return (
        config.read_size("sliding_window", default=default)
        if "sliding_attention" in layer_types
        else None
    )


def _read_parameters_of_all_layers(
    config: ModelConfig, key: str, by_layer_type: Any
) -> ModelConfig:
    """Return the parameters of all layers, which may be nested by the layers' types."""
    nested_keys = [name for name, value in by_layer_type.items() if isinstance(value, dict)]
    if not nested_keys:
        return ModelConfig(config.path, by_layer_type)
    types = config.content.get("layer_types")
    used_types = (
        sorted(set(map(str, types))) if isinstance(types, list) and types else sorted(by_layer_type)
    )
    if flat_keys := sorted(by_layer_type.keys() - set(nested_keys)):
        _refuse(
            config,
            f"{key}.{flat_keys[0]}",
            by_layer_type[flat_keys[0]],
            f"it stands beside parameters of {nested_keys[0]} alone",
        )
    if missing_types := [name for name in used_types if name not in by_layer_type]:
        raise CheckpointError(
            f"{config.path}: {key} has no parameters for layers of type {missing_types[0]!r}"
        )
    if any(by_layer_type[name] != by_layer_type[used_types[0]] for name in used_types):
        raise CheckpointError(
            f"{config.path}: {key} differs between layers of type {' and '.join(used_types)}; "
            "only one for all is supported"
        )
    return ModelConfig(config.path, by_layer_type[used_types[0]])


def _read_theta(config: ModelConfig, rope_entries: ModelConfig) -> float:
    """Return the base of the frequencies; a null fails, as in transformers."""
    for source in (rope_entries, config):
        if "rope_theta" in source.content:
            return source.read_number("rope_theta", None)
    return DEFAULT_THETA


def _read_original_context(config: ModelConfig, rope_entries: ModelConfig) -> int:
    """Return the length before stretching.

    As in transformers the outer key wins, and the default is the model's length.
    """
    key = "original_max_position_embeddings"
    source = config if config.content.get(key) is not None else rope_entries
    return source.read_size(key, default=config.read_size("max_position_embeddings"))


def _refuse(config: ModelConfig, key: str, value: object, reason: str) -> None:
    raise CheckpointError(f"{config.path}: {key} {value!r} is not supported: {reason}")
