"""The operators that each kind of device brings to the model, as one protocol.

Letters in shapes: B requests, n new positions, S positions in the cache, H heads of queries,
G heads of keys and values, D elements of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache, KVLayout

Activation = Literal["none", "gelu", "relu", "silu"]
"""Names of the activations that a linear can apply to its own output."""

Say = Callable[[str], None]
"""Takes one line for the user."""


def identity(x: Tensor) -> Tensor:
    """Return ``x`` itself: the activation ``none``, and a norm that a layer does not have."""
    return x


def gelu(x: Tensor) -> Tensor:
    """Return GELU by its tanh approximation, as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


# SiLU and ReLU are torch's own; GELU is not, as its default is the exact one.
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": identity,
    "gelu": gelu,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class KernelNeeds:
    """The steps for which kernels must be ready before anything is timed.

    Attributes:
        dtype: type of weights and cache.
        compute_dtype: type of the inputs of linears.
        layout: layout of the caches.
        row_counts: each number of rows that a linear will take at once: requests × new positions.
        widths: each number of inputs that a linear has.
    """

    dtype: torch.dtype
    compute_dtype: torch.dtype
    layout: KVLayout
    row_counts: Sequence[int]
    widths: Sequence[int]


class QKV(NamedTuple):
    """Queries [B, H, n, D], keys and values [B, G, n, D] of n new positions."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class HeadNorms:
    """Root-mean-square norms of each head of queries and of keys, as in Qwen3."""

    query_weight: Tensor  # [D]
    key_weight: Tensor  # [D]
    eps: float


class Angles(NamedTuple):
    """Angles by which a rotary embedding turns the heads of n positions.

    Attributes:
        table: cosines and sines of every position, [2, S, D]. The second half of D is the first
            one again. S is at least as long as the cache.
        position: the first of the n positions, or for n = 1 an int64 tensor [1] on the device.
    """

    table: Tensor
    position: int | Tensor


class Backend(Protocol):
    """The operators of one kind of device, on tensors of that device.

    No operator changes its arguments, except that :meth:`store_and_attend` writes to the cache, and
    :meth:`linear` may write to its residual.
    """

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return activation(x · weightᵀ + bias) + residual, [..., out].

        Args:
            x: [..., in].
            weight: [out, in], contiguous, of x's type or one that is widened to it.
            bias: [out], of x's type.
            residual: [..., out], of x's type; may be overwritten.
        """

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return the layer norm of the rows of ``x`` [..., width]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the root-mean-square norm of the rows of ``x`` [..., width]."""

    def norm_and_rotate(
        self, q: Tensor, k: Tensor, norms: HeadNorms | None, angles: Angles | None
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys with each head normed, and then turned by its position's angles.

        Element i of a head turns with element i + D/2, as in transformers.

        Args:
            q: [B, H, n, D].
            k: [B, G, n, D].
        """

    def gated_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Return activation(x · gateᵀ) · (x · innerᵀ), [..., out / 2].

        Args:
            x: [..., in].
            weight: [out, in], contiguous: the rows of the gate, then as many inner ones.
            bias: [out], of x's type.
        """

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Return softmax(q · kᵀ / √D + bias) · v, [B, H, n, D].

        Args:
            q: [B, H, n, D].
            k, v: [B, G, S, D], of q's type; each head serves H / G heads of queries in a row.
            bias: [1 or B, 1 or H, n, S], of q's type.
            causal: query i sees the keys up to i alone; then n = S, and there is no bias.
        """

    def attend_one(
        self,
        q: Tensor,
        cache: KVCache,
        layer: int,
        stop: int,
        slopes: Tensor | None = None,
        prompt_start: Tensor | None = None,
    ) -> Tensor:
        """Return attention of one query of each head over [prompt_start, stop), as [B, 1, H·D].

        Args:
            q: [B, H, 1, D].
            slopes: ALiBi's, [H] in fp32: a score gets slope · (key's position − query's).
            prompt_start: each request's first position that is no padding, [B] in int64; None: 0.
        """

    def store_and_attend(
        self,
        qkv: QKV,
        cache: KVCache,
        layer: int,
        position: Tensor,
        slopes: Tensor | None = None,
    ) -> Tensor:
        """Put the keys and values of one position in the cache, and attend to [0, position].

        Args:
            qkv: of one new position.
            position: an int64 tensor [1] on the device, so that a captured step serves any
                position.

        Returns:
            [B, 1, H·D].
        """

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest element of each row of [B, n] and its place; of equals the first."""

    def compile(self, needs: KernelNeeds, say: Say) -> None:
        """Make the kernels of such steps ready, so that no timed step waits for its own.

        Args:
            say: takes one line each about compiling, and about kernels that cannot be kept.
        """
