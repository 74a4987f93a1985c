"""A linear on a CPU. Which way is the fastest depends on the number of rows and on what this CPU multiplies.

Weights are kept once, as they are loaded: row by row, in the model's data type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kvcache import Span
from dejavubench.models.backends.cpu import step as cpu_step
from dejavubench.models.backends.cpu.codecache import Kernel
from dejavubench.models.parts import ACTIVATIONS, Activation, Part, same

FUSED: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
"""oneDNN's names of activations, and of the way they are computed."""

REORDERED_ROWS = 128
"""Rows from which on it pays that oneDNN puts a weight in an order of its own for each product."""

WIDENED = 16 << 20
"""Bytes of a weight that are widened at once: smaller products were slower, memory taken anew for each as well."""


@functools.cache
def can_fuse() -> bool:
    """Whether torch's oneDNN multiplies bf16 here."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def most_step_rows(x: torch.dtype, weight: torch.dtype) -> int:
    """Rows that go through :mod:`.cpu_step`, which is faster than torch up to there; it does not give fp16."""
    if x == torch.float16:
        return 0
    return 16 if x == weight else 32


def kernels(rows: int, weight: Tensor, x: torch.dtype) -> list[Kernel]:
    """Return the kernels that so many rows of a type go through; none if a library multiplies them."""
    if rows > most_step_rows(x, weight.dtype):
        return []
    return [cpu_step.linear_kernel(rows, weight.shape[1], weight.dtype, x)]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
    norm: Part = same,
) -> Tensor:
    """activation(norm(x) · weightᵀ + bias) + residual; x [..., in], weight [out, in], of x's type or to be widened."""
    rows = x.numel() // x.shape[-1]
    if rows <= most_step_rows(x.dtype, weight.dtype):
        return cpu_step.linear(x, weight, bias, activation, residual, norm)
    x = norm(x)
    if x.dtype == torch.bfloat16 and rows >= REORDERED_ROWS and can_fuse():
        return _fused(x, weight, bias, activation, residual)
    if x.dtype == weight.dtype != torch.bfloat16:
        out = F.linear(x, weight, bias)
    else:
        product = _as_left_factor if x.dtype == torch.bfloat16 else _widened
        out = product(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    out = ACTIVATIONS[activation](out)
    return out if residual is None else out.add_(residual)


def _as_left_factor(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight · xᵀ: oneDNN reads a left factor as it lies, and puts a right one in its own order first."""
    product = torch.mm(weight, x.T).T
    out = torch.empty(product.shape, dtype=x.dtype)
    return out.copy_(product) if bias is None else torch.add(product, bias, out=out)


def _fused(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None
) -> Tensor:
    """By the operators of torch's compiler, which have no public names: one rounding, no passes of their own."""
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    if residual is None:
        name, way = FUSED[activation]
        return product(x, weight, bias, name, [], way)
    if activation == "none":
        return product.binary(x, residual, weight, bias, "add")  # type: ignore[attr-defined]
    return _fused(x, weight, bias, activation, None).add_(residual)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Block by block of the weight's rows."""
    most = max(1, WIDENED // (4 * weight.shape[1]))
    wide, out = (
        torch.empty(min(most, len(weight)), weight.shape[1]),
        torch.empty(len(x), len(weight)),
    )
    for block in Span(0, len(weight)).cut(most):
        torch.mm(x, wide[: block.size].copy_(weight[block.slice]).T, out=out[:, block.slice])
    return out if bias is None else out.add_(bias)
