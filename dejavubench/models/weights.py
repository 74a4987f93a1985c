"""Random weights from a seed: the same values whatever the tensor- and pipeline-parallel split.

Each full tensor is drawn from a generator of its own, seeded by (seed, name), and scaled so that
a wrong KV cache shows. Three things would hide a wrong cache. A large tied embedding: greedy
decoding echoes its input. Weak queries and keys: attention is the same mean for every token. A
large common component, from attention or a rectified activation: generation settles on one token.
The scales below were found by trying; tests check that a wrong cache shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import sqrt

import torch
from torch import Tensor

from dejavubench.models.dtypes import name_of
from dejavubench.models.hub.model_spec import ModelSpec

RECIPE = 1
"""Part of the identity: raise it when anything below changes the values."""

SCORE_GAIN = 1.4
"""Gain of queries and keys: attention scores of normed input then have a deviation of 1.4²."""


@dataclass(frozen=True)
class InitialScales:
    """Sizes of the first layer's input and of a layer's two outputs.

    ``embed`` is the standard deviation of the first layer's input, ``out`` and ``down`` are gains.

    A linear of gain g turns inputs of standard deviation 1 into outputs of g.
    """

    embed: float
    out: float
    down: float


NORM_FIRST = InitialScales(embed=0.02, out=0.3, down=1.0)
"""Scales of models with norms before attention and MLP."""

NORM_AFTER = InitialScales(embed=0.1, out=0.3, down=0.5)  # each norm shrinks what came before it
"""Scales of models with norms after them."""


@dataclass(frozen=True)
class TensorRecipe:
    """Shape and distribution that one full tensor is drawn from.

    Attributes:
        std: standard deviation of values uniform around 0; where it is 0, all values are ``fill``.
        is_opposed: columns come in pairs of opposite sign, so that equal inputs cancel: the mean of
            a rectified activation, which is much the same for every token.
    """

    shape: tuple[int, ...]
    std: float
    fill: float = 0.0
    is_opposed: bool = False


GAINS = {"query": SCORE_GAIN, "key": SCORE_GAIN}
"""Gains of linears that have neither 1 nor one of :class:`InitialScales`."""

BIAS = 0.02
"""Standard deviation of biases."""


def list_recipes(spec: ModelSpec) -> dict[str, TensorRecipe]:
    """Return how every tensor of the unsplit model is drawn, by name."""
    scales = NORM_FIRST if spec.norm_first else NORM_AFTER
    gains = {**GAINS, "out": scales.out, "down": scales.down}

    def choose_recipe(name: str, shape: tuple[int, ...]) -> TensorRecipe:
        tensor, parameter = name.rsplit(".", 2)[-2:] if "." in name else (name, "table")
        if parameter == "table":
            return TensorRecipe(shape, scales.embed)
        if "norm" in tensor:
            scale = scales.embed if tensor == "embed_norm" else 1.0
            return TensorRecipe(shape, 0.0, fill=scale if parameter == "weight" else 0.0)
        if parameter == "bias":
            return TensorRecipe(shape, BIAS)
        return TensorRecipe(
            shape, gains.get(tensor, 1.0) / sqrt(shape[1]), is_opposed=tensor == "down"
        )

    return {name: choose_recipe(name, shape) for name, shape in spec.tensors.items()}


def make_random_weights(
    spec: ModelSpec,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[str], Tensor]:
    """Return a source of full tensors by name, for :meth:`GPT.load`; it keeps nothing.

    The distribution is uniform, not normal: it needs no transcendental functions, so the bits are
    the same on every CPU.

    Args:
        device, dtype: device and type that tensors are drawn on and in. A CUDA device draws in the
            model's own type, so that it never holds a tensor twice. Its values are not a CPU's.
    """
    all_recipes = list_recipes(spec)

    def read_full(name: str) -> Tensor:
        """Draw the full tensor of a name, from a generator of its own."""
        recipe = all_recipes[name]
        if recipe.std == 0.0:
            return torch.full(recipe.shape, recipe.fill, device=device, dtype=dtype)
        # A generator for each tensor: the order of loading, and the split, do not matter.
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
        *rows, column_count = recipe.shape
        width = (column_count + 1) // 2 if recipe.is_opposed else column_count
        drawn_values = torch.empty(*rows, width, device=device, dtype=dtype)
        # Uniform on ±1 has a variance of 1/3.
        drawn_values.uniform_(-1.0, 1.0, generator=generator).mul_(sqrt(3.0) * recipe.std)
        return (
            torch.stack((drawn_values, -drawn_values), dim=-1).flatten(-2)[..., :column_count]
            if recipe.is_opposed
            else drawn_values
        )

    return read_full


FIRST_FIELDS = frozenset(
    {
        *("layer_num", "head_num", "size_per_head", "vocab_size", "context", "ffn_size"),
        *("position", "position_offset", "activation", "norm_first", "embed_norm", "embed_size"),
    }
)
"""Fields that every identity contains.

The list is closed: a field that is added to ModelSpec counts only if it differs from its default.
So identities of models without the field stay the same.
"""

NO_VALUES = frozenset({"name", "limit"})
"""Fields that do not change the weights' values."""

DEFAULTS = {field.name: field.default for field in fields(ModelSpec)}
"""Default of each field of a specification."""


def identify_weights(
    spec: ModelSpec,
    seed: int,
    dtype: torch.dtype,
    device: str = "cpu",
    rounded_to: str | None = None,
) -> str:
    """Return 16 hex digits that differ whenever the weights' values may differ.

    Args:
        device: the type of device that the weights were drawn on.
        rounded_to: the name of a type that the weights were rounded through before.
    """
    sizes = {
        key: value
        for key, value in asdict(spec).items()
        if key not in NO_VALUES and (key in FIRST_FIELDS or value != DEFAULTS[key])
    }
    content: tuple[object, ...] = (RECIPE, sorted(sizes.items()), seed, name_of(dtype))
    content += tuple(extra for extra in (device if device != "cpu" else None, rounded_to) if extra)
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
