"""The sizes of a decoder-only model and the shapes of its tensors; torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), and how they are stretched.

    Attributes:
        theta: base of the frequencies.
        kind: transformers' ``rope_type``. ``linear`` divides positions by ``factor``. ``llama3``
            divides frequencies by ``factor`` if their wavelength is beyond
            ``original_context / low``, keeps them below ``original_context / high``, and mixes
            both in between. ``yarn`` does the same between the frequencies that turn ``low`` and
            ``high`` times within ``original_context``, by their place in between.
        attention: factor of queries and keys as they are turned (``yarn``).
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192
    attention: float = 1.0


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a decoder-only model and what sets its architecture apart, as data.

    Attributes:
        name: model name on the command line, e.g. ``opt-13b``.
        layer_num: decoder layers.
        head_num: attention heads; each has keys and values of its own.
        size_per_head: elements of one head, D.
        vocab_size: rows of the embedding.
        context: the most positions that it attends to; None if there is no bound (ALiBi).
        ffn_size: inner width of the MLP.
        position: ``learned`` embeddings, ``alibi`` biases or ``rope``.
        position_offset: rows of the position table before position 0 (OPT has 2).
        activation: ``gelu`` (the tanh approximation), ``relu`` or ``silu``.
        norm_first: norms stand before attention and MLP, and a final one at the end. Off
            (opt-350m): they stand after each, and there is no final one.
        embed_norm: a layer norm right after the embedding (BLOOM).
        embed_size: width of the embedding if it is projected to another width (opt-350m).
        kv_head_num: heads of keys and values if they are fewer; groups of query heads share
            them (GQA).
        width: width of the residual stream if it is not ``head_num`` × ``size_per_head``.
        rms: norms are RMS norms, without biases (Zhang and Sennrich 2019, arXiv 1910.07467).
        eps: epsilon of the norms.
        rope: parameters of ``rope`` positions.
        gated: the MLP is activation(gate) × up (Shazeer 2020, arXiv 2002.05202).
        qkv_bias, bias: linears of queries, keys and values have biases; all others have.
        qk_norm: an RMS norm of each head's queries and keys (Qwen3).
        tied: the head is the embedding.
        limit: the key of a checkpoint's configuration that bounds ``context``; None if it is the
            model's length.
    """

    name: str
    layer_num: int
    head_num: int
    size_per_head: int
    vocab_size: int
    context: int | None
    ffn_size: int
    position: Literal["learned", "alibi", "rope"] = "learned"
    position_offset: int = 0
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    norm_first: bool = True
    embed_norm: bool = False
    embed_size: int | None = None
    kv_head_num: int | None = None
    width: int | None = None
    rms: bool = False
    eps: float = 1e-5
    rope: RopeSpec | None = None
    gated: bool = False
    qkv_bias: bool = True
    bias: bool = True
    qk_norm: bool = False
    tied: bool = True
    limit: str | None = None

    @property
    def limit_text(self) -> str:
        """The words behind a context that is less than the model's length; else empty."""
        return (
            f" (its {self.limit}: leaving out earlier tokens is not supported)"
            if self.limit
            else ""
        )

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.width or self.head_num * self.size_per_head

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values: all heads, unless queries share them."""
        return self.kv_head_num or self.head_num

    @property
    def group(self) -> int:
        """Query heads that share the keys and values of one head."""
        return self.head_num // self.kv_heads

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the unsplit model, by our names.

        Linears are [out, in]. A tied head has no tensor of its own.
        """
        layers = {
            f"layers.{layer}.{name}": shape
            for layer in range(self.layer_num)
            for name, shape in self.layer_tensors.items()
        }
        return self.first_tensors | layers | self.last_tensors

    @property
    def outer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that belong to no layer."""
        return self.first_tensors | self.last_tensors

    @property
    def first_tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors before the first layer."""
        hidden = self.hidden
        embed = self.embed_size or self.hidden
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocab_size, embed)}
        if embed != hidden:
            shapes["project_in.weight"] = (hidden, embed)
        if self.position == "learned":
            assert self.context is not None
            # OPT's table has rows before position 0, which are never used.
            shapes["position"] = (self.context + self.position_offset, hidden)
        if self.embed_norm:
            _add(shapes, "embed_norm", hidden, bias=not self.rms)
        return shapes

    @property
    def layer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's tensors, by their names within the layer; all layers are alike."""
        hidden, ffn = self.hidden, self.ffn_size
        queries, keys = (heads * self.size_per_head for heads in (self.head_num, self.kv_heads))
        shapes: dict[str, tuple[int, ...]] = {}
        for norm in ("norm1", "norm2"):
            _add(shapes, norm, hidden, bias=not self.rms)
        for linear, outs in (("query", queries), ("key", keys), ("value", keys)):
            _add(shapes, linear, outs, hidden, bias=self.qkv_bias)
        for norm in ("query_norm", "key_norm") if self.qk_norm else ():
            _add(shapes, norm, self.size_per_head, bias=False)
        _add(shapes, "out", hidden, queries, bias=self.bias)
        for linear in ("gate", "up") if self.gated else ("up",):
            _add(shapes, linear, ffn, hidden, bias=self.bias)
        _add(shapes, "down", hidden, ffn, bias=self.bias)
        return shapes

    @property
    def last_tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors after the last layer; a tied head is the embedding."""
        hidden = self.hidden
        embed = self.embed_size or self.hidden
        shapes: dict[str, tuple[int, ...]] = {}
        if self.norm_first:
            _add(shapes, "final_norm", hidden, bias=not self.rms)
        if embed != hidden:
            shapes["project_out.weight"] = (embed, hidden)
        if not self.tied:
            shapes["head"] = (self.vocab_size, embed)
        return shapes

    @property
    def parameter_count(self) -> int:
        """Parameters of the unsplit model."""
        layer_parameters, outer_parameters = (
            sum(map(prod, shapes.values())) for shapes in (self.layer_tensors, self.outer_tensors)
        )
        return self.layer_num * layer_parameters + outer_parameters

    @property
    def layer_weight_count(self) -> int:
        """Elements of the matrices of all layers."""
        return self.layer_num * sum(
            prod(shape) for shape in self.layer_tensors.values() if len(shape) == 2
        )

    @property
    def head_weight_count(self) -> int:
        """Elements of the head's matrix, and of the embedding's."""
        return self.vocab_size * (self.embed_size or self.hidden)

    def layer_cuts(self, stage_count: int) -> tuple[int, ...]:
        """Return even layer boundaries of pipeline stages: 13 layers in 2 → (0, 7, 13).

        Raises:
            ValueError: more stages than layers.
        """
        if not 1 <= stage_count <= self.layer_num:
            raise ValueError(
                f"{self.name} has {self.layer_num} layers; "
                f"they cannot be cut into {stage_count} stages"
            )
        return cut_evenly(self.layer_num, stage_count)


def cut_evenly(length: int, part_count: int) -> tuple[int, ...]:
    """Return the boundaries of even pieces of ``length``, the first ones the longer."""
    shortest_length, longer_count = divmod(length, part_count)  # the first pieces have one more
    return tuple(
        part_number * shortest_length + min(part_number, longer_count)
        for part_number in range(part_count + 1)
    )


def _add(shapes: dict[str, tuple[int, ...]], name: str, *shape: int, bias: bool) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]
