"""A decoder-only GPT that fills a KV cache: GPT-2, OPT, BLOOM and Llama, set apart by a ModelSpec.

One worker holds a :class:`Shard`: the layers of its pipeline stage, and of each layer the heads,
MLP columns and vocabulary rows of its tensor rank. The model is handed its collectives and its
cache. It does not depend on streaming: it calls back when a layer's keys and values are in place.

Letters in shapes: B requests, n new positions, S positions seen so far, H local heads of queries,
G local heads of keys and values, D elements of a head. G is H, or less if groups of queries share
keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVGeometry, KVLayout, Span
from dejavubench.models.attention import Attention, CachedStep
from dejavubench.models.backends.protocol import QKV, HeadNorms, KernelNeeds, Say, identity
from dejavubench.models.backends.select import choose_backend
from dejavubench.models.embedding_and_head import Embedding, OutputHead
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Shard
from dejavubench.models.layers import LayerPart, Linear
from dejavubench.models.rope import Rotary
from dejavubench.models.tensor_parallel import SingleRank, TensorParallel
from dejavubench.models.worker_weights import WorkerWeights


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Norms stand before attention and MLP or after; others are identities."""

    before_attention: LayerPart
    qkv: Linear  # [(H + 2·G)·D, hidden]: the rows of queries, then of keys, then of values
    head_norms: HeadNorms | None
    out: Linear  # [hidden, H·D]
    after_attention: LayerPart
    before_mlp: LayerPart
    up: Linear  # [ffn, hidden]; of a gated MLP [2·ffn, hidden], the gate's rows first
    down: Linear  # [hidden, ffn]
    after_mlp: LayerPart


class ChosenTokens(NamedTuple):
    """One new token per request, and a check of the logits that it was chosen from.

    Attributes:
        tokens: [B], int64.
        check: [B], on the device: NaN or infinite if a logit was. Otherwise it is the largest logit
            of this rank's rows (greedy) or the sum of the probabilities (sampling).
    """

    tokens: Tensor
    check: Tensor


