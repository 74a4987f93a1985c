"""Rotary position embeddings: the angles by which queries and keys are turned."""

from __future__ import annotations

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from dejavubench.models.backends.protocol import Angles
from dejavubench.models.hub.model_spec import RopeSpec


def compute_frequencies(rope: RopeSpec, size: int) -> Tensor:
    """Return the radians per position of each of a head's ``size`` / 2 pairs, in fp32.

    As in transformers (``modeling_rope_utils``): ``linear`` slows all down alike, ``llama3`` and
    ``yarn`` (Peng et al. 2023, arXiv 2309.00071) the slow ones.
    """
    plain_frequencies = 1.0 / rope.theta ** (
        torch.arange(0, size, 2, dtype=torch.int64).float() / size
    )
    if rope.kind == "linear":
        return plain_frequencies / rope.factor
    if rope.kind == "llama3":
        # Turns within the context that the model was trained on.
        turns = rope.original_context * plain_frequencies / (2 * pi)
        kept_share = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
        return kept_share * plain_frequencies + (1 - kept_share) * plain_frequencies / rope.factor
    if rope.kind == "yarn":
        last_fast_pair, first_slow_pair = (
            _find_pair(rope, size, turns) for turns in (rope.high, rope.low)
        )
        start = max(floor(last_fast_pair), 0)
        stop = min(ceil(first_slow_pair), size - 1)
        slowed_share = ((torch.arange(size // 2) - start) / (stop - start or 0.001)).clamp(0, 1)
        return (
            1 - slowed_share
        ) * plain_frequencies + slowed_share * plain_frequencies / rope.factor
    return plain_frequencies


def _find_pair(rope: RopeSpec, size: int, turn_count: float) -> float:
    """Return which pair makes so many turns within the context that the model was trained on."""
    return size * log(rope.original_context / (turn_count * 2 * pi)) / (2 * log(rope.theta))


class Rotary:
    """The table of a model's angles, as long as the longest cache so far.

    Args:
        dtype, device: type and device of the queries and keys.
    """

    def __init__(self, rope: RopeSpec, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = compute_frequencies(rope, size).to(device)
        self._attention = rope.attention
        self._dtype = dtype
        # Cosines and sines of each position.
        self._table = torch.empty(2, 0, size, dtype=dtype, device=device)

    def reserve(self, position_count: int) -> None:
        """Make the table as long as the cache."""
        if self._table.shape[1] < position_count:
            positions_of_table = torch.arange(position_count, device=self._frequencies.device)
            angles = torch.outer(positions_of_table.float(), self._frequencies).repeat(1, 2)
            self._table = (self._attention * torch.stack([angles.cos(), angles.sin()])).to(
                self._dtype
            )

    def angles(self, position: int | Tensor) -> Angles:
        """Return the angles of the positions from ``position`` on; see :class:`.Angles`."""
        return Angles(self._table, position)
