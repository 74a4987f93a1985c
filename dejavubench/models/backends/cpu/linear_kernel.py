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
    MOST_TOTALS,
    PART_COUNT,
    format_sizes,
    make_dots,
    multiplies_pairs,
)
from dejavubench.models.backends.cpu.elementwise import (
    add,
    add_widened,
    as_floats,
    as_halves,
    gelu,
    narrow,
    relu,
    silu,
    widen,
)
from dejavubench.models.backends.cpu.threads import (
    CompiledFunction,
    LoadedCode,
    address_or_zero,
    compiled,
    compiled_kernel,
    free_scratch,
    make_job_type,
    run_on_all_threads,
    take_scratch,
    take_share,
)
from dejavubench.models.backends.protocol import Activation

TILE_ROWS = 4
"""Rows of x whose products with the same rows of a weight are summed side by side."""

ACTIVATION_NUMBERS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}
"""Each activation's number in a job."""

LinearJob = make_job_type(
    "LinearJob",
    *("x", "weight", "bias", "residual", "out"),
    *("rows", "in_features", "out_features", "activation"),
)
"""The first five are addresses, 0 if there is no bias or residual."""


@dataclass(frozen=True)
class CpuTiling:
    """Sizes of the tiles in which rows of x are multiplied by a weight.

    Attributes:
        x_rows: rows of x at once; rows that are left over come one by one.
        weight_rows: rows of the weight at once. They lie far apart, so that each is a stream which
            the processor notices and fetches ahead.
        takes_turns: all rows of x take more than one turn. Each turn then asks memory for half of
            what follows: if the first one asked for all of it, memory would be idle during the
            second.
        uses_amx: multiplied by :mod:`.amx`, which takes neighbouring rows of the weight.
    """

    x_rows: int
    weight_rows: int
    takes_turns: bool
    uses_amx: bool = False

    @staticmethod
    @cache
    def choose(rows: int, in_features: int, dtype: torch.dtype, x_dtype: torch.dtype) -> CpuTiling:
        """Return the tiling for ``rows`` rows of x and a weight with ``in_features`` columns."""
        if (
            dtype == x_dtype == torch.bfloat16
            and rows > TILE_ROWS
            and amx.can_multiply(rows, in_features)
        ):
            return CpuTiling(amx.TILE_ROWS, amx.TILE_ROWS, takes_turns=False, uses_amx=True)
        # A power of two, not above ``rows``.
        tile_rows = min(TILE_ROWS, 1 << max(1, rows).bit_length() - 1)
        return CpuTiling(tile_rows, min(PART_COUNT, MOST_TOTALS // tile_rows), rows > TILE_ROWS)


def choose_kernel(rows: int, in_features: int, dtype: torch.dtype, x_dtype: torch.dtype) -> Kernel:
    """Return the kernel for ``rows`` rows of x and a weight [out, in_features] of ``dtype``."""
    return _make_kernel(dtype, x_dtype, CpuTiling.choose(rows, in_features, dtype, x_dtype))


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
    out_features, in_features = weight.shape
    x_dtype = x.dtype
    if not (x_dtype == torch.float32 or x_dtype == torch.bfloat16 == weight.dtype) or any(
        other is not None and other.dtype != x_dtype for other in (bias, residual)
    ):
        raise TypeError(
            f"x of {x_dtype} with a weight of {weight.dtype}; bias and residual must be of x's type"
        )
    rows_of_x = x.contiguous()
    contiguous_residual = None if residual is None else residual.contiguous()
    out = x.new_empty((*x.shape[:-1], out_features))
    rows = x.numel() // in_features
    job = LinearJob(
        *(
            rows_of_x.data_ptr(),
            weight.data_ptr(),
            address_or_zero(bias),
            address_or_zero(contiguous_residual),
            out.data_ptr(),
        ),
        *(rows, in_features, out_features, ACTIVATION_NUMBERS[activation]),
    )
    run_on_all_threads(choose_kernel(rows, in_features, weight.dtype, x_dtype), job)
    return out


@cache
def _make_kernel(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> Kernel:
    in_pairs = multiplies_pairs(dtype, x_dtype)
    name = f"linear: {x_dtype} by {dtype}, {tiling}, in pairs {in_pairs}, {format_sizes()}"
    return Kernel(name, partial(_compile, dtype, x_dtype, tiling))


# ---- compiled code ----


@cache
def _make_product(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> CompiledFunction:
    """Return ``product(x, rows, in_features, weight, columns, sums, sums_stride)``, compiled.

    It adds x · weightᵀ to the sums, fp32 [rows, columns], whose rows are ``sums_stride``
    bytes apart.
    """
    weight_rows, itemsize, x_itemsize = tiling.weight_rows, dtype.itemsize, x_dtype.itemsize
    multiply_in_turns = _make_multiplication_in_turns(dtype, x_dtype, tiling)
    single_dots = make_dots(dtype, 1, 1, x_dtype=x_dtype)

    @compiled
    def product(x, rows, in_features, weight, columns, sums, sums_stride):  # type: ignore[no-untyped-def]
        # The weight is cut into ``weight_rows`` parts: one row of each at a time.
        part_rows, row_nbytes = columns // weight_rows, in_features * itemsize
        for n in range(part_rows):
            multiply_in_turns(
                weight + n * row_nbytes,
                part_rows * row_nbytes,
                x,
                rows,
                in_features,
                sums + n * 4,
                sums_stride,
                part_rows * 4,
            )
        # Rows of the weight that are left over, one by one.
        for n in range(part_rows * weight_rows, columns):
            for m in range(rows):
                x_row = x + m * in_features * x_itemsize
                single_dots(
                    weight + n * row_nbytes,
                    0,
                    x_row,
                    0,
                    in_features,
                    sums + m * sums_stride + n * 4,
                    0,
                    0,
                    0,
                )

    return product


def _make_multiplication_in_turns(
    dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling
) -> CompiledFunction:
    """Return the compiled loop over all rows of x, a tile at a time, for one row of each part."""
    tile_rows, weight_rows, takes_turns = tiling.x_rows, tiling.weight_rows, tiling.takes_turns
    itemsize, x_itemsize = dtype.itemsize, x_dtype.itemsize
    prefetched_rows = weight_rows // 2 if takes_turns else weight_rows
    tile_dots = make_dots(
        dtype, weight_rows, tile_rows, x_dtype=x_dtype, prefetched_row_count=prefetched_rows
    )
    single_dots = (
        tile_dots
        if tile_rows == 1
        else make_dots(dtype, weight_rows, 1, x_dtype=x_dtype, prefetched_row_count=prefetched_rows)
    )

    @compiled
    def multiply_in_turns(w, w_stride, x, rows, in_features, sums, sums_stride, sums_step):  # type: ignore[no-untyped-def]
        """Multiply all rows of x, ``tile_rows`` rows a turn, with one row of each part."""
        x_row_nbytes, m = in_features * x_itemsize, 0
        ahead = max(AHEAD_NBYTES, 2 * in_features * itemsize) if takes_turns else AHEAD_NBYTES
        # The first turn asks memory for the first half of these rows, the second for the others.
        # From the third on nothing is left to ask for.
        next_ahead = ahead + prefetched_rows * w_stride if takes_turns else 0
        while m <= rows - tile_rows:
            turn_x, turn_sums = x + m * x_row_nbytes, sums + m * sums_stride
            tile_dots(
                w,
                w_stride,
                turn_x,
                x_row_nbytes,
                in_features,
                turn_sums,
                sums_stride,
                sums_step,
                ahead,
            )
            m, ahead, next_ahead = m + tile_rows, next_ahead, 0
        if tile_rows > 1:
            while m < rows:
                turn_x, turn_sums = x + m * x_row_nbytes, sums + m * sums_stride
                single_dots(
                    w,
                    w_stride,
                    turn_x,
                    x_row_nbytes,
                    in_features,
                    turn_sums,
                    sums_stride,
                    sums_step,
                    ahead,
                )
                m, ahead, next_ahead = m + 1, next_ahead, 0

    return multiply_in_turns


def _make_finish(
    is_bf16: bool, add_elements: CompiledFunction, as_elements: CompiledFunction
) -> CompiledFunction:
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
            add_elements(carray(as_elements(residual), len(sums)), sums)
        if is_bf16:  # else the sums are where the results belong
            narrow(sums, carray(as_halves(out), len(sums)))

    return finish


@compiled
def _sums_nbytes(rows: int, columns: int, is_bf16: bool) -> int:
    """Return the bytes of a thread's sums; those of fp32 results are summed in place."""
    return rows * columns * 4 if is_bf16 else 0


@compiled
def _widened_nbytes(rows: int, in_features: int, widens: bool) -> int:
    """Return the bytes of x in fp32, if the products need it so."""
    return rows * in_features * 4 if widens else 0


def _compile(dtype: torch.dtype, x_dtype: torch.dtype, tiling: CpuTiling) -> LoadedCode:
    """Compile the kernel: each thread multiplies all rows of x by its part of the weight."""
    itemsize, x_itemsize, is_bf16 = dtype.itemsize, x_dtype.itemsize, x_dtype == torch.bfloat16
    widens = is_bf16 and not (tiling.uses_amx or multiplies_pairs(dtype, x_dtype))
    product = amx.product
    if not tiling.uses_amx:
        product = _make_product(dtype, torch.float32 if widens else x_dtype, tiling)
    as_elements, add_elements = (as_halves, add_widened) if is_bf16 else (as_floats, add)
    finish = _make_finish(is_bf16, add_elements, as_elements)

    @compiled_kernel(LinearJob)
    def product_of_rows(jobs):  # type: ignore[no-untyped-def]
        """Multiply x by this thread's rows of the weight, and finish its columns."""
        job = carray(jobs, 1)[0]
        x, rows, in_features, out_features = job.x, job.rows, job.in_features, job.out_features
        # Whole groups of rows, one per part: a thread has single rows left over at the end only.
        first_column, end_column = take_share(out_features, PART_COUNT)
        columns = end_column - first_column  # this thread's rows of the weight
        sums_nbytes = _sums_nbytes(rows, columns, is_bf16)
        memory = take_scratch(sums_nbytes + _widened_nbytes(rows, in_features, widens))
        # fp32 results are summed where they belong, bf16 results in fp32 beside them.
        sums, sums_stride = (
            (memory, columns * 4) if is_bf16 else (job.out + first_column * 4, out_features * 4)
        )
        for m in range(rows):
            row_sums = carray(as_floats(sums + m * sums_stride), columns)
            row_sums[:] = np.float32(0)
            if job.bias:
                add_elements(
                    carray(as_elements(job.bias + first_column * x_itemsize), columns), row_sums
                )
        if widens:  # once for all rows of the weight
            x = memory + sums_nbytes
            widen(
                carray(as_halves(job.x), rows * in_features),
                carray(as_floats(x), rows * in_features),
            )
        product(
            x,
            rows,
            in_features,
            job.weight + first_column * in_features * itemsize,
            columns,
            sums,
            sums_stride,
        )
        for m in range(rows):
            out_offset = (m * out_features + first_column) * x_itemsize
            residual = job.residual + out_offset if job.residual else 0
            row_sums = carray(as_floats(sums + m * sums_stride), columns)
            finish(row_sums, job.activation, residual, job.out + out_offset)
        free_scratch(memory)

    return product_of_rows
