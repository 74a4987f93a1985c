"""A linear of few rows in Triton, which reads the weight once; see :mod:`.launch`.

Letters in shapes: M rows (at most 16), K inputs, N outputs.

Names in the kernels; strides are counted in elements::

    x             [M, K], row stride x_row                            fp16 or bf16
    weight        [N, K], contiguous                                  as x
    weight_tiles  the descriptor of weight, by which whole tiles are loaded
    bias          [N]                                                 as x
    residual      [M, N], row stride residual_row                     as x
    out           [M, N], contiguous                                  as x
    partial_sums  [tiles, splits, 16, block_outs], contiguous         fp32
    arrivals      [tiles], parts that have ended; 0 between launches  int32

``row_count``, ``width`` and ``out_count`` are M, K and N. A gated linear has N outputs and a weight
[2·N, K]: the rows of the gate, then those of the inner columns. A block of threads serves one
*tile* of ``block_outs`` rows of the weight and one *split* of its columns: ``steps`` pieces of
``block_ins``. Sums are transposed, [outs, rows], as the tensor cores want at least 64 rows of their
first factor.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from dejavubench.models.backends.cuda.launch import (
    KERNEL_TYPES,
    MOST_ROWS,
    activate,
    allocate_workspace,
    can_overlap,
    count_processors,
    prefetch,
)
from dejavubench.models.backends.protocol import Activation

TILE_OUTS = 64
"""Rows of the weight that a block reads: the least that the tensor cores of Hopper take."""

MOST_SPLITS = 8
"""Most splits of a weight's columns; see :func:`choose_tiling`."""

LEAST_SPLIT_COLUMNS = 512
"""Least columns of a split."""


@dataclass(frozen=True)
class GpuTiling:
    """Tile sizes: a block reads ``block_outs`` rows of the weight, ``block_ins`` columns a time."""

    block_outs: int
    block_ins: int
    split_count: int
    """Splits that the columns are cut into."""
    warp_count: int
    stage_count: int
    """Pieces of the weight that are under way at once."""
    ahead_columns: int
    """Columns of each row that are asked for before the kernel before has ended."""


GATED_TILING = GpuTiling(
    block_outs=TILE_OUTS,
    block_ins=128,
    split_count=1,
    warp_count=4,
    stage_count=4,
    ahead_columns=256,
)
"""Tiling of a gated linear: each block reads as many rows of the gate as of the other half.

Its rows are many, so its tiles are never split. It was the fastest of six in steps of the shapes of
Llama-3.1-8B and Qwen3-8B on an H200.
"""

LEAST_FILLED_SHARE = 0.7
"""Least part of the processors that one block each must fill; see :func:`choose_tiling`."""