class GPT:
    """One worker's part of the model. Its weights are undefined until they are loaded.

    Args:
        spec: sizes and architecture.
        shard: the part of the model that this worker holds.
        dtype: type of the KV cache and of all matrices of weights.
        compute_dtype: type of linears' inputs and the residual stream; see
            :func:`.dtypes.compute_dtype`.
        collectives: sums and gathers over the tensor-parallel group.
        device: device that holds the weights, and the caches that the model is given.

    Raises:
        ValueError: the model cannot be split like this.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shard: Shard,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        collectives: TensorParallel = SingleRank(),  # noqa: B008 (it holds nothing)
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.shard = shard
        self.dtype = dtype
        self.compute_dtype = compute_dtype
        self.collectives = collectives
        self.device = torch.device(device)
        self.is_first_stage = shard.is_first_stage
        self.is_last_stage = shard.is_last_stage
        self.backend = choose_backend(self.device)
        self.kv_heads = shard.heads(spec)
        self.vocab_rows = shard.vocab(spec)
        weights = WorkerWeights(
            spec=spec,
            shard=shard,
            dtype=dtype,
            compute_dtype=compute_dtype,
            device=self.device,
            backend=self.backend,
        )

        self.embedding = Embedding(weights, spec, compute_dtype) if self.is_first_stage else None
        self.layers = [
            _make_layer(weights, layer_number, spec) for layer_number in range(*shard.layers(spec))
        ]
        self.output_head: OutputHead | None = None
        if self.is_last_stage:
            table = self.embedding.table if self.embedding is not None else None
            self.output_head = OutputHead(weights, spec, self.vocab_rows, table)

        self.weight_slices = weights.slices
        self.attention = Attention(
            backend=self.backend,
            spec=spec,
            heads=self.kv_heads,
            dtype=compute_dtype,
            device=self.device,
        )
        self.rotary: Rotary | None = None
        if spec.rope is not None:
            self.rotary = Rotary(spec.rope, spec.size_per_head, compute_dtype, self.device)

    # ---- one step ----

    @torch.inference_mode()
    def forward(
        self,
        x: Tensor,
        cache: KVCache,
        position: int | Tensor,
        on_layer: Callable[[int], None] | None = None,
        prompt_start: Tensor | None = None,
    ) -> Tensor:
        """Run n new positions, the first of them ``position``, through this worker's layers.

        Args:
            x: tokens [B, n] on the first stage, else the previous stage's hidden [B, n, hidden],
                which may be overwritten.
            cache: written at [position, position + n), read up to there and never beyond.
            position: a number, or for n = 1 an int64 tensor [1] on the device: a step that was
                captured with it serves every position. Nothing checks that it fits, and neither
                ``on_layer`` nor ``prompt_start`` can be given.
            on_layer: called with the number of a local layer as soon as that layer's keys and
                values are in place, before its attention. What follows only reads them.
            prompt_start: each request's first position that is no padding, [B], for prompts of
                unequal lengths that were padded on the left. Each request gets what it would get
                alone.

        Returns:
            Hidden [B, n, hidden]; on the last stage this rank's logits [B, vocabulary rows] of
            the last position.

        Raises:
            ValueError: the positions do not fit in the cache or the model's context.
        """
        if isinstance(position, int):
            _check_fits(Span(position, position + x.shape[1]), cache, self.spec.context)
        if self.rotary is not None:
            self.rotary.reserve(cache.geometry.positions)
        hidden = x  # [B, n, hidden]
        if self.embedding is not None:
            hidden = self.embedding(x, position, prompt_start)
        step = CachedStep(cache, position, prompt_start, on_layer)
        for layer_number, layer in enumerate(self.layers):
            qkv = self._split_heads(layer, layer.qkv(layer.before_attention(hidden)), position)
            attention_out = self.attention(qkv, layer_number, step)
            # Of norms before and after, one is the identity; `_sum_ranks` adds the residual.
            hidden = layer.after_attention(self._sum_ranks(layer.out, attention_out, hidden))
            inner = self._run_mlp_inner(layer, layer.before_mlp(hidden))  # [B, n, ffn]
            hidden = layer.after_mlp(self._sum_ranks(layer.down, inner, hidden))
        if self.output_head is None:
            return hidden
        # Only the newest position's logits choose a token.
        return self.output_head(hidden[:, -1])

    def _split_heads(self, layer: Layer, qkv: Tensor, position: int | Tensor) -> QKV:
        """Cut [B, n, (H + 2·G)·D] into queries [B, H, n, D], keys and values [B, G, n, D]."""
        kv_head_count = self.kv_heads.size
        request_count, position_count, _ = qkv.shape
        rows = qkv.view(request_count, position_count, -1, self.spec.size_per_head).transpose(1, 2)
        q, k, v = rows.split_with_sizes(
            (kv_head_count * self.spec.group, kv_head_count, kv_head_count), dim=1
        )
        if self.rotary is not None or layer.head_norms is not None:
            angles = None if self.rotary is None else self.rotary.angles(position)
            q, k = self.backend.norm_and_rotate(q, k, layer.head_norms, angles)
        return QKV(q, k, v)

    def _run_mlp_inner(self, layer: Layer, x: Tensor) -> Tensor:
        """Return the activated inner columns of the MLP, [B, n, ffn]."""
        inner = layer.up.gate if self.spec.gated else layer.up
        return inner(x, self.spec.activation)

    def _sum_ranks(self, linear: Linear, x: Tensor, residual: Tensor) -> Tensor:
        """Return the sum of the ranks' ``linear``, each of its columns, and the residual stream."""
        if self.shard.tensor_size == 1:
            return linear(x, residual=residual)
        # Added once, after the sum: each rank holds the whole residual stream.
        return self.collectives.all_reduce(linear(x)).add_(residual)

    # ---- the next token ----

    @torch.inference_mode()
    def greedy(self, logits: Tensor) -> ChosenTokens:
        """Return each request's most likely token of the vocabulary; of equals the lowest."""
        value, token = self.backend.largest(logits)
        if self.shard.tensor_size == 1:
            return ChosenTokens(token, value)
        # One message holds both: values and tokens are exact in fp64.
        own_best = torch.stack([value.double(), (token + self.vocab_rows.start).double()])
        all_ranks = self.collectives.all_gather(own_best)  # [tensor_size, 2, B]
        winner = all_ranks[:, 0].argmax(0, keepdim=True)  # the first of equals
        return ChosenTokens(all_ranks[:, 1].gather(0, winner)[0].long(), value)

    @torch.inference_mode()
    def gather_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of all ranks' vocabulary rows, [B, vocabulary] in fp32."""
        own_logits = logits.float()
        if self.shard.tensor_size == 1:
            return own_logits
        row_counts = [
            replace(self.shard, tensor_rank=rank).vocab(self.spec).size
            for rank in range(self.shard.tensor_size)
        ]
        # A gather takes equal shapes; the first ranks may hold one row more.
        padded_logits = F.pad(own_logits, (0, max(row_counts) - own_logits.shape[-1]))
        all_parts = self.collectives.all_gather(padded_logits)  # [tensor_size, B, most rows]
        return torch.cat(
            [part[:, :size] for part, size in zip(all_parts, row_counts, strict=True)], dim=-1
        )

    # ---- weights and cache ----

    @property
    def parameter_count(self) -> int:
        """How many weights this worker holds; a tied head counts once."""
        return sum(weight_slice.memory.numel() for weight_slice in self.weight_slices)

    def load(
        self, read_full: Callable[[str], Tensor], rounded_to: torch.dtype | None = None
    ) -> None:
        """Copy this worker's cuts out of full tensors, one tensor at a time.

        Args:
            read_full: returns the full tensor of a name.
            rounded_to: a type that the weights are rounded to first.
        """
        for weight_slice in self.weight_slices:
            weight_slice.memory.copy_(
                read_full(weight_slice.name)[weight_slice.cut]
                .to(rounded_to or self.dtype)
                .to(self.dtype)
            )

    def compile(self, layout: KVLayout, *rows: int, say: Say = lambda text: None) -> None:
        """Make ready what steps of ``rows`` positions at once need, so that no step waits for it.

        Args:
            layout: layout of the caches.
            rows: requests × new positions of each kind of step.
            say: takes one line each about compiling, and about kernels that cannot be kept.
        """
        widths = sorted({linear.weight.shape[1] for linear in self._linears()})
        self.backend.compile(
            KernelNeeds(
                dtype=self.dtype,
                compute_dtype=self.compute_dtype,
                layout=layout,
                row_counts=rows,
                widths=widths,
            ),
            say,
        )

    def _linears(self) -> Iterator[Linear]:
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.up, layer.down)
        for embedding_or_head in (self.embedding, self.output_head):
            if embedding_or_head is not None:
                yield from embedding_or_head.linears()

    def kv_geometry(self, requests: int, positions: int, layout: KVLayout) -> KVGeometry:
        """Return the cache that this worker needs for one microbatch.

        Raises:
            ValueError: more positions than the model's context.
        """
        if self.spec.context is not None and positions > self.spec.context:
            raise ValueError(
                f"{self.spec.name} attends to {self.spec.context} positions at most, "
                f"not {positions}"
            )
        head_count = self.kv_heads.size
        head_size = self.spec.size_per_head
        return KVGeometry(
            layers=len(self.layers),
            requests=requests,
            heads=head_count,
            positions=positions,
            head_size=head_size,
            itemsize=self.dtype.itemsize,
            layout=layout,
        )


