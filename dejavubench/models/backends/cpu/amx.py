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

from dejavubench.machine.cpu import cpu_flags
from dejavubench.models.backends.cpu.elementwise import floats, halves, words
from dejavubench.models.backends.cpu.emitter import BYTE, INT64, Emitter, Value, emitting
from dejavubench.models.backends.cpu.threads import Compiled, compiled, released, scratch

ROWS = 16
"""Rows of a tile, and the most rows of x that meet it at once."""

TWICE = 2 * ROWS
"""Rows of the weight that are multiplied side by side, as far as they last."""

DEPTH = 32
"""bf16 elements of a tile's row."""

DESCRIPTION_NBYTES = 64
SUMS_NBYTES = TWICE * ROWS * 4
"""Bytes of the tiles' description, and of the fp32 sums of two blocks of the weight."""


@functools.cache
def is_usable() -> bool:
    """Return whether this CPU has AMX for bf16 and this process may use it."""
    if not {"amx_tile", "amx_bf16"} <= cpu_flags():
        return False
    return bool(torch.cpu._is_amx_tile_supported()) and bool(torch.cpu._init_amx())


def can_multiply(rows: int, ins: int) -> bool:
    """Return whether :func:`product` can multiply ``rows`` rows of ``ins`` elements here."""
    return rows <= ROWS and ins % DEPTH == 0 and is_usable()


def _make_tile_product(of_x: int, *blocks: tuple[int, int], fetches: bool = False) -> Compiled:
    """Return ``f(w, stride, x, x_stride, n, out, out_stride, ahead)``, for use in compiled code.

    It writes out[r, q] = Σₖ w[r, k] · x[q, k], k < n, in fp32.

    Args:
        of_x: the tile that x is loaded to.
        blocks: the tiles of sums and of the weight, a pair for each 16 rows of the weight. Several
            blocks hide the time that one sum takes.
        fetches: ask memory for the line ``ahead`` of each line of w that is read.
    """

    def body(emit: Emitter, job: Sequence[Value]) -> None:
        """Write the loop over k, DEPTH elements a step; the blocks share each tile of x."""
        w, stride, x, x_stride, n, out, out_stride, ahead = job
        # All blocks' sums stay in tiles over the whole loop: x is loaded once for all of them.
        for sums, _ in blocks:
            emit.call("llvm.x86.tilezero", BYTE(sums))
        with emit.steps(INT64(0), n, DEPTH) as k:
            pairs = emit.pointer(emit.offset(x, (emit.half(k), x_stride)), BYTE)
            emit.call("llvm.x86.tileloadd64", BYTE(of_x), pairs, x_stride)
            for block, (sums, of_weight) in enumerate(blocks):
                lines = emit.offset(w, (k, 2), (stride, block * ROWS))
                for row in range(ROWS if fetches else 0):
                    emit.fetch(emit.offset(lines, (stride, row)), ahead)
                emit.call(
                    "llvm.x86.tileloadd64", BYTE(of_weight), emit.pointer(lines, BYTE), stride
                )
                emit.call("llvm.x86.tdpbf16ps", BYTE(sums), BYTE(of_weight), BYTE(of_x))
        for block, (sums, _) in enumerate(blocks):
            target = emit.pointer(emit.offset(out, (out_stride, block * ROWS)), BYTE)
            emit.call("llvm.x86.tilestored64", BYTE(sums), target, out_stride)

    @intrinsic
    def function(typing, w, stride, x, x_stride, n, out, out_stride, ahead):  # type: ignore[no-untyped-def]
        return emitting(8, body)

    return function


_multiply_32_rows = _make_tile_product(0, (1, 2), (3, 4), fetches=True)
_multiply_16_rows = _make_tile_product(0, (1, 2))
_multiply_rest = _make_tile_product(0, (5, 6))


@intrinsic
def _configure_tiles(typing, address):  # type: ignore[no-untyped-def]
    """Set up the tiles as the 64 bytes at ``address`` describe them."""
    return emitting(
        1, lambda emit, job: emit.call("llvm.x86.ldtilecfg", emit.pointer(job[0], BYTE))
    )


@intrinsic
def _release_tiles(typing):  # type: ignore[no-untyped-def]
    return emitting(0, lambda emit, job: emit.call("llvm.x86.tilerelease"))


@compiled
def _describe(address, rows, rest):  # type: ignore[no-untyped-def]
    """Write the 64 bytes that describe the tiles.

    Tile 0 is x, 1 and 3 are sums, 2 and 4 of the weight. 5 and 6 are sums and weight of the rows
    that are left over, ``rest`` of them.
    """
    fields = carray(halves(address), 32)
    fields[:] = 0
    fields[0] = 1  # the palette
    # From byte 16 on, two bytes for each tile: the bytes of its rows.
    fields[8], fields[9], fields[10], fields[11], fields[12] = 4 * rows, 4 * rows, 64, 4 * rows, 64
    fields[13], fields[14] = 4 * rows, 64
    # From byte 48 on, one byte for each tile: its number of rows.
    fields[24] = fields[25] = ROWS | ROWS << 8
    fields[26], fields[27] = ROWS | rest << 8, rest  # two tiles per 16-bit word, the even one low


@compiled
def _ordered_nbytes(rows: int, ins: int) -> int:
    """Return the bytes of x in bf16, in the order of AMX."""
    return rows * ins * 2


@compiled
def _add(tile, count, rows, sums, stride):  # type: ignore[no-untyped-def]
    for m in range(rows):
        row, column = carray(floats(sums + m * stride), count), carray(floats(tile), count * rows)
        for n in range(count):
            row[n] += column[n * rows + m]


@compiled
def product(x, rows, ins, weight, columns, sums, sums_stride):  # type: ignore[no-untyped-def]
    """Add x · weightᵀ to the sums, fp32 [rows, columns].

    The rows of the sums are ``sums_stride`` bytes apart. x and weight are in bf16, x has up to 16
    rows, and ``ins`` is a multiple of 32.
    """
    row, rest = ins * 2, columns % ROWS
    memory = scratch(DESCRIPTION_NBYTES + SUMS_NBYTES + _ordered_nbytes(rows, ins))
    tile = memory + DESCRIPTION_NBYTES
    ordered = tile + SUMS_NBYTES
    # Pairs of neighbouring elements, pair k of all rows of x side by side.
    into = carray(words(ordered), rows * ins // 2)
    for m in range(rows):
        pairs = carray(words(x + m * row), ins // 2)
        for k in range(ins // 2):
            into[k * rows + m] = pairs[k]
    _describe(memory, rows, max(1, rest))
    _configure_tiles(memory)
    n = 0
    while n <= columns - TWICE:
        _multiply_32_rows(
            weight + n * row, row, ordered, rows * 4, ins, tile, rows * 4, TWICE * row
        )
        _add(tile, TWICE, rows, sums + n * 4, sums_stride)
        n += TWICE
    if n <= columns - ROWS:
        _multiply_16_rows(weight + n * row, row, ordered, rows * 4, ins, tile, rows * 4, 0)
        _add(tile, ROWS, rows, sums + n * 4, sums_stride)
        n += ROWS
    if rest:
        _multiply_rest(weight + n * row, row, ordered, rows * 4, ins, tile, rows * 4, 0)
        _add(tile, rest, rows, sums + n * 4, sums_stride)
    _release_tiles()
    released(memory)
