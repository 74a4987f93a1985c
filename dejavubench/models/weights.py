"""Random weights from a seed: the same values whatever the tensor- and pipeline-parallel split.

Each full tensor is drawn from a generator of its own, seeded by (seed, name), and scaled so that a wrong KV cache
shows. What would hide it: a tied embedding that is large beside what the layers add (greedy decoding then echoes
its input), timid queries and keys (attention is then the same mean for every token), and whatever all tokens have
in common, be it attention's mean or that of a rectified activation (generation then settles on one token). The
scales below were found by trying; tests hold what they are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from dejavubench.models.dtypes import name_of
from dejavubench.specs import ModelSpec

RECIPE = 1
"""Part of the identity: raise it when anything below changes the values."""

SCORE_GAIN = 1.4
"""Of queries and keys: attention scores of normed input have a standard deviation of 1.4², about 2."""


@dataclass(frozen=True)
class Scales:
    """``embed``: standard deviation of what enters the first layer; ``out``, ``down``: gain of a layer's two outputs.

    A linear of gain g turns inputs of standard deviation 1 into outputs of g.
    """

    embed: float
    out: float
    down: float


NORM_FIRST = Scales(embed=0.02, out=0.3, down=1.0)
NORM_AFTER = Scales(embed=0.1, out=0.3, down=0.5)  # each norm shrinks what came before it


@dataclass(frozen=True)
class Recipe:
    """How one full tensor is drawn.

    Attributes:
        std: standard deviation of values uniform around 0; where it is 0, all values are ``fill``.
        opposed: columns come in pairs of opposite sign, so that equal inputs cancel: the mean of a rectified
            activation, which is much the same for every token.
    """

    shape: tuple[int, ...]
    std: float
    fill: float = 0.0
    opposed: bool = False


def recipes(spec: ModelSpec) -> dict[str, Recipe]:
    """Every tensor of the unsplit model by name; linears are [out, in]. The head is the embedding."""
    hidden, ffn, embed = spec.hidden, spec.ffn_size, spec.embed_size or spec.hidden
    scales = NORM_FIRST if spec.norm_first else NORM_AFTER
    found: dict[str, Recipe] = {"embedding": Recipe((spec.vocab_size, embed), scales.embed)}

    def norm(name: str, scale: float = 1.0) -> None:
        found[f"{name}.weight"] = Recipe((hidden,), 0.0, fill=scale)
        found[f"{name}.bias"] = Recipe((hidden,), 0.0)

    def linear(name: str, outs: int, ins: int, gain: float = 1.0, bias: bool = True, opposed: bool = False) -> None:
        found[f"{name}.weight"] = Recipe((outs, ins), gain / sqrt(ins), opposed=opposed)
        if bias:
            found[f"{name}.bias"] = Recipe((outs,), 0.02)

    if embed != hidden:
        linear("project_in", hidden, embed, bias=False)
        linear("project_out", embed, hidden, bias=False)
    if spec.position == "learned":
        assert spec.context is not None
        found["position"] = Recipe((spec.context + spec.position_offset, hidden), scales.embed)
    if spec.embed_norm:
        norm("embed_norm", scale=scales.embed)
    for layer in range(spec.layer_num):
        at = f"layers.{layer}"
        norm(f"{at}.norm1")
        linear(f"{at}.query", hidden, hidden, gain=SCORE_GAIN)
        linear(f"{at}.key", hidden, hidden, gain=SCORE_GAIN)
        linear(f"{at}.value", hidden, hidden)
        linear(f"{at}.out", hidden, hidden, gain=scales.out)
        norm(f"{at}.norm2")
        linear(f"{at}.up", ffn, hidden)
        linear(f"{at}.down", hidden, ffn, gain=scales.down, opposed=True)
    if spec.norm_first:
        norm("final_norm")
    return found


def random_weights(
    spec: ModelSpec, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[str], Tensor]:
    """A source of full tensors by name, for :meth:`GPT.load`; nothing is kept between calls.

    Uniform rather than normal: it takes no transcendental functions, so the bits are the same on every CPU.

    Args:
        device, dtype: where and in what they are drawn. On a CUDA device the model's own type, so that no tensor is
            ever there twice; other values than a CPU draws.
    """
    known = recipes(spec)

    def full(name: str) -> Tensor:
        recipe = known[name]
        if recipe.std == 0.0:
            return torch.full(recipe.shape, recipe.fill, device=device, dtype=dtype)
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
        *rows, columns = recipe.shape
        width = (columns + 1) // 2 if recipe.opposed else columns
        drawn = torch.empty(*rows, width, device=device, dtype=dtype)
        drawn.uniform_(-1.0, 1.0, generator=generator).mul_(sqrt(3.0) * recipe.std)  # uniform on ±1: variance 1/3
        return torch.stack((drawn, -drawn), dim=-1).flatten(-2)[..., :columns] if recipe.opposed else drawn

    return full


def weights_identity(spec: ModelSpec, seed: int, dtype: torch.dtype, device: str = "cpu") -> str:
    """16 hex digits that differ whenever the weights' values may differ. The model's name does not count.

    Args:
        device: the type of device that they were drawn on.
    """
    sizes = asdict(spec)
    del sizes["name"]
    what: tuple[object, ...] = (RECIPE, sorted(sizes.items()), seed, name_of(dtype))
    if device != "cpu":
        what += (device,)
    return hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()


def parameters(spec: ModelSpec) -> int:
    """Elements of all tensors of the unsplit model."""
    return sum(prod(recipe.shape) for recipe in recipes(spec).values())
