"""The parts that a layer is made of, each by the fastest way there is for where its input lies.

On a CUDA device the few rows of a decode step go through kernels of our own (:mod:`.cuda_step`), which fuse what
surrounds a product and read the weights at the memory's speed; a prompt goes through torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
FEW_ROWS = 16
"""Rows up to which a product on a CUDA device is a matter of reading the weights."""

Activation = Literal["none", "gelu", "relu", "silu"]
Part = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Part] = {"none": same, "gelu": gelu, "relu": F.relu, "silu": F.silu}


def _is_step(x: Tensor) -> bool:
    """Whether ``x`` [B, n, width] or [B, width] is a decode step on a CUDA device, in a type that our kernels take."""
    width = x.shape[-1]
    return x.is_cuda and x.element_size() == 2 and width % 8 == 0 and x.numel() // width <= FEW_ROWS


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # [out, in]
    bias: Tensor | None = None

    def __call__(self, x: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        """activation(x · weightᵀ + bias) + residual, of any leading shape; ``residual`` is left as it is."""
        if _is_step(x):
            return self._step(x, activation, residual)
        if x.is_cuda and activation in ("gelu", "relu") and self.bias is not None:
            # cuBLAS applies bias and activation as it writes; torch has no public name for it
            rows = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.T, use_gelu=activation == "gelu")
            out = rows.unflatten(0, x.shape[:-1])
        else:
            out = ACTIVATIONS[activation](F.linear(x, self.weight, self.bias))
        return out if residual is None else out.add_(residual)

    def _step(self, x: Tensor, activation: Activation, residual: Tensor | None) -> Tensor:
        from dejavubench.models import cuda_step

        rows = None if residual is None else residual.flatten(0, -2)
        return cuda_step.linear(x.flatten(0, -2), self.weight, self.bias, activation, rows).unflatten(0, x.shape[:-1])


FUSED: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
"""oneDNN's names of activations, and of the way they are computed."""

ROWS_IN_MIND = 1024
"""Rows of the products that the order of packed weights is chosen for; it made no difference to those of few rows."""


@dataclass(frozen=True)
class PackedLinear:
    """A linear on a CPU whose weight lies in oneDNN's own order, so that no product has to find one.

    Products of a decode step took 0.3 to 0.7 of the time, those of a prompt 0.9 (bf16). torch has no public name for
    the operators; they are those that its compiler uses.
    """

    weight: Tensor  # opaque
    bias: Tensor | None

    @classmethod
    def of(cls, linear: AnyLinear) -> PackedLinear:
        if isinstance(linear, PackedLinear):
            return linear
        return cls(torch.ops.mkldnn._reorder_linear_weight(linear.weight, ROWS_IN_MIND), linear.bias)

    def __call__(self, x: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        """As :meth:`Linear.__call__`, rounded once."""
        product = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            name, way = FUSED[activation]
            return product(x, self.weight, self.bias, name, [], way)
        if activation == "none":
            return product.binary(x, residual, self.weight, self.bias, "add")
        return self(x, activation).add_(residual)


AnyLinear = Linear | PackedLinear


@functools.cache
def amx() -> bool:
    """Whether this CPU has AMX.

    Without it torch's attention of a single query is poor in half types, and reading the cache as fp32 takes half of
    the time or less; with it that takes 2.5 times as long.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN multiplies this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class RMSNorm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if _is_step(x):
            from dejavubench.models import cuda_step

            return cuda_step.layer_norm(x.flatten(0, -2), self.weight, self.bias, EPS).view(x.shape)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)
