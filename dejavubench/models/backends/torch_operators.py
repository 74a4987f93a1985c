"""Operators of plain torch, for every device, type and number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import Span
from dejavubench.models.backends.protocol import ACTIVATIONS, Activation, Angles, HeadNorms


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the root-mean-square norm of the rows of ``x`` [..., width]."""
    return F.rms_norm(x, weight.shape, weight, eps)


def norm_and_rotate(
    q: Tensor, k: Tensor, norms: HeadNorms | None, angles: Angles | None
) -> tuple[Tensor, Tensor]:
    """See :meth:`~.protocol.Backend.norm_and_rotate`."""
    if norms is not None:
        q = rms_norm(q, norms.query_weight, norms.eps)
        k = rms_norm(k, norms.key_weight, norms.eps)
    if angles is not None:
        cosine, sine = _select_positions(angles, q.shape[2])
        q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
    return q, k


def _select_positions(angles: Angles, new_positions: int) -> Tensor:
    """Return the cosines and sines of the new positions, [2, n, D]."""
    first_position = angles.position
    rows = (
        Span(first_position, first_position + new_positions).slice
        if isinstance(first_position, int)
        else first_position
    )
    return angles.table[:, rows]


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first_half, second_half = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second_half, first_half], dim=-1) * sine


def gate(x: Tensor, activation: Activation) -> Tensor:
    """Return activation(first half of x) · second half, [..., width / 2]. Overwrites ``x``."""
    gate_half, up_half = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate_half).mul_(up_half)
