"""Products of a weight with 5 to 16 rows of bf16 by AMX tiles.

AMX multiplies them in the time that it takes to read the weight. A tile is loaded from 16 rows of
the weight as they lie, so the weight is not copied. The rows of x are put in the order of AMX:
pairs of elements, one pair of all rows side by side. The layouts, and the 64 bytes that describe
the tiles, are those of Intel's Architecture Instruction Set Extensions Programming Reference,
chapter "Intel AMX".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from numba import carray
from numba.extending import intrinsic

from dejavubench.machine.cpu import read_cpu_flags
from dejavubench.models.backends.cpu.elementwise import as_floats, as_halves, as_words
from dejavubench.models.backends.cpu.emitter import BYTE, INT64, Emitter, Value, make_intrinsic
from dejavubench.models.backends.cpu.threads import (
    CompiledFunction,
    compiled,
    free_scratch,
    take_scratch,
)

TILE_ROWS = 16
"""Rows of a tile, and the most rows of x that meet it at once."""

TWO_TILES_ROWS = 2 * TILE_ROWS
"""Rows of the weight that are multiplied side by side, as far as they last."""

TILE_DEPTH = 32
"""bf16 elements of a tile's row."""

DESCRIPTION_NBYTES = 64
SUMS_NBYTES = TWO_TILES_ROWS * TILE_ROWS * 4
"""Bytes of the tiles' description, and of the fp32 sums of two tiles of the weight."""


@functools.cache
def is_usable() -> bool:
    """Return whether this CPU has AMX for bf16 and this process may use it."""
    if not {"amx_tile", "amx_bf16"} <= read_cpu_flags():
        return False
    return bool(torch.cpu._is_amx_tile_supported()) and bool(torch.cpu._init_amx())


def can_multiply(rows: int, in_features: int) -> bool:
    """Return whether :func:`product` can multiply such rows here, of ``in_features`` elements."""
    return rows <= TILE_ROWS and in_features % TILE_DEPTH == 0 and is_usable()


def _make_tile_product(
    x_tile: int, *tile_pairs: tuple[int, int], prefetches: bool = False
) -> CompiledFunction:
    """Return ``f(w, w_stride, x, x_stride, n, out, out_stride, ahead)``, for compiled code.

    It writes out[r, q] = Σₖ w[r, k] · x[q, k], k < n, in fp32.

    Args:
        x_tile: the tile that x is loaded to.
        tile_pairs: the tiles of sums and of the weight, a pair for each 16 rows of the weight.
            Several pairs hide the time that one sum takes.
        prefetches: ask memory for the line ``ahead`` of each line of w that is read.
    """

    def write_body(emit: Emitter, arguments: Sequence[Value]) -> None:
        """Write the loop over k, TILE_DEPTH elements a step; all pairs of tiles share one of x."""
        w, w_stride, x, x_stride, n, out, out_stride, ahead = arguments
        # All sums stay in tiles over the whole loop: x is loaded once for all of them.
        for sum_tile, _ in tile_pairs:
            emit.call("llvm.x86.tilezero", BYTE(sum_tile))
        with emit.loop(INT64(0), n, TILE_DEPTH) as k:
            x_pairs = emit.typed_pointer(emit.add_offsets(x, (emit.halve(k), x_stride)), BYTE)
            emit.call("llvm.x86.tileloadd64", BYTE(x_tile), x_pairs, x_stride)
            for pair_index, (sum_tile, weight_tile) in enumerate(tile_pairs):
                weight_rows = emit.add_offsets(w, (k, 2), (w_stride, pair_index * TILE_ROWS))
                for row in range(TILE_ROWS if prefetches else 0):
                    emit.prefetch(emit.add_offsets(weight_rows, (w_stride, row)), ahead)
                emit.call(
                    "llvm.x86.tileloadd64",
                    BYTE(weight_tile),
                    emit.typed_pointer(weight_rows, BYTE),
                    w_stride,
                )
                emit.call("llvm.x86.tdpbf16ps", BYTE(sum_tile), BYTE(weight_tile), BYTE(x_tile))
        for pair_index, (sum_tile, _) in enumerate(tile_pairs):
            out_rows = emit.typed_pointer(
                emit.add_offsets(out, (out_stride, pair_index * TILE_ROWS)), BYTE
            )
            emit.call("llvm.x86.tilestored64", BYTE(sum_tile), out_rows, out_stride)

    @intrinsic
    def tile_product(typing, w, w_stride, x, x_stride, n, out, out_stride, ahead):  # type: ignore[no-untyped-def]
        return make_intrinsic(8, write_body)

    return tile_product


