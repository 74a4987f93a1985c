"""A decoder-only GPT that fills a KV cache: GPT-2, OPT, BLOOM and the Llama family, told apart by :class:`ModelSpec`.

One worker holds a :class:`Shard`: the layers of its pipeline stage, and of each the heads, MLP columns and
vocabulary rows of its tensor rank (Shoeybi et al. 2019, arXiv 1909.08053: columns, then rows, then one sum).
The model is handed its collectives and its cache. It knows nothing of streaming: it calls back when a layer's
keys and values are in place.

Letters in shapes: B requests, n new positions, S positions seen so far, H local heads of queries, G of keys and
values (as many, or fewer that groups of queries share), D elements of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kvcache import KVCache, KVGeometry, KVLayout, Span
from dejavubench.models.attention import Attention
from dejavubench.models.hub.modelspec import ModelSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.parts import ACTIVATIONS, Linear, Norm, Part, RMSNorm, largest, same
from dejavubench.models.rope import Rotary
from dejavubench.models.tensorparallel import Alone, TensorParallel


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Of ``before`` and ``after`` one is its norms, the other leaves x as it is."""

    before: tuple[Part, Part]
    qkv: Linear  # the rows of queries, then of keys, then of values
    qk_norm: tuple[Part, Part]
    out: Linear
    up: Linear  # where it is gated, the rows of the gate come first
    down: Linear
    after: tuple[Part, Part]


@dataclass(frozen=True)
class Slot:
    """Where the cut of one full tensor goes."""

    name: str
    into: Tensor
    cut: tuple[slice, ...]


# ---- the model ------------------------------------------------------------------------------------------------


