"""Attention of new queries over the cache.

That of a captured step is a kernel of :mod:`.cuda_step`, that of a CPU's decode step one of :mod:`.cpu_step`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kvcache import KVCache, Span
from dejavubench.models.hub.modelspec import ModelSpec

BLOCK = 128
"""Queries that share one bias table; bounds its size, and no block looks beyond its own last query."""


def alibi_slopes(heads: int) -> Tensor:
    """The slope of each of the model's heads, [heads].

    Press et al. 2022 (arXiv 2108.12409): a geometric series from 2^(-8/heads); where ``heads`` is no power of two,
    every other slope of the next longer series fills up, as in BLOOM.
    """
    power = 1 << (heads.bit_length() - 1)  # the largest power of two that is not more
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]
    return torch.tensor(slopes)


class Attention:
    """One worker's heads. Letters in shapes as in :mod:`.gpt`.

    Args:
        heads: of keys and values, which of the model's.
        dtype: that queries come in and results leave in.

    Attributes:
        slopes: ALiBi's, [H, 1, 1] in fp32; without it one of 0 for all heads: the bias is then the causal mask alone.
    """

    def __init__(
        self, spec: ModelSpec, heads: Span, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._group, self._dtype, self._device = spec.group, dtype, device
        self.alibi = spec.position == "alibi"
        self.slopes = torch.zeros(1, 1, 1, device=device)
        if self.alibi:
            self.slopes = alibi_slopes(spec.head_num)[heads.slice].view(-1, 1, 1).to(device)
        self._bias_table = torch.empty(1, 0, BLOCK, 0)

    def __call__(
        self, q: Tensor, cache: KVCache, layer: int, position: int, first: Tensor | None = None
    ) -> Tensor:
        """Queries [B, H, n, D] of positions from ``position`` on, over the cache → [B, n, H·D].

        Args:
            first: each request's first position that is no padding, [B]; None where there is none.
        """
        n, stop = q.shape[2], position + q.shape[2]
        if n == 1 and not q.is_cuda:
            return self._step(q, cache, layer, stop, first)
        q, k, v = (
            x.to(self._dtype) for x in (q, cache.keys(layer, stop), cache.values(layer, stop))
        )
        if (
            first is None and n == 1 and self._group > 1
        ):  # the queries of a group are as many queries of one head
            grouped = q.unflatten(1, (-1, self._group)).flatten(2, 3)
            out = F.scaled_dot_product_attention(grouped, k, v).flatten(1, 2).unsqueeze(2)
        elif first is None and not self.alibi and (n == 1 or position == 0):
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=n > 1, enable_gqa=self._group > 1
            )
        else:
            self._reserve_bias(cache.geometry.positions)
            blocks = Span(0, n).cut(BLOCK)
            out = torch.cat(
                [self._attend_block(q, k, v, block, position, first) for block in blocks], dim=2
            )
        return out.transpose(1, 2).flatten(2).to(self._dtype)

    def _step(
        self, q: Tensor, cache: KVCache, layer: int, stop: int, first: Tensor | None
    ) -> Tensor:
        from dejavubench.models.backends.cpu import step as cpu_step

        slopes = self.slopes.view(-1) if self.alibi else None
        out = cpu_step.attend(q.squeeze(2).float(), cache, layer, stop, slopes, first)  # [B, H, D]
        return out.view(len(out), 1, -1).to(self._dtype)

    def _attend_block(
        self, q: Tensor, k: Tensor, v: Tensor, block: Span, position: int, first: Tensor | None
    ) -> Tensor:
        seen = position + block.stop
        bias = self._bias_table[..., BLOCK - block.size :, self._bias_table.shape[-1] - seen :].to(
            q.dtype
        )
        if first is not None:
            hidden = _padding(first, position + block.start, seen)
            bias = torch.where(hidden, float("-inf"), bias)
        elif bias.is_cuda:
            bias = bias.clone()  # its kernels read whole vectors, which a slice need not begin at
        return F.scaled_dot_product_attention(
            q[:, :, block.slice],
            k[:, :, :seen],
            v[:, :, :seen],
            attn_mask=bias,
            enable_gqa=self._group > 1,
        )

    def _reserve_bias(self, positions: int) -> None:
        """Make the table of biases as wide as the cache: [1, H, BLOCK, positions].

        Row BLOCK−1 and the last column are the newest query and its own key. A bias depends on their distance
        alone, so the lower right corner of this one table serves any number of queries after any position.
        """
        if self._bias_table.shape[-1] >= positions:
            return
        keys, queries = (
            torch.arange(1 - count, 1, device=self._device) for count in (positions, BLOCK)
        )
        distance = keys - queries[:, None]
        bias = (self.slopes * distance).masked_fill(distance > 0, float("-inf"))
        self._bias_table = bias.to(self._dtype).unsqueeze(0)


def _padding(first: Tensor, start: int, stop: int) -> Tensor:
    """Which keys the queries [start, stop) must not see, [B, 1, queries, stop].

    Padding itself sees padding: a query that saw nothing would be no number, and in the cache spoil its neighbours.
    """
    at = torch.arange(stop, device=first.device)
    first = first.view(-1, 1, 1, 1)
    return (at < first) & (at[start:, None] >= first)
