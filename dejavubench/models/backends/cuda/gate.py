"""The gate of a gated MLP by one Triton kernel; see :mod:`.launch`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dejavubench.models.backends.cuda.launch import activate, can_overlap
from dejavubench.models.backends.protocol import Activation

COLUMNS_PER_BLOCK = 1024
"""Columns of one row that a block of threads computes."""


@triton.jit
def _gate(  # type: ignore[no-untyped-def]
    x, out, x_row, width, activation: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """Compute ``block`` columns of one row; x holds the gate's ``width`` columns, then others."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    mask = columns < width
    gdc_launch_dependents()
    gdc_wait()
    gates = tl.load(x + row * x_row + columns, mask=mask, other=0.0).to(tl.float32)
    inner = tl.load(x + row * x_row + width + columns, mask=mask, other=0.0).to(tl.float32)
    results = activate(gates, activation) * inner
    tl.store(out + row * width + columns, results.to(out.dtype.element_ty), mask=mask)


def gate(x: Tensor, activation: Activation) -> Tensor:
    """Return activation(first half of x) · second half, in fp32 and rounded once, [M, width / 2].

    Args:
        x: [M, width], its rows contiguous.
        activation: "gelu" is the tanh approximation.
    """
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    _gate[(rows, triton.cdiv(width, COLUMNS_PER_BLOCK))](
        x, out, x.stride(0), width, activation, COLUMNS_PER_BLOCK,
        num_warps=4, launch_pdl=can_overlap(x.device),
    )  # fmt: skip
    return out
