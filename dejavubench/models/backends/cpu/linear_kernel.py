"""The kernel of a linear of few rows: what counts is to read the weights at the memory's speed.

Weights are read in the type that they are kept in, which need not be one that the CPU multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numba import carray
from torch import Tensor

from dejavubench.models.backends.cpu import amx
from dejavubench.models.backends.cpu.code_cache import Kernel
from dejavubench.models.backends.cpu.dot_kernels import (
    AHEAD_NBYTES,
    STREAMS,
    TOTALS,
    dots,
    multiplies_pairs,
    sizes_text,
)
from dejavubench.models.backends.cpu.elementwise import (
    add,
    add_widened,
    floats,
    gelu,
    halves,
    narrow,
    relu,
    silu,
    widen,
)
from dejavubench.models.backends.cpu.threads import (
    Compiled,
    LoadedCode,
    compiled,
    kernel,
    pointer_of,
    released,
    run,
    scratch,
    share,
    struct,
)
from dejavubench.models.backends.protocol import Activation

TILE = 4
"""Rows of x whose products with the same rows of a weight are summed side by side."""

ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}
"""Each activation's number in a job."""

LinearJob = struct(
    "LinearJob", "x", "weight", "bias", "residual", "out", "rows", "ins", "outs", "activation"
)
"""The first five are addresses, 0 if there is no bias or residual."""