class GPT:
    """One worker's part of the model. Its weights are undefined until :meth:`load`.

    Args:
        spec: sizes and architecture.
        shard: which part.
        dtype: the inference data type: that of the KV cache and of all matrices of weights.
        compute_dtype: that of linears' inputs and residual stream; see :func:`.dtypes.compute_dtype`.
        collectives: sums and gathers over the tensor-parallel group.
        device: where weights are, and the caches that it is given.

    Attributes:
        peak: a number for each request of the step whose tokens were chosen last, [B], left on the device: NaN or
            infinite if the logits that they were chosen from are not all usable numbers; the largest if none is drawn.

    Raises:
        ValueError: the model cannot be split like this.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shard: Shard,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        collectives: TensorParallel = Alone(),  # noqa: B008 (it holds nothing)
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.shard, self.dtype, self.compute_dtype = spec, shard, dtype, compute_dtype
        self.collectives, self.device = collectives, torch.device(device)
        self.heads, self.vocab = shard.heads(spec), shard.vocab(spec)  # of keys and values
        self.slots: list[Slot] = []
        self.peak = torch.empty(0)
        embed = spec.embed_size or spec.hidden
        width = Span(0, spec.hidden)

        self.embedding: Tensor | None = None
        self.position: Tensor | None = None
        self.project_in: Part = same
        self.embed_norm: Part = same
        if shard.first:
            self.embedding = self._tensor("embedding", Span(0, spec.vocab_size), Span(0, embed))
            if spec.position == "learned":
                assert spec.context is not None
                rows = Span(0, spec.context + spec.position_offset)
                self.position = self._tensor("position", rows, width)[
                    spec.position_offset :
                ]  # [context, hidden]
            if spec.embed_norm:
                self.embed_norm = self._norm("embed_norm")
            if embed != width.size:
                self.project_in = self._linear({"project_in": width}, Span(0, embed), bias=False)

        self.layers = [self._layer(f"layers.{number}") for number in range(*shard.layers(spec))]

        self.final_norm: Part = same
        self.project_out: Part = same
        self.head: Linear | None = None
        if shard.last:
            if spec.norm_first:
                self.final_norm = self._norm("final_norm")
            if embed != width.size:
                self.project_out = self._linear({"project_out": Span(0, embed)}, width, bias=False)
            if self.embedding is None or not spec.tied:
                self.head = Linear(
                    self._tensor("embedding" if spec.tied else "head", self.vocab, Span(0, embed))
                )
            else:
                self.head = Linear(self.embedding[self.vocab.slice])  # tied: a view

        self.attention = Attention(spec, self.heads, compute_dtype, self.device)
        self.rotary: Rotary | None = None
        if spec.rope is not None:
            self.rotary = Rotary(spec.rope, spec.size_per_head, compute_dtype, self.device)

    # -- weights --

    def _tensor(self, name: str, *cut: Span) -> Tensor:
        into = self._empty(*(span.size for span in cut))
        self.slots.append(Slot(name, into, tuple(span.slice for span in cut)))
        return into

    def _empty(self, *shape: int) -> Tensor:
        vector = len(shape) == 1  # of a norm or a bias: next to nothing, and used as it is
        return torch.empty(
            shape, dtype=self.compute_dtype if vector else self.dtype, device=self.device
        )

    def _norm(self, name: str, size: int | None = None) -> Part:
        width = Span(0, size or self.spec.hidden)
        weight = self._tensor(f"{name}.weight", width)
        return (
            RMSNorm(weight, self.spec.eps)
            if self.spec.rms
            else Norm(weight, self._tensor(f"{name}.bias", width))
        )

    def _linear(self, rows: Mapping[str, Span], ins: Span, bias: bool = True) -> Linear:
        """One linear of the given rows of each of the named ones, one below the other, and of these columns."""
        weights = self._empty(sum(outs.size for outs in rows.values()), ins.size)
        biases = self._empty(len(weights)) if bias else None
        at = 0
        for name, outs in rows.items():
            self.slots.append(
                Slot(f"{name}.weight", weights[at : at + outs.size], (outs.slice, ins.slice))
            )
            if biases is not None:
                self.slots.append(Slot(f"{name}.bias", biases[at : at + outs.size], (outs.slice,)))
            at += outs.size
        return Linear(weights, biases)

    def _layer(self, at: str) -> Layer:
        spec, width, ffn = self.spec, Span(0, self.spec.hidden), self.shard.ffn(self.spec)
        keys, queries = (self.heads.scaled(times * spec.size_per_head) for times in (1, spec.group))
        norms = (self._norm(f"{at}.norm1"), self._norm(f"{at}.norm2"))
        of_heads = [
            self._norm(f"{at}.{name}_norm", spec.size_per_head)
            for name in ("query", "key")
            if spec.qk_norm
        ]
        once = (
            spec.bias and self.shard.tensor_rank == 0
        )  # what is summed over the group holds its bias on one rank
        qkv = {f"{at}.query": queries, f"{at}.key": keys, f"{at}.value": keys}
        ups = dict.fromkeys((f"{at}.gate", f"{at}.up") if spec.gated else (f"{at}.up",), ffn)
        return Layer(
            before=norms if spec.norm_first else (same, same),
            qkv=self._linear(qkv, width, spec.qkv_bias),
            qk_norm=(of_heads[0], of_heads[1]) if of_heads else (same, same),
            out=self._linear({f"{at}.out": width}, queries, once),
            up=self._linear(ups, width, spec.bias),
            down=self._linear({f"{at}.down": width}, ffn, once),
            after=(same, same) if spec.norm_first else norms,
        )

    def load(self, full: Callable[[str], Tensor], held_in: torch.dtype | None = None) -> None:
        """Take this shard's weights out of full tensors, one at a time, rounded through ``held_in`` and ``dtype``."""
        for slot in self.slots:
            slot.into.copy_(full(slot.name)[slot.cut].to(held_in or self.dtype).to(self.dtype))

    def compile(
        self, layout: KVLayout, *rows: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """On a CPU: the kernels of such caches and of so many positions at once, for no step is to wait for its own.

        Args:
            say: takes one line each about compiling, and about a cache of kernels that cannot be used.
        """
        if self.device.type == "cpu":
            from dejavubench.models.backends.cpu import codecache as cpu_cache
            from dejavubench.models.backends.cpu import linear as cpu_linear
            from dejavubench.models.backends.cpu import step as cpu_step

            kernels = [cpu_step.attention_kernel(self.dtype, layout)]
            for linear in self._linears():
                for number in rows:
                    kernels += cpu_linear.kernels(number, linear.weight, self.compute_dtype)
            cpu_cache.provide(kernels, say)

    def _linears(self) -> Iterator[Linear]:
        yield from (
            each for layer in self.layers for each in (layer.qkv, layer.out, layer.up, layer.down)
        )
        yield from (
            each
            for each in (self.project_in, self.project_out, self.head)
            if isinstance(each, Linear)
        )

    @property
    def parameters(self) -> int:
        """Elements that are loaded; the tied head counts once."""
        return sum(slot.into.numel() for slot in self.slots)

    # -- cache --

    def kv_geometry(self, ubatch_size: int, positions: int, layout: KVLayout) -> KVGeometry:
        """The cache this worker needs for one microbatch.

        Raises:
            ValueError: more positions than the model's context.
        """
        if self.spec.context is not None and positions > self.spec.context:
            raise ValueError(
                f"{self.spec.name} attends to {self.spec.context} positions at most, not {positions}"
            )
        heads, size = self.heads.size, self.spec.size_per_head
        return KVGeometry(
            len(self.layers), ubatch_size, heads, positions, size, self.dtype.itemsize, layout
        )

    # -- one step --

    @torch.inference_mode()
    def forward(
        self,
        x: Tensor,
        cache: KVCache,
        position: int | Tensor,
        on_layer: Callable[[int], None] | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Run n new positions, the first of them ``position``, through this worker's layers.

        Args:
            position: or on a CUDA device, for one position, an int64 tensor [1] of its number there: a captured step
                then goes on to serve every position. Nothing checks that it fits.
            x: tokens [B, n] on the first stage, else the previous stage's hidden [B, n, hidden]; not changed.
            cache: written at [position, position + n), read up to there and never beyond.
            on_layer: called with the number of a local layer as soon as that layer's keys and values are in
                place: before its attention, which like all that follows only reads them. Not of a captured step.
            first: where prompts of unequal lengths were padded on the left, each request's first position that is its
                own, [B]: it gets what it would get alone. Not of a captured step.

        Returns:
            Hidden [B, n, hidden]; on the last stage this rank's logits [B, vocabulary rows] of the last position.

        Raises:
            ValueError: the positions do not fit in the cache or the model's context.
        """
        if isinstance(position, int):
            self._check_fits(Span(position, position + x.shape[1]), cache)
        if self.rotary is not None:
            self.rotary.reserve(cache.geometry.positions)
        if self.shard.first:
            x = self._embed(x, position, first)
        for number, layer in enumerate(self.layers):
            q, k, v = self._heads(layer, layer.qkv(x, norm=layer.before[0]), position)
            if isinstance(position, int):
                cache.store(number, position, k, v)
                if on_layer is not None:
                    on_layer(number)
                attended = self.attention(q, cache, number, position, first)  # [B, n, H·D]
            else:
                attended = self._store_and_attend(q, k, v, cache, number, position)
            x = layer.after[0](self._sum(layer.out, attended, x))
            x = layer.after[1](self._sum(layer.down, self._inner(layer, x), x))
        if self.head is None:
            return x
        return self.head(self.project_out(self.final_norm(x[:, -1])))

    @torch.inference_mode()
    def greedy(self, logits: Tensor) -> Tensor:
        """The most likely token of each request, [B], over the whole vocabulary; of equals the lowest."""
        value, index = largest(logits)
        self.peak = value
        if self.shard.tensor_size == 1:
            return index
        mine = torch.stack(
            [value.double(), (index + self.vocab.start).double()]
        )  # both exact in fp64
        all_ranks = self.collectives.all_gather(mine)  # [tensor_size, 2, B]
        winner = all_ranks[:, 0].argmax(0, keepdim=True)  # the first of equals
        return all_ranks[:, 1].gather(0, winner)[0].long()

    @torch.inference_mode()
    def whole(self, logits: Tensor) -> Tensor:
        """Logits over the whole vocabulary, [B, vocabulary] in fp32, of this rank's and the others' rows."""
        logits = logits.float()
        if self.shard.tensor_size == 1:
            return logits
        rows = [
            replace(self.shard, tensor_rank=rank).vocab(self.spec).size
            for rank in range(self.shard.tensor_size)
        ]
        padded = F.pad(logits, (0, max(rows) - logits.shape[-1]))
        everyone = self.collectives.all_gather(padded)  # [tensor_size, B, most rows]
        return torch.cat(
            [part[:, :size] for part, size in zip(everyone, rows, strict=True)], dim=-1
        )

    def _check_fits(self, new: Span, cache: KVCache) -> None:
        room = min(cache.geometry.positions, self.spec.context or new.stop)
        if new.stop > room:
            raise ValueError(f"positions [{new.start}, {new.stop}) are beyond the {room} that fit")

    def _embed(self, tokens: Tensor, position: int | Tensor, first: Tensor | None) -> Tensor:
        assert self.embedding is not None
        x = self.project_in(F.embedding(tokens, self.embedding).to(self.compute_dtype))
        if (
            self.position is not None
        ):  # the other kinds are of distances, which padding does not change
            at: Tensor | slice
            if isinstance(position, Tensor):
                at = position
            elif first is None:
                at = slice(position, position + x.shape[1])
            else:
                at = (torch.arange(position, position + x.shape[1]) - first[:, None]).clamp(min=0)
            x = x + self.position[at]
        return self.embed_norm(x)  # [B, n, hidden]

    def _sum(self, linear: Linear, x: Tensor, residual: Tensor) -> Tensor:
        """``linear`` of a part of the columns, summed over the group, and the residual stream."""
        if self.shard.tensor_size == 1:
            return linear(x, residual=residual)
        return self.collectives.all_reduce(linear(x)).add_(residual)

    def _inner(self, layer: Layer, x: Tensor) -> Tensor:
        if not self.spec.gated:
            return layer.up(x, self.spec.activation, norm=layer.before[1])
        gate, inner = layer.up(x, norm=layer.before[1]).chunk(2, dim=-1)
        return ACTIVATIONS[self.spec.activation](gate).mul_(inner)

    def _heads(self, layer: Layer, qkv: Tensor, position: int | Tensor) -> tuple[Tensor, ...]:
        """[B, n, (H + 2·G)·D] → queries [B, H, n, D], keys and values [B, G, n, D]."""
        keys = self.heads.size
        requests, new, _ = qkv.shape
        rows = qkv.view(requests, new, -1, self.spec.size_per_head).transpose(1, 2)
        q, k, v = rows.split_with_sizes((keys * self.spec.group, keys, keys), dim=1)
        q, k = layer.qk_norm[0](q), layer.qk_norm[1](k)
        if self.rotary is not None:
            q, k = self.rotary(q, position), self.rotary(k, position)
        return q, k, v

    def _store_and_attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int, at: Tensor
    ) -> Tensor:
        """A captured step: one kernel puts the keys and values of one position in place and attends; → [B, 1, H·D]."""
        from dejavubench.models.backends.cuda import step as cuda_step

        slopes = self.attention.slopes.view(-1) if self.attention.alibi else None
        q, k, v = (x[:, :, 0] for x in (q, k, v))
        return cuda_step.attend(q, k, v, cache, layer, at, slopes).unsqueeze(1)
