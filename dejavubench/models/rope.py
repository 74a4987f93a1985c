"""Rotary position embeddings: the angles, and how queries and keys are turned by them."""

from __future__ import annotations

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from dejavubench.dejavulib.kvcache import Span
from dejavubench.models.hub.modelspec import Rope


def frequencies(rope: Rope, size: int) -> Tensor:
    """Radians a position by which each of a head's ``size`` / 2 pairs turns, in fp32.

    As in transformers (``modeling_rope_utils``): ``linear`` slows all down alike, ``llama3`` and ``yarn`` (Peng et al.
    2023, arXiv 2309.00071) the slow ones.
    """
    plain = 1.0 / rope.theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        turns = (
            rope.original_context * plain / (2 * pi)
        )  # within the context that it was trained on
        kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / rope.factor
    if rope.kind == "yarn":
        fast, slow = (_place(rope, size, turns) for turns in (rope.high, rope.low))
        start, stop = max(floor(fast), 0), min(ceil(slow), size - 1)
        slowed = ((torch.arange(size // 2) - start) / (stop - start or 0.001)).clamp(0, 1)
        return (1 - slowed) * plain + slowed * plain / rope.factor
    return plain


def _place(rope: Rope, size: int, turns: float) -> float:
    """Of which pair it is that it turns so often within the context that the model was trained on."""
    return size * log(rope.original_context / (turns * 2 * pi)) / (2 * log(rope.theta))


class Rotary:
    """Turns the two halves of each head against each other, by angles that grow with the position.

    Args:
        dtype, device: of the queries and keys that it is given.
    """

    def __init__(self, rope: Rope, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = frequencies(rope, size).to(device)
        self._attention, self._dtype = rope.attention, dtype
        self._table = torch.empty(
            2, 0, size, dtype=dtype, device=device
        )  # cosines and sines of each position

    def reserve(self, positions: int) -> None:
        """Make the table as long as the cache."""
        if self._table.shape[1] < positions:
            at = torch.arange(positions, device=self._frequencies.device)
            angles = torch.outer(at.float(), self._frequencies).repeat(1, 2)
            self._table = (self._attention * torch.stack([angles.cos(), angles.sin()])).to(
                self._dtype
            )

    def __call__(self, x: Tensor, position: int | Tensor) -> Tensor:
        """``x`` [B, H, n, D] of n positions from ``position`` on: an integer, or one of n = 1 on the device, [1]."""
        rows = (
            Span(position, position + x.shape[2]).slice if isinstance(position, int) else position
        )
        cosine, sine = self._table[:, rows]
        first, second = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-second, first], dim=-1) * sine
