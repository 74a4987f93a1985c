"""A linear on a CPU. The number of rows and the CPU's instructions decide which way is fastest.

Weights are kept once, as they are loaded: row by row, in the model's data type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import Span
from dejavubench.models.backends.cpu import linear_kernel
from dejavubench.models.backends.cpu.code_cache import Kernel
from dejavubench.models.backends.protocol import ACTIVATIONS, Activation

ONEDNN_NAMES: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
"""oneDNN's name of each activation, and of the formula that it uses."""

LEAST_REORDERED_ROWS = 128
"""Rows from which on oneDNN's own order of a weight, made for each product, pays."""

WIDENED_NBYTES = 16 << 20
"""Bytes of a weight that are widened at once.

Smaller products were slower, and so was memory that is allocated anew for each product.
"""


@functools.cache
def can_fuse() -> bool:
    """Return whether torch's oneDNN multiplies bf16 here."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def count_most_kernel_rows(x_dtype: torch.dtype, weight_dtype: torch.dtype) -> int:
    """Return up to how many rows our kernel is faster than torch; it does not give fp16."""
    if x_dtype == torch.float16:
        return 0
    return 16 if x_dtype == weight_dtype else 32


def choose_kernels(
    rows: int, in_features: int, weight_dtype: torch.dtype, x_dtype: torch.dtype
) -> list[Kernel]:
    """Return the kernels that ``rows`` rows go through; none if torch multiplies them."""
    if rows > count_most_kernel_rows(x_dtype, weight_dtype):
        return []
    return [linear_kernel.choose_kernel(rows, in_features, weight_dtype, x_dtype)]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(x · weightᵀ + bias) + residual; see :meth:`.protocol.Backend.linear`."""
    row_count = x.numel() // x.shape[-1]
    if row_count <= count_most_kernel_rows(x.dtype, weight.dtype):
        return linear_kernel.linear(x, weight, bias, activation, residual)
    if x.dtype == torch.bfloat16 and row_count >= LEAST_REORDERED_ROWS and can_fuse():
        return _fused_linear(x, weight, bias, activation, residual)
    if x.dtype == weight.dtype != torch.bfloat16:
        out = F.linear(x, weight, bias)
    else:
        multiply = _multiply_weight_first if x.dtype == torch.bfloat16 else _widening_linear
        out = multiply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    out = ACTIVATIONS[activation](out)
    return out if residual is None else out.add_(residual)


def _multiply_weight_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias as (weight · xᵀ)ᵀ, [rows, out]."""
    # The library oneDNN reads a left factor as it lies, and reorders a right one first.
    product = torch.mm(weight, x.T).T
    out = torch.empty(product.shape, dtype=x.dtype)
    return out.copy_(product) if bias is None else torch.add(product, bias, out=out)


def _fused_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None
) -> Tensor:
    """Return the linear by oneDNN, which activates and adds as it writes: it rounds once."""
    # An operator of torch's compiler; torch has no public name for it.
    linear_pointwise: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    if residual is None:
        name, formula = ONEDNN_NAMES[activation]
        return linear_pointwise(x, weight, bias, name, [], formula)
    if activation == "none":
        return linear_pointwise.binary(x, residual, weight, bias, "add")  # type: ignore[attr-defined]
    return _fused_linear(x, weight, bias, activation, None).add_(residual)


def _widening_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias in fp32, [rows, out]; the weight is widened block by block."""
    most_rows = max(1, WIDENED_NBYTES // (4 * weight.shape[1]))
    widened_rows = torch.empty(min(most_rows, len(weight)), weight.shape[1])
    out = torch.empty(len(x), len(weight))
    for block in Span(0, len(weight)).cut(most_rows):
        torch.mm(
            x, widened_rows[: block.size].copy_(weight[block.slice]).T, out=out[:, block.slice]
        )
    return out if bias is None else out.add_(bias)
