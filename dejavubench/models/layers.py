"""The parts that a decoder layer is made of: weights together with the operator that uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dejavubench.models.backends.protocol import Activation, Backend

LayerPart = Callable[[Tensor], Tensor]
"""[..., in] → [..., out], along the last axis."""

LAYER_NORM_EPS = 1e-5
"""Added to a variance before its root; the value of GPT-2 and OPT."""


@dataclass(frozen=True)
class Linear:
    """A linear map with its weights and the operator that applies it."""

    backend: Backend
    weight: Tensor  # [out, in]
    bias: Tensor | None = None  # [out]

    def __call__(
        self, x: Tensor, activation: Activation = "none", residual: Tensor | None = None
    ) -> Tensor:
        """Return activation(x · weightᵀ + bias) + residual; x [..., in], residual [..., out]."""
        return self.backend.linear(x, self.weight, self.bias, activation, residual)

    def gate(self, x: Tensor, activation: Activation) -> Tensor:
        """Return activation(first half of the outputs) · second half; x [..., in]."""
        return self.backend.gated_linear(x, self.weight, self.bias, activation)


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm with its weights and the operator that applies it."""

    backend: Backend
    weight: Tensor  # [width]
    bias: Tensor  # [width]
    eps: float = LAYER_NORM_EPS

    def __call__(self, x: Tensor) -> Tensor:
        """Return the norm of the rows of ``x`` [..., width]."""
        return self.backend.layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class RMSNorm:
    """A root-mean-square norm, which has a weight and no bias."""

    backend: Backend
    weight: Tensor  # [width]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the norm of the rows of ``x`` [..., width]."""
        return self.backend.rms_norm(x, self.weight, self.eps)
