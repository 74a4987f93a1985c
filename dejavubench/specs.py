"""Model sizes by name; neither torch nor MPI is needed to know them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a decoder-only model and what sets its architecture apart, as data.

    Attributes:
        name: as given on the command line, e.g. ``opt-13b``.
        layer_num: decoder layers.
        head_num: attention heads; each has keys and values of its own.
        size_per_head: elements of one head, D.
        vocab_size: rows of the embedding.
        context: the most positions it can attend to; None where positions are unbounded (ALiBi).
        ffn_size: inner width of the MLP.
        position: ``learned`` embeddings or ``alibi`` biases.
        position_offset: rows of the position table before position 0 (OPT has 2).
        activation: ``gelu`` (the tanh approximation) or ``relu``.
        norm_first: layer norm before attention and MLP, and a final one; off (opt-350m): after each, no final.
        embed_norm: a layer norm right after the embedding (BLOOM).
        embed_size: width of the embedding where it differs from ``hidden`` and is projected (opt-350m).
    """

    name: str
    layer_num: int
    head_num: int
    size_per_head: int
    vocab_size: int
    context: int | None
    ffn_size: int
    position: Literal["learned", "alibi"] = "learned"
    position_offset: int = 0
    activation: Literal["gelu", "relu"] = "gelu"
    norm_first: bool = True
    embed_norm: bool = False
    embed_size: int | None = None

    @property
    def hidden(self) -> int:
        return self.head_num * self.size_per_head

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the unsplit model by our name; linears are [out, in]. The head is the embedding."""
        hidden, ffn, embed = self.hidden, self.ffn_size, self.embed_size or self.hidden
        found: dict[str, tuple[int, ...]] = {"embedding": (self.vocab_size, embed)}

        def with_bias(name: str, *shape: int) -> None:
            found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

        if embed != hidden:
            found["project_in.weight"], found["project_out.weight"] = (hidden, embed), (embed, hidden)
        if self.position == "learned":
            assert self.context is not None
            found["position"] = (self.context + self.position_offset, hidden)
        if self.embed_norm:
            with_bias("embed_norm", hidden)
        for layer in range(self.layer_num):
            for norm in ("norm1", "norm2"):
                with_bias(f"layers.{layer}.{norm}", hidden)
            for linear in ("query", "key", "value", "out"):
                with_bias(f"layers.{layer}.{linear}", hidden, hidden)
            with_bias(f"layers.{layer}.up", ffn, hidden)
            with_bias(f"layers.{layer}.down", hidden, ffn)
        if self.norm_first:
            with_bias("final_norm", hidden)
        return found

    @property
    def parameters(self) -> int:
        """Parameters of the unsplit model."""
        return sum(prod(shape) for shape in self.tensors.values())

    def layer_cuts(self, stages: int) -> tuple[int, ...]:
        """Layer boundaries of pipeline stages, as even as can be: 13 layers in 2 → (0, 7, 13).

        Raises:
            ValueError: more stages than layers.
        """
        if not 1 <= stages <= self.layer_num:
            raise ValueError(f"{self.name} has {self.layer_num} layers; they cannot be cut into {stages} stages")
        each, more = divmod(self.layer_num, stages)
        return tuple(stage * each + min(stage, more) for stage in range(stages + 1))


def _gpt2(name: str, layer_num: int, head_num: int) -> ModelSpec:
    return ModelSpec(name, layer_num, head_num, 64, vocab_size=50257, context=1024, ffn_size=4 * head_num * 64)


def _opt(name: str, layer_num: int, head_num: int, size_per_head: int, embed_size: int | None = None) -> ModelSpec:
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


def _bloom(name: str, layer_num: int, head_num: int, size_per_head: int) -> ModelSpec:
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
        _gpt2("gpt2", 12, 12),
        _gpt2("gpt2-medium", 24, 16),
        _gpt2("gpt2-large", 36, 20),
        _gpt2("gpt2-xl", 48, 25),
        _opt("opt-125m", 12, 12, 64),
        _opt("opt-350m", 24, 16, 64, embed_size=512),
        _opt("opt-1.3b", 24, 32, 64),
        _opt("opt-2.7b", 32, 32, 80),
        _opt("opt-6.7b", 32, 32, 128),
        _opt("opt-13b", 40, 40, 128),
        _opt("opt-30b", 48, 56, 128),
        _opt("opt-66b", 64, 72, 128),
        _bloom("bloom-560m", 24, 16, 64),
        _bloom("bloom-1b1", 24, 16, 96),
        _bloom("bloom-1b7", 24, 16, 128),
        _bloom("bloom-3b", 30, 32, 80),
        _bloom("bloom-7b1", 30, 32, 128),
        _bloom("bloom-176b", 70, 112, 128),
    )
}
"""The paper's families in the sizes of their publications (Hugging Face configurations of the same names)."""

CUSTOM = "custom"
"""The name under which a run's model of free sizes goes."""


def spec(name: str) -> ModelSpec:
    """The sizes of a named model.

    Raises:
        ValueError: no model has this name; the message names those that come close, else all.
    """
    if name in SPECS:
        return SPECS[name]
    import difflib  # only to help with a misspelt name

    close = difflib.get_close_matches(name, SPECS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(SPECS)} and {CUSTOM}"
    raise ValueError(f"unknown model {name!r}; {hint}")


def custom(layer_num: int, head_num: int, size_per_head: int, vocab_size: int, context: int) -> ModelSpec:
    """A GPT-2-like model of free sizes with ``context`` learned positions."""
    return ModelSpec(
        CUSTOM, layer_num, head_num, size_per_head, vocab_size, context, ffn_size=4 * head_num * size_per_head
    )
