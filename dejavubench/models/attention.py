"""Attention of new queries over the cache: which operator serves which step, and the biases.

Letters in shapes as in :mod:`.gpt`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, Span
from dejavubench.models.backends.protocol import QKV, Backend
from dejavubench.models.hub.model_spec import ModelSpec

QUERIES_PER_BLOCK = 128
"""Queries that share one table of biases. It bounds the table's size, and no block looks beyond
its own last query."""


def alibi_slopes(head_count: int) -> Tensor:
    """Return the slope of each of the model's heads, [heads] in fp32.

    Press et al. 2022 (arXiv 2108.12409): a geometric series from 2^(-8/n). If their number n is no
    power of two, every other slope of the next longer series fills up, as in BLOOM.
    """
    power = 1 << (head_count.bit_length() - 1)  # the largest power of two that is not more
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (head_count - power), 2)]
    return torch.tensor(slopes)


@dataclass(frozen=True)
class CachedStep:
    """One step of a microbatch over its cache. Attributes as the arguments of ``GPT.forward``."""

    cache: KVCache
    position: int | Tensor
    prompt_start: Tensor | None = None
    on_layer: Callable[[int], None] | None = None


class Attention:
    """The attention of one worker's heads.

    Args:
        heads: the model's KV heads that this worker holds.
        dtype: type of queries and results; the cache may be of another type.
    """

    def __init__(
        self,
        backend: Backend,
        spec: ModelSpec,
        heads: Span,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._backend = backend
        self._dtype = dtype
        self._device = device
        self._slopes: Tensor | None = None  # ALiBi's, [H] in fp32
        if spec.position == "alibi":
            self._slopes = alibi_slopes(spec.head_num)[heads.slice].to(device)
        self._bias_table = torch.empty(1, 0, QUERIES_PER_BLOCK, 0)

    def __call__(self, qkv: QKV, layer: int, step: CachedStep) -> Tensor:
        """Put new keys and values in the cache, and attend to it.

        Args:
            layer: its number among the layers of this worker.

        Returns:
            [B, n, H·D].
        """
        q, k, v = qkv
        cache, position = step.cache, step.position
        if isinstance(position, Tensor):  # a step that is captured as a CUDA graph
            return self._backend.store_and_attend(qkv, cache, layer, position, self._slopes)
        cache.store(layer, position, k, v)
        if step.on_layer is not None:
            # Streaming may read the layer from now on: what follows only reads the cache, too.
            step.on_layer(layer)
        prompt_start = step.prompt_start
        n = q.shape[2]
        stop = position + n
        if n == 1:
            # This reads the cache in its own type; below it is converted to the queries' type.
            return self._backend.attend_one(q, cache, layer, stop, self._slopes, prompt_start)
        k, v = (x.to(self._dtype) for x in (cache.keys(layer, stop), cache.values(layer, stop)))
        # Without biases torch's causal attention needs no table, and is faster.
        if prompt_start is None and self._slopes is None and position == 0:
            out = self._backend.attend(q, k, v, causal=True)
        else:
            self._reserve_bias(cache.geometry.positions)
            blocks = Span(0, n).cut(QUERIES_PER_BLOCK)
            out = torch.cat(
                [self._attend_block(q, k, v, block, position, prompt_start) for block in blocks],
                dim=2,
            )
        return out.transpose(1, 2).flatten(2)

    def _attend_block(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block: Span,
        position: int,
        prompt_start: Tensor | None,
    ) -> Tensor:
        """Return attention of one block of the queries, [B, H, block, D]."""
        stop = position + block.stop
        # The table's lower right corner: its last row and column are the block's last query.
        bias = self._bias_table[
            ..., QUERIES_PER_BLOCK - block.size :, self._bias_table.shape[-1] - stop :
        ]
        if prompt_start is not None:
            is_hidden = _mask_padding(prompt_start, position + block.start, stop)
            bias = torch.where(is_hidden, float("-inf"), bias)
        return self._backend.attend(q[:, :, block.slice], k[:, :, :stop], v[:, :, :stop], bias)

    def _reserve_bias(self, position_count: int) -> None:
        """Make the table of biases as wide as the cache: [1, 1 or H, QUERIES_PER_BLOCK, positions].

        The last row and the last column are the newest query and its own key. A bias depends on
        their distance alone, so the lower right corner of this one table serves any number of
        queries after any position.
        """
        if self._bias_table.shape[-1] >= position_count:
            return
        keys, queries = (
            torch.arange(1 - count, 1, device=self._device)
            for count in (position_count, QUERIES_PER_BLOCK)
        )
        distance = keys - queries[:, None]
        slopes = self._slopes if self._slopes is not None else torch.zeros(1, device=self._device)
        bias = slopes.view(-1, 1, 1) * distance
        # Keys after the query are hidden: this is the causal mask, too.
        bias = bias.masked_fill(distance > 0, float("-inf"))
        self._bias_table = bias.to(self._dtype).unsqueeze(0)


def _mask_padding(prompt_start: Tensor, start: int, stop: int) -> Tensor:
    """Return which keys the queries [start, stop) must not see, [B, 1, queries, stop].

    Padding sees padding: a query without any key would give NaN, which would then be in the cache.
    """
    positions = torch.arange(stop, device=prompt_start.device)
    starts = prompt_start.view(-1, 1, 1, 1)
    return (positions < starts) & (positions[start:, None] >= starts)