def _make_layer(weights: WorkerWeights, layer_number: int, spec: ModelSpec) -> Layer:
    """Return layer ``layer_number`` of the whole model, with weights of its own."""
    prefix = f"layers.{layer_number}"
    norms = weights.norm(f"{prefix}.norm1"), weights.norm(f"{prefix}.norm2")
    norms_before, norms_after = (
        (norms, (identity, identity)) if spec.norm_first else ((identity,) * 2, norms)
    )
    gate = [f"{prefix}.gate"] if spec.gated else []
    return Layer(
        before_attention=norms_before[0],
        qkv=weights.linear(f"{prefix}.query", f"{prefix}.key", f"{prefix}.value"),
        head_norms=weights.head_norms(prefix) if spec.qk_norm else None,
        out=weights.linear(f"{prefix}.out"),
        after_attention=norms_after[0],
        before_mlp=norms_before[1],
        up=weights.linear(*gate, f"{prefix}.up"),
        down=weights.linear(f"{prefix}.down"),
        after_mlp=norms_after[1],
    )


def _check_fits(new_positions: Span, cache: KVCache, context: int | None) -> None:
    """Raise ValueError if new positions do not fit in the cache or the model's context."""
    room = min(cache.geometry.positions, context or new_positions.stop)
    if new_positions.stop > room:
        raise ValueError(
            f"positions [{new_positions.start}, {new_positions.stop}) are beyond the {room} "
            "that fit"
        )
