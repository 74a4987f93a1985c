"""The parts that a layer is made of, each by the fastest way there is for where its input lies.

The few rows of a decode step go through kernels of our own, which read the weights at the memory's speed; a prompt goes
through torch's. On a CUDA device they are those of :mod:`.cuda_step`, which fuse what surrounds a product; a CPU's ways
are :mod:`.cpu_linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
FEW_ROWS = 16
"""Rows up to which a product on a CUDA device is a matter of reading the weights."""

BLOCK = 256
"""Elements of a row that :func:`largest` takes at once."""

Activation = Literal["none", "gelu", "relu", "silu"]
Part = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Part] = {"none": same, "gelu": gelu, "relu": F.relu, "silu": F.silu}


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest element of each row of [B, n] and its place, of equals the first.

    As ``x.max(-1)``, which on a CPU goes through the elements one by one: 50,000 logits took a millisecond of a step.
    """
    if x.is_cuda:
        value, place = x.max(-1)
        return value, place
    whole = x.shape[-1] // BLOCK * BLOCK
    blocks = [x[:, :whole].view(-1, whole // BLOCK, BLOCK).amax(-1)] if whole else []
    if whole < x.shape[-1]:
        blocks.append(x[:, whole:].amax(-1, keepdim=True))
    value, block = torch.cat(blocks, dim=-1).max(-1)
    within = torch.arange(BLOCK) + block.unsqueeze(-1) * BLOCK
    return value, block * BLOCK + x.gather(-1, within.clamp_(max=x.shape[-1] - 1)).argmax(-1)


def _is_step(x: Tensor) -> bool:
    """Whether ``x`` [B, n, width] or [B, width] is a decode step on a CUDA device, in a type that our kernels take."""
    if not x.is_cuda:
        return False
    width = x.shape[-1]
    return x.element_size() == 2 and width % 8 == 0 and x.numel() // width <= FEW_ROWS


@functools.cache
def _cpu() -> ModuleType:
    """What multiplies on a CPU; imported where there is such a model, since its compiler takes a while to import."""
    from dejavubench.models.backends.cpu import linear as cpu_linear

    return cpu_linear


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # [out, in]
    bias: Tensor | None = None

    def __call__(
        self,
        x: Tensor,
        activation: Activation = "none",
        residual: Tensor | None = None,
        norm: Part = same,
    ) -> Tensor:
        """activation(norm(x) · weightᵀ + bias) + residual, of any leading shape; ``residual`` is left as it is."""
        if not x.is_cuda:
            return _cpu().linear(x, self.weight, self.bias, activation, residual, norm)
        x = norm(x)
        if _is_step(x):
            return self._step(x, activation, residual)
        if activation in ("gelu", "relu") and self.bias is not None:
            # cuBLAS applies bias and activation as it writes; torch has no public name for it
            rows = torch._addmm_activation(
                self.bias, x.flatten(0, -2), self.weight.T, use_gelu=activation == "gelu"
            )
            out = rows.unflatten(0, x.shape[:-1])
        else:
            out = ACTIVATIONS[activation](F.linear(x, self.weight, self.bias))
        return out if residual is None else out.add_(residual)

    def _step(self, x: Tensor, activation: Activation, residual: Tensor | None) -> Tensor:
        from dejavubench.models.backends.cuda import step as cuda_step

        rows = None if residual is None else residual.flatten(0, -2)
        return cuda_step.linear(
            x.flatten(0, -2), self.weight, self.bias, activation, rows
        ).unflatten(0, x.shape[:-1])


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
    eps: float = EPS

    def __call__(self, x: Tensor) -> Tensor:
        if _is_step(x):
            from dejavubench.models.backends.cuda import step as cuda_step

            return cuda_step.layer_norm(x.flatten(0, -2), self.weight, self.bias, self.eps).view(
                x.shape
            )
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