_multiply_32_rows = _make_tile_product(0, (1, 2), (3, 4), prefetches=True)
_multiply_16_rows = _make_tile_product(0, (1, 2))
_multiply_leftover_rows = _make_tile_product(0, (5, 6))


@intrinsic
def _configure_tiles(typing, address):  # type: ignore[no-untyped-def]
    """Set up the tiles as the 64 bytes at ``address`` describe them."""
    return make_intrinsic(
        1,
        lambda emit, arguments: emit.call(
            "llvm.x86.ldtilecfg", emit.typed_pointer(arguments[0], BYTE)
        ),
    )


@intrinsic
def _release_tiles(typing):  # type: ignore[no-untyped-def]
    return make_intrinsic(0, lambda emit, arguments: emit.call("llvm.x86.tilerelease"))


@compiled
def _describe_tiles(address, rows, leftover_rows):  # type: ignore[no-untyped-def]
    """Write the 64 bytes that describe the tiles.

    Tile 0 is x, 1 and 3 are sums, 2 and 4 of the weight. 5 and 6 are sums and weight of the rows
    that are left over, ``leftover_rows`` of them.
    """
    fields = carray(as_halves(address), 32)
    fields[:] = 0
    fields[0] = 1  # the palette
    # From byte 16 on, two bytes for each tile: the bytes of its rows.
    fields[8], fields[9], fields[10], fields[11], fields[12] = 4 * rows, 4 * rows, 64, 4 * rows, 64
    fields[13], fields[14] = 4 * rows, 64
    # From byte 48 on, one byte for each tile: its number of rows.
    fields[24] = fields[25] = TILE_ROWS | TILE_ROWS << 8
    # Two tiles per 16-bit word, the even one low.
    fields[26], fields[27] = TILE_ROWS | leftover_rows << 8, leftover_rows


@compiled
def _ordered_nbytes(rows: int, in_features: int) -> int:
    """Return the bytes of x in bf16, in the order of AMX."""
    return rows * in_features * 2


@compiled
def _add_tile(tile_sums, columns, rows, sums, sums_stride):  # type: ignore[no-untyped-def]
    for m in range(rows):
        row_sums, tile_elements = (
            carray(as_floats(sums + m * sums_stride), columns),
            carray(as_floats(tile_sums), columns * rows),
        )
        for n in range(columns):
            row_sums[n] += tile_elements[n * rows + m]


@compiled
def product(x, rows, in_features, weight, columns, sums, sums_stride):  # type: ignore[no-untyped-def]
    """Add x · weightᵀ to the sums, fp32 [rows, columns].

    The rows of the sums are ``sums_stride`` bytes apart. x and weight are in bf16, x has up to 16
    rows, and ``in_features`` is a multiple of 32.
    """
    row_nbytes, leftover_rows = in_features * 2, columns % TILE_ROWS
    memory = take_scratch(DESCRIPTION_NBYTES + SUMS_NBYTES + _ordered_nbytes(rows, in_features))
    tile_sums = memory + DESCRIPTION_NBYTES
    ordered_x = tile_sums + SUMS_NBYTES
    # Pairs of neighbouring elements, pair k of all rows of x side by side.
    ordered_pairs = carray(as_words(ordered_x), rows * in_features // 2)
    for m in range(rows):
        pairs = carray(as_words(x + m * row_nbytes), in_features // 2)
        for k in range(in_features // 2):
            ordered_pairs[k * rows + m] = pairs[k]
    _describe_tiles(memory, rows, max(1, leftover_rows))
    _configure_tiles(memory)
    n = 0
    while n <= columns - TWO_TILES_ROWS:
        _multiply_32_rows(
            weight + n * row_nbytes,
            row_nbytes,
            ordered_x,
            rows * 4,
            in_features,
            tile_sums,
            rows * 4,
            TWO_TILES_ROWS * row_nbytes,
        )
        _add_tile(tile_sums, TWO_TILES_ROWS, rows, sums + n * 4, sums_stride)
        n += TWO_TILES_ROWS
    if n <= columns - TILE_ROWS:
        _multiply_16_rows(
            weight + n * row_nbytes,
            row_nbytes,
            ordered_x,
            rows * 4,
            in_features,
            tile_sums,
            rows * 4,
            0,
        )
        _add_tile(tile_sums, TILE_ROWS, rows, sums + n * 4, sums_stride)
        n += TILE_ROWS
    if leftover_rows:
        _multiply_leftover_rows(
            weight + n * row_nbytes,
            row_nbytes,
            ordered_x,
            rows * 4,
            in_features,
            tile_sums,
            rows * 4,
            0,
        )
        _add_tile(tile_sums, leftover_rows, rows, sums + n * 4, sums_stride)
    _release_tiles()
    free_scratch(memory)
