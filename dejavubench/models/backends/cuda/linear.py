"""A linear of few rows in Triton, which reads the weight once; see :mod:`.launch`.

Letters in shapes: M rows (at most 16), K inputs, N outputs.

Names in the kernels; strides are counted in elements::

    x          [M, K], row stride x_row              fp16 or bf16
    weight     [N, K], contiguous; ``tiles`` is its descriptor, by which whole tiles are loaded
    bias       [N]                                   as x
    residual   [M, N], row stride residual_row       as x
    out        [M, N], contiguous                    as x
    partial    [tiles, splits, 16, block_outs], contiguous        fp32
    arrived    [tiles], parts that have ended; 0 between launches  int32

``row_count``, ``width`` and ``out_count`` are M, K and N. A block of threads serves one *tile* of
``block_outs`` rows of the weight and one *split* of its columns: ``steps`` pieces of ``block_ins``.
Sums are transposed, [outs, rows], as the tensor cores want at least 64 rows of their first factor.
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
    ROWS,
    TYPES,
    ask_for,
    overlaps,
    processors,
    workspace,
)
from dejavubench.models.backends.protocol import Activation

TILE = 64
"""Rows of the weight that a block reads: the least that the tensor cores of Hopper take."""

MOST_PARTS, SHORTEST = 8, 512
"""Most parts of a weight's columns, and least columns of a part; see :func:`tiling`."""


@dataclass(frozen=True)
class GpuTiling:
    """How a product is cut: a block reads ``outs`` rows of the weight, ``ins`` columns at once."""

    outs: int
    ins: int
    splits: int
    """Parts that the columns are cut into."""
    warps: int
    stages: int
    """Pieces of the weight that are under way at once."""
    ahead: int
    """Columns of each row that are asked for before the kernel before has ended."""


