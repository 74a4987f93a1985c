"""Norms of few rows in Triton; see :mod:`.launch`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dejavubench.models.backends.cuda.launch import can_overlap


@triton.jit
def _layer_norm(  # type: ignore[no-untyped-def]
    x, weight, bias, out, x_row, width, eps, block: tl.constexpr
):  # fmt: skip
    """Normalise one row of x, with statistics in fp32."""
    # Rows of x [M, width] lie ``x_row`` elements apart; out is contiguous. One block of threads
    # serves a row, and holds all of it in registers: ``block`` is the next power of two of width.
    row = tl.program_id(0)
    columns = tl.arange(0, block)
    mask = columns < width
    gdc_launch_dependents()
    # Weight and bias are no output of the kernel before, so they are read while it still runs.
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    gdc_wait()
    values = tl.load(x + row * x_row + columns, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / width
    # Masked again: beyond the row, 0 − mean would count in the variance.
    centred = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / width
    result = centred * tl.rsqrt(variance + eps) * scale + shift
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the layer norm of the rows of ``x`` [M, width], with statistics in fp32."""
    rows, width = x.shape
    out = x.new_empty(rows, width)
    # Untuned: 8 warps were chosen by hand, and no comparison with other numbers is committed.
    _layer_norm[(rows,)](
        x, weight, bias, out, x.stride(0), width, eps, triton.next_power_of_2(width),
        num_warps=8, launch_pdl=can_overlap(x.device),
    )  # fmt: skip
    return out


@triton.jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, out, x_row, width, eps, block: tl.constexpr
):  # fmt: skip
    """Divide one row of x by its root mean square, in fp32; shapes as in :func:`_layer_norm`."""
    row = tl.program_id(0)
    columns = tl.arange(0, block)
    mask = columns < width
    gdc_launch_dependents()
    # The weight is no output of the kernel before, so it is read while that one still runs.
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    gdc_wait()
    values = tl.load(x + row * x_row + columns, mask=mask, other=0.0).to(tl.float32)
    mean_square = tl.sum(values * values, 0) / width
    result = values * tl.rsqrt(mean_square + eps) * scale
    tl.store(out + row * width + columns, result.to(out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the root-mean-square norm of the rows of ``x`` [M, width], summed in fp32."""
    rows, width = x.shape
    out = x.new_empty(rows, width)
    _rms_norm[(rows,)](
        x, weight, out, x.stride(0), width, eps, triton.next_power_of_2(width),
        num_warps=8, launch_pdl=can_overlap(x.device),
    )  # fmt: skip
    return out