@functools.cache
def choose_tiling(outs: int, ins: int, multiprocessors: int) -> GpuTiling:
    """Return the tiling of a weight [outs, ins].

    The numbers were the fastest in whole steps on an H200, of opt-13b and the shapes of
    Llama-3.1-8B and Qwen3-8B. On another GPU measure again: ``contrib/measure_gpu_kernels.py``.
    """
    tile_count = triton.cdiv(outs, TILE_OUTS)
    # One block for nearly every processor, with wide pieces, beats two with narrow ones.
    split_count = multiprocessors // tile_count
    if (
        ins >= 4096
        and split_count
        and tile_count * split_count >= LEAST_FILLED_SHARE * multiprocessors
    ):
        return GpuTiling(
            block_outs=TILE_OUTS,
            block_ins=256,
            split_count=split_count,
            warp_count=4,
            stage_count=4,
            ahead_columns=256,
        )
    split_count = 1
    # Two blocks fit on a processor: tiles that fill most of these places are left whole. Others are
    # cut so that the blocks come near a multiple of the processors. Each then reads as much.
    if tile_count < 1.4 * multiprocessors:

        def compute_filled_share(split_count: int) -> float:
            block_count = tile_count * split_count
            # Each split costs its share of the sum.
            return (
                block_count / (triton.cdiv(block_count, multiprocessors) * multiprocessors)
                - 0.06 * split_count
            )

        split_count = max(
            range(1, max(1, min(MOST_SPLITS, ins // LEAST_SPLIT_COLUMNS)) + 1),
            key=compute_filled_share,
        )
    if split_count == 1 and ins >= 4096:
        return GpuTiling(
            block_outs=TILE_OUTS,
            block_ins=256,
            split_count=1,
            warp_count=4,
            stage_count=4,
            ahead_columns=256,
        )
    return GpuTiling(
        block_outs=TILE_OUTS,
        block_ins=128,
        split_count=split_count,
        warp_count=4,
        stage_count=5,
        ahead_columns=256,
    )


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    sums, inner_sums, outs, rows, bias, residual, residual_row, out, row_count, out_count,
    activation: tl.constexpr, gated: tl.constexpr,
):  # fmt: skip
    """Bias, activation, gate and residual of one tile of sums [outs, rows], rounded once."""
    out_mask = outs < out_count
    mask = out_mask[:, None] & (rows < row_count)[None, :]
    if bias is not None:
        sums += tl.load(bias + outs, mask=out_mask, other=0.0).to(tl.float32)[:, None]
    sums = activate(sums, activation)
    if gated:
        if bias is not None:
            inner_bias = tl.load(bias + out_count + outs, mask=out_mask, other=0.0)
            inner_sums += inner_bias.to(tl.float32)[:, None]
        sums *= inner_sums
    if residual is not None:
        pointers = residual + rows[None, :] * residual_row + outs[:, None]
        sums += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    results = out + rows[None, :] * out_count + outs[:, None]
    tl.store(results, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _prefetch_weights(  # type: ignore[no-untyped-def]
    weight, outs, first_column, out_count, width, ahead: tl.constexpr
):  # fmt: skip
    """Bring the first ``ahead`` columns of some rows of the weight to the L2 cache."""
    line_columns = tl.minimum(first_column + tl.arange(0, ahead // 64) * 64, width - 1)
    weight_rows = weight + tl.minimum(outs, out_count - 1).to(tl.int64)[:, None] * width
    prefetch(weight_rows + line_columns[None, :])


@triton.jit
def _sum_splits(  # type: ignore[no-untyped-def]
    pointers, mask, splits: tl.constexpr, block_outs: tl.constexpr, block_rows: tl.constexpr
):  # fmt: skip
    """Return the sum of the splits' sums of one tile, in their order."""
    tile_size: tl.constexpr = block_outs * block_rows
    sums = tl.zeros((block_outs, block_rows), tl.float32)
    for split in tl.static_range(splits):
        sums += tl.load(pointers + split * tile_size, mask=mask, other=0.0, cache_modifier=".cg")
    return sums


@triton.jit(do_not_specialize=["row_count"])
def _linear(  # type: ignore[no-untyped-def]
    x, weight, weight_tiles, bias, residual, out, partial_sums, arrivals,
    row_count, x_row, residual_row, out_count, width, steps,
    activation: tl.constexpr, gated: tl.constexpr, fits_evenly: tl.constexpr, splits: tl.constexpr,
    block_outs: tl.constexpr, block_ins: tl.constexpr, block_rows: tl.constexpr,
    stages: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Multiply one tile and split; the split that arrives last adds all of them."""
    tile, split = tl.program_id(0), tl.program_id(1)
    outs = tile * block_outs + tl.arange(0, block_outs)
    rows = tl.arange(0, block_rows)
    first_column = split * steps * block_ins
    gdc_launch_dependents()
    # The kernel before writes x, never the weight: its first columns can be asked for already.
    if ahead > 0:
        _prefetch_weights(weight, outs, first_column, out_count, width, ahead)
        if gated:
            inner_weight = weight + out_count.to(tl.int64) * width
            _prefetch_weights(inner_weight, outs, first_column, out_count, width, ahead)
    gdc_wait()

    # Rows beyond M are read as zeros: the tensor cores take ``block_rows`` rows in any case.
    x_rows = x + rows[:, None] * x_row
    row_mask = (rows < row_count)[:, None]
    sums = tl.zeros((block_outs, block_rows), tl.float32)
    inner_sums = tl.zeros((block_outs, block_rows), tl.float32)
    for start in tl.range(
        first_column,
        tl.minimum(first_column + steps * block_ins, width),
        block_ins,
        num_stages=stages,
    ):
        ins = start + tl.arange(0, block_ins)[None, :]
        input_mask = row_mask if fits_evenly else row_mask & (ins < width)
        inputs = tl.trans(tl.load(x_rows + ins, mask=input_mask, other=0.0))
        weights = weight_tiles.load([tile * block_outs, start])  # zeros beyond the weight's edges
        sums = tl.dot(weights, inputs, sums)
        if gated:
            inner_weights = weight_tiles.load([out_count + tile * block_outs, start])
            inner_sums = tl.dot(inner_weights, inputs, inner_sums)

    if splits == 1:
        _finish(
            sums, inner_sums, outs, rows, bias, residual, residual_row, out, row_count, out_count,
            activation, gated)  # fmt: skip
        return
    tile_size: tl.constexpr = block_outs * block_rows
    tile_sums = partial_sums + tile * splits * tile_size
    pointers = tile_sums + rows[None, :] * block_outs + tl.arange(0, block_outs)[:, None]
    column_mask = (rows < row_count)[None, :]
    tl.store(pointers + split * tile_size, sums, mask=column_mask)
    tl.debug_barrier()  # all of the block has written before one of its threads says so
    # Whichever part arrives last adds all of them, in their order: equal inputs give equal bits.
    if tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
        sums = _sum_splits(pointers, column_mask, splits, block_outs, block_rows)
        _finish(
            sums, inner_sums, outs, rows, bias, residual, residual_row, out, row_count, out_count,
            activation, gated)  # fmt: skip
        tl.store(arrivals + tile, 0)  # for the next launch or replay: nothing else resets it


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(x · weightᵀ + bias) + residual, summed in fp32 and rounded once.

    Args:
        x: [M, K], its rows contiguous.
        weight: [N, K], contiguous.
        bias: [N].
        activation: "gelu" is the tanh approximation.
        residual: [M, N], its rows contiguous; left as it is.

    Raises:
        ValueError: more than 16 rows, a type that is neither fp16 nor bf16, or K no multiple of 8.
    """
    _check_inputs(x)
    tiling = choose_tiling(weight.shape[0], x.shape[1], count_processors(x.device))
    return run_linear(x, weight, bias, activation, residual, tiling)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """Return activation(x · gateᵀ) · (x · innerᵀ), summed in fp32 and rounded once, [M, N / 2].

    Args:
        x: [M, K], its rows contiguous.
        weight: [N, K], contiguous: the rows of the gate, then as many others.
        bias: [N].
        activation: "gelu" is the tanh approximation.

    Raises:
        ValueError: as :func:`linear`.
    """
    _check_inputs(x)
    return run_linear(x, weight, bias, activation, None, GATED_TILING, gated=True)


def _check_inputs(x: Tensor) -> None:
    """Raise ValueError if the kernel does not take such inputs."""
    rows, width = x.shape
    if rows > MOST_ROWS or x.dtype not in KERNEL_TYPES or width % 8:
        raise ValueError(f"no decode kernel for {rows} rows of {width} elements of {x.dtype}")


def run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
    tiling: GpuTiling,
    gated: bool = False,
) -> Tensor:
    """Launch the kernel with any tiling, so that other tilings can be measured."""
    rows, width = x.shape
    outs = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty(rows, outs)
    tile_count = triton.cdiv(outs, tiling.block_outs)
    steps = triton.cdiv(width, tiling.block_ins * tiling.split_count)
    partial_sums, arrivals = allocate_workspace(x.device)
    _linear[(tile_count, tiling.split_count)](
        x, weight, TensorDescriptor.from_tensor(weight, [tiling.block_outs, tiling.block_ins]),
        bias, residual, out, partial_sums, arrivals, rows, x.stride(0),
        0 if residual is None else residual.stride(0), outs, width, steps,
        activation, gated, width % tiling.block_ins == 0, tiling.split_count,
        tiling.block_outs, tiling.block_ins, MOST_ROWS, tiling.stage_count, tiling.ahead_columns,
        num_warps=tiling.warp_count, launch_pdl=can_overlap(x.device),
    )  # fmt: skip
    return out