@functools.cache
def tiling(outs: int, ins: int, multiprocessors: int) -> GpuTiling:
    """Return the tiling of a weight [outs, ins].

    The numbers come from measurements on Hopper, of which no record is committed. Measure again
    before you trust them on another GPU: :func:`_run_linear` takes any tiling.
    """
    tiles = triton.cdiv(outs, TILE)
    splits = 1
    # Two blocks fit on a processor: tiles that fill most of these places are left whole. Others are
    # cut so that the blocks come near a multiple of the processors. Each then reads as much.
    if tiles < 1.4 * multiprocessors:

        def worth(splits: int) -> float:
            blocks = tiles * splits
            # Each part costs its share of the sum.
            return blocks / (triton.cdiv(blocks, multiprocessors) * multiprocessors) - 0.06 * splits

        splits = max(range(1, max(1, min(MOST_PARTS, ins // SHORTEST)) + 1), key=worth)
    if splits == 1 and ins >= 4096:
        return GpuTiling(outs=TILE, ins=256, splits=1, warps=4, stages=4, ahead=256)
    return GpuTiling(outs=TILE, ins=128, splits=splits, warps=4, stages=5, ahead=256)


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation
):  # fmt: skip
    """Bias, activation and residual of one tile of sums [outs, rows], rounded once."""
    real = (outs < out_count)[:, None] & (rows < row_count)[None, :]
    if bias is not None:
        total += tl.load(bias + outs, mask=outs < out_count, other=0.0).to(tl.float32)[:, None]
    if activation == "gelu":
        total *= tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total))
    elif activation == "relu":
        total = tl.maximum(total, 0.0)
    if residual is not None:
        places = residual + rows[None, :] * residual_row + outs[:, None]
        total += tl.load(places, mask=real, other=0.0).to(tl.float32)
    tl.store(
        out + rows[None, :] * out_count + outs[:, None], total.to(out.dtype.element_ty), mask=real
    )


@triton.jit(do_not_specialize=["row_count"])
def _linear(  # type: ignore[no-untyped-def]
    x, weight, tiles, bias, residual, out, partial, arrived,
    row_count, x_row, residual_row, out_count, width, steps,
    activation: tl.constexpr, even: tl.constexpr, splits: tl.constexpr, block_outs: tl.constexpr,
    block_ins: tl.constexpr, block_rows: tl.constexpr, stages: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Multiply one tile and split; the split that arrives last adds all of them."""
    tile, split = tl.program_id(0), tl.program_id(1)
    outs = tile * block_outs + tl.arange(0, block_outs)
    rows = tl.arange(0, block_rows)
    first = split * steps * block_ins
    gdc_launch_dependents()
    # The kernel before writes x, never the weight: its first columns can be asked for already.
    if ahead > 0:
        lines = first + tl.arange(0, ahead // 64) * 64
        weight_rows = weight + tl.minimum(outs, out_count - 1).to(tl.int64)[:, None] * width
        ask_for(weight_rows + tl.minimum(lines, width - 1)[None, :])
    gdc_wait()

    # Rows beyond M are read as zeros: the tensor cores take ``block_rows`` rows in any case.
    x_rows = x + rows[:, None] * x_row
    present = (rows < row_count)[:, None]
    total = tl.zeros((block_outs, block_rows), tl.float32)
    for start in tl.range(
        first, tl.minimum(first + steps * block_ins, width), block_ins, num_stages=stages
    ):
        ins = start + tl.arange(0, block_ins)[None, :]
        part = tiles.load([tile * block_outs, start])  # zeros beyond the weight's edges
        inputs = tl.load(x_rows + ins, mask=present if even else present & (ins < width), other=0.0)
        total = tl.dot(part, tl.trans(inputs), total)

    if splits == 1:
        _finish(
            total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation
        )
        return
    size: tl.constexpr = block_outs * block_rows
    places = (
        partial
        + tile * splits * size
        + rows[None, :] * block_outs
        + tl.arange(0, block_outs)[:, None]
    )
    kept = (rows < row_count)[None, :]
    tl.store(places + split * size, total, mask=kept)
    tl.debug_barrier()  # all of the block has written before one of its threads says so
    # Whichever part arrives last adds all of them, in their order: equal inputs give equal bits.
    if tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
        total = tl.zeros((block_outs, block_rows), tl.float32)
        for other in tl.static_range(splits):
            total += tl.load(places + other * size, mask=kept, other=0.0, cache_modifier=".cg")
        _finish(
            total, outs, rows, bias, residual, residual_row, out, row_count, out_count, activation
        )
        tl.store(arrived + tile, 0)  # for the next launch or replay: nothing else resets it


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
    rows, width, outs = *x.shape, weight.shape[0]
    if rows > ROWS or x.dtype not in TYPES or width % 8:
        raise ValueError(f"no decode kernel for {rows} rows of {width} elements of {x.dtype}")
    cut = tiling(outs, width, processors(x.device))
    return _run_linear(x, weight, bias, activation, residual, cut)


def _run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
    cut: GpuTiling,
) -> Tensor:
    """Launch the kernel with any tiling, so that other tilings can be measured."""
    rows, width, outs = x.shape[0], x.shape[1], weight.shape[0]
    out = x.new_empty(rows, outs)
    tiles, steps = triton.cdiv(outs, cut.outs), triton.cdiv(width, cut.ins * cut.splits)
    partial, arrived = workspace(x.device)
    _linear[(tiles, cut.splits)](
        x, weight, TensorDescriptor.from_tensor(weight, [cut.outs, cut.ins]), bias, residual, out,
        partial, arrived, rows, x.stride(0), 0 if residual is None else residual.stride(0),
        outs, width, steps, activation, width % cut.ins == 0, cut.splits, cut.outs, cut.ins, ROWS,
        cut.stages, cut.ahead,
        num_warps=cut.warps, launch_pdl=overlaps(x.device),
    )  # fmt: skip
    return out