@dataclass(frozen=True)
class CpuTiling:
    """Sizes of the tiles in which rows of x are multiplied by a weight.

    Attributes:
        rows: rows of x at once; rows that are left over come one by one.
        weight_rows: rows of the weight at once. They lie far apart, so that each is a stream which
            the processor notices and fetches ahead.
        several: all rows of x take more than one turn. Each turn then asks memory for half of what
            follows: if the first one asked for all of it, memory would be idle during the second.
        amx: multiplied by :mod:`.amx`, which takes neighbouring rows of the weight.
    """

    rows: int
    weight_rows: int
    several: bool
    amx: bool = False

    @staticmethod
    @cache
    def choose(rows: int, ins: int, dtype: torch.dtype, x_dtype: torch.dtype) -> CpuTiling:
        """Return the tiling for ``rows`` rows of x and a weight with ``ins`` columns."""
        if dtype == x_dtype == torch.bfloat16 and rows > TILE and amx.can_multiply(rows, ins):
            return CpuTiling(amx.ROWS, amx.ROWS, several=False, amx=True)
        tile = min(TILE, 1 << max(1, rows).bit_length() - 1)  # a power of two, not above ``rows``
        return CpuTiling(tile, min(STREAMS, TOTALS // tile), rows > TILE)


def kernel_for(rows: int, ins: int, dtype: torch.dtype, x_dtype: torch.dtype) -> Kernel:
    """Return the kernel for ``rows`` rows of x and a weight of ``dtype`` with ``ins`` columns."""
    return _make_kernel(dtype, x_dtype, CpuTiling.choose(rows, ins, dtype, x_dtype))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(x · weightᵀ + bias) + residual, rounded once.

    Args:
        x: [..., in], like bias and residual in fp32, or in bf16 if the weight is.
        weight: [out, in], contiguous.

    Raises:
        TypeError: other types.
    """
    outs, ins = weight.shape
    x_dtype = x.dtype
    if not (x_dtype == torch.float32 or x_dtype == torch.bfloat16 == weight.dtype) or any(
        other is not None and other.dtype != x_dtype for other in (bias, residual)
    ):
        raise TypeError(
            f"x of {x_dtype} with a weight of {weight.dtype}; bias and residual must be of x's type"
        )
    rows_of_x = x.contiguous()
    contiguous_residual = None if residual is None else residual.contiguous()
    out = x.new_empty((*x.shape[:-1], outs))
    rows = x.numel() // ins
    job = LinearJob(
        *(
            rows_of_x.data_ptr(),
            weight.data_ptr(),
            pointer_of(bias),
            pointer_of(contiguous_residual),
            out.data_ptr(),
        ),
        *(rows, ins, outs, ACTIVATIONS[activation]),
    )
    run(kernel_for(rows, ins, weight.dtype, x_dtype), job)
    return out


@cache
def _make_kernel(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> Kernel:
    pairs = multiplies_pairs(dtype, x_dtype)
    name = f"linear: {x_dtype} by {dtype}, {tiling}, in pairs {pairs}, {sizes_text()}"
    return Kernel(name, partial(_compile, dtype, x_dtype, tiling))


# ---- compiled code ----


@cache
def _make_product(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> Compiled:
    """Return ``product(x, rows, ins, weight, columns, sums, sums_stride)``, compiled.

    It adds x · weightᵀ to the sums, fp32 [rows, columns], whose rows are ``sums_stride``
    bytes apart.
    """
    weight_rows, itemsize, x_itemsize = tiling.weight_rows, dtype.itemsize, x_dtype.itemsize
    turns = _make_turns(dtype, x_dtype, tiling)
    single_dots = dots(dtype, 1, 1, x_dtype=x_dtype)

    @compiled
    def product(x, rows, ins, weight, columns, sums, sums_stride):  # type: ignore[no-untyped-def]
        # The weight is cut into as many parts as there are streams: one row of each at a time.
        part, row = columns // weight_rows, ins * itemsize
        for n in range(part):
            turns(weight + n * row, part * row, x, rows, ins, sums + n * 4, sums_stride, part * 4)
        # Rows of the weight that are left over, one by one.
        for n in range(part * weight_rows, columns):
            for m in range(rows):
                x_row = x + m * ins * x_itemsize
                single_dots(
                    weight + n * row, 0, x_row, 0, ins, sums + m * sums_stride + n * 4, 0, 0, 0
                )

    return product


def _make_turns(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> Compiled:
    """Return the compiled loop over all rows of x, a tile at a time, for one row of each stream."""
    tile, weight_rows, several = tiling.rows, tiling.weight_rows, tiling.several
    itemsize, x_itemsize = dtype.itemsize, x_dtype.itemsize
    fetches = weight_rows // 2 if several else weight_rows
    tile_dots = dots(dtype, weight_rows, tile, x_dtype=x_dtype, fetches=fetches)
    single_dots = (
        tile_dots if tile == 1 else dots(dtype, weight_rows, 1, x_dtype=x_dtype, fetches=fetches)
    )

    @compiled
    def turns(w, stride, x, rows, ins, sums, sums_stride, after):  # type: ignore[no-untyped-def]
        """Multiply all rows of x, ``tile`` rows a turn, with one row of each stream."""
        row, m = ins * x_itemsize, 0
        ahead = max(AHEAD_NBYTES, 2 * ins * itemsize) if several else AHEAD_NBYTES
        # The first turn asks memory for the first half of these rows, the second for the others.
        # From the third on nothing is left to ask for.
        following = ahead + fetches * stride if several else 0
        while m <= rows - tile:
            x_rows, into = x + m * row, sums + m * sums_stride
            tile_dots(w, stride, x_rows, row, ins, into, sums_stride, after, ahead)
            m, ahead, following = m + tile, following, 0
        if tile > 1:
            while m < rows:
                x_rows, into = x + m * row, sums + m * sums_stride
                single_dots(w, stride, x_rows, row, ins, into, sums_stride, after, ahead)
                m, ahead, following = m + 1, following, 0

    return turns


def _make_finish(bf16: bool, plus: Compiled, as_elements: Compiled) -> Compiled:
    """Return ``finish(sums, activation, residual, out)``, compiled, for one row of sums."""

    @compiled
    def finish(sums, activation, residual, out):  # type: ignore[no-untyped-def]
        if activation == 1:
            gelu(sums)
        elif activation == 2:
            relu(sums)
        elif activation == 3:
            silu(sums)
        if residual:
            plus(carray(as_elements(residual), len(sums)), sums)
        if bf16:  # else the sums are where the results belong
            narrow(sums, carray(halves(out), len(sums)))

    return finish


@compiled
def _sums_nbytes(rows: int, columns: int, bf16: bool) -> int:
    """Return the bytes of a thread's sums; those of fp32 results are summed in place."""
    return rows * columns * 4 if bf16 else 0


@compiled
def _widened_nbytes(rows: int, ins: int, widens: bool) -> int:
    """Return the bytes of x in fp32, if the products need it so."""
    return rows * ins * 4 if widens else 0


def _compile(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> LoadedCode:
    """Compile the kernel: each thread multiplies all rows of x by its part of the weight."""
    itemsize, x_itemsize, bf16 = dtype.itemsize, x_dtype.itemsize, x_dtype == torch.bfloat16
    widens = bf16 and not (tiling.amx or multiplies_pairs(dtype, x_dtype))
    product = amx.product
    if not tiling.amx:
        product = _make_product(dtype, torch.float32 if widens else x_dtype, tiling)
    as_elements, plus = (halves, add_widened) if bf16 else (floats, add)
    finish = _make_finish(bf16, plus, as_elements)

    @kernel(LinearJob)
    def product_of_rows(jobs):  # type: ignore[no-untyped-def]
        """Multiply x by this thread's rows of the weight, and finish its columns."""
        job = carray(jobs, 1)[0]
        x, rows, ins, outs = job.x, job.rows, job.ins, job.outs
        # Whole groups of STREAMS rows, so that a thread has single rows left over at the end only.
        begin, stop = share(outs, STREAMS)
        columns = stop - begin  # this thread's rows of the weight
        sums_nbytes = _sums_nbytes(rows, columns, bf16)
        memory = scratch(sums_nbytes + _widened_nbytes(rows, ins, widens))
        # fp32 results are summed where they belong, bf16 results in fp32 beside them.
        sums, stride = (memory, columns * 4) if bf16 else (job.out + begin * 4, outs * 4)
        for m in range(rows):
            row = carray(floats(sums + m * stride), columns)
            row[:] = np.float32(0)
            if job.bias:
                plus(carray(as_elements(job.bias + begin * x_itemsize), columns), row)
        if widens:  # once for all rows of the weight
            x = memory + sums_nbytes
            widen(carray(halves(job.x), rows * ins), carray(floats(x), rows * ins))
        product(x, rows, ins, job.weight + begin * ins * itemsize, columns, sums, stride)
        for m in range(rows):
            offset = (m * outs + begin) * x_itemsize
            residual = job.residual + offset if job.residual else 0
            row = carray(floats(sums + m * stride), columns)
            finish(row, job.activation, residual, job.out + offset)
        released(memory)

    return product_of_rows
