"""Kernels of a CPU's decode step: few rows, so what counts is to read weights and cache at the memory's speed.

Numba compiles them for this CPU when a model is made, which takes a few seconds. Weights and cache are read in the
type that they are kept in, which need not be one that the CPU multiplies.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from dejavubench.kvcache import FT_VECTOR_BYTES, KVCache, KVGeometry, KVLayout
from dejavubench.models.cpu_numbers import (
    add,
    add_widened,
    floats,
    gelu,
    halves,
    integers,
    narrow,
    relu,
    silu,
    softmax,
    widen,
)
from dejavubench.models.cpu_rows import AVX512, LANES, TOTALS, blend, dots, fold, folds, unfold
from dejavubench.models.cpu_threads import address, compiled, kernel, run, share, thread_number
from dejavubench.models.parts import Activation

AHEAD = 4096
"""Bytes between what is read and what memory is asked for meanwhile: 1 KiB was slower, 16 KiB no faster."""

TILE = 4
"""Rows of x whose products with the same rows of a weight are summed side by side."""

STREAMS = 4
"""Rows of a weight that are read side by side, as far as registers last: see :func:`streams`."""


def streams(rows: int) -> int:
    """How many rows of a weight meet so many rows of x at once."""
    return STREAMS if AVX512 or rows <= 2 else 2


def prepare(dtype: torch.dtype, layout: KVLayout, multiplied: torch.dtype = torch.float32) -> None:
    """Compile what :func:`linear` and :func:`attend` need for weights and a cache of a type, and x of another."""
    for rows in (1, TILE):
        _linear_kernel(dtype, multiplied, streams(rows))
    _attend_kernel(dtype, layout is KVLayout.FT)


# ---- linear ----

ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}
"""Numbers that a kernel knows them by."""

LinearJob = ctypes.c_int64 * 11
AttendJob = ctypes.c_int64 * 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None) -> Tensor:
    """activation(x · weightᵀ + bias) + residual, rounded once.

    Args:
        x: [..., in], like bias and residual of fp32, or of bf16 where the weight is.
        weight: [out, in], contiguous.

    Raises:
        TypeError: of other types.
    """
    half = x.dtype == torch.bfloat16 == weight.dtype
    if not (half or x.dtype == torch.float32) or any(o is not None and o.dtype != x.dtype for o in (bias, residual)):
        raise TypeError(f"x of {x.dtype} with a weight of {weight.dtype}; bias and residual must be of x's type")
    outs, ins = weight.shape
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = torch.empty((*x.shape[:-1], outs), dtype=x.dtype)
    rows = out.numel() // outs
    sums = torch.empty(rows, outs) if half else out
    ready = torch.empty(torch.get_num_threads(), rows + 1, ins) if folds(weight.dtype) else None
    run(
        _linear_kernel(weight.dtype, x.dtype, streams(rows)),
        LinearJob(
            *(x.data_ptr(), weight.data_ptr(), address(bias), address(residual), out.data_ptr(), sums.data_ptr()),
            *(address(ready), rows, ins, outs, ACTIVATIONS[activation]),
        ),
    )
    return out


@cache
def _linear_kernel(dtype: torch.dtype, of_x: torch.dtype, streams: int) -> Any:
    itemsize, folded, half = dtype.itemsize, folds(dtype), of_x == torch.bfloat16
    tile = min(TILE, TOTALS // streams)
    most, two, one = (dots(dtype, streams, columns, folded=folded) for columns in (tile, 2, 1))
    last = dots(dtype, 1, 1, folded=folded)

    @compiled
    def tiles(w, apart, x, rows, ins, sums, sums_apart, after):  # type: ignore[no-untyped-def]
        """Some rows of the weight with all rows of x. What follows them is fetched with the first tile."""
        ahead, row = AHEAD, ins * 4
        while rows >= tile:
            most(w, apart, x, row, ins, sums, sums_apart, after, ahead)
            x, sums, rows, ahead = x + tile * row, sums + tile * sums_apart, rows - tile, 0
        if tile > 2 and rows >= 2:
            two(w, apart, x, row, ins, sums, sums_apart, after, ahead)
            x, sums, rows, ahead = x + 2 * row, sums + 2 * sums_apart, rows - 2, 0
        if rows:
            one(w, apart, x, row, ins, sums, sums_apart, after, ahead)

    @compiled
    def product(x, rows, ins, weight, columns, sums, sums_apart):  # type: ignore[no-untyped-def]
        """Add x · weightᵀ to the sums [rows, columns].

        Rows that are read side by side come from as many parts of the weight: each part is a stream that goes on and
        on, which processors notice and fetch ahead.
        """
        part, row = columns // streams, ins * itemsize
        for n in range(part):
            tiles(weight + n * row, part * row, x, rows, ins, sums + n * 4, sums_apart, part * 4)
        for n in range(part * streams, columns):
            for m in range(rows):
                last(weight + n * row, 0, x + m * ins * 4, 0, ins, sums + m * sums_apart + n * 4, 0, 0, 0)

    @compiled
    def prepared(x, rows, ins, into):  # type: ignore[no-untyped-def]
        """x as the sums take it: of fp32, and folded if they are."""
        for m in range(rows):
            ready = carray(floats(into + m * ins * 4), ins)
            if half:  # is folded in the place of the row that comes next
                wide = carray(floats(into + (m + 1) * ins * 4), ins)
                widen(carray(halves(x + m * ins * 2), ins), wide)
                fold(wide, ready)
            elif folded:
                fold(carray(floats(x + m * ins * 4), ins), ready)

    @compiled
    def finish(sums, activation, residual, out):  # type: ignore[no-untyped-def]
        if activation == 1:
            gelu(sums)
        elif activation == 2:
            relu(sums)
        elif activation == 3:
            silu(sums)
        if half:
            if residual:
                add_widened(carray(halves(residual), len(sums)), sums)
            narrow(sums, carray(halves(out), len(sums)))
        elif residual:
            add(carray(floats(residual), len(sums)), sums)

    @kernel
    def product_of_rows(job):  # type: ignore[no-untyped-def]
        x, weight, bias, residual, out, sums, ready, rows, ins, outs, activation = carray(job, 11)
        begin, stop = share(outs, STREAMS)
        columns, apart, itemsize_x = stop - begin, outs * 4, 2 if half else 4
        sums += begin * 4
        for m in range(rows):
            row = carray(floats(sums + m * apart), columns)
            row[:] = np.float32(0)
            if bias and half:
                add_widened(carray(halves(bias + begin * 2), columns), row)
            elif bias:
                add(carray(floats(bias + begin * 4), columns), row)
        if folded:
            ready += thread_number() * (rows + 1) * ins * 4
            prepared(x, rows, ins, ready)
            x = ready
        product(x, rows, ins, weight + begin * ins * itemsize, columns, sums, apart)
        for m in range(rows):
            at = (m * outs + begin) * itemsize_x
            there = residual + at if residual else 0
            finish(carray(floats(sums + m * apart), columns), activation, there, out + at)

    return product_of_rows


# ---- attention ----


def attend(
    q: Tensor, cache: KVCache, layer: int, stop: int, slopes: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """Attention of one query of each head over the positions [0, stop) of the cache, as it lies.

    Args:
        q: fp32 [B, H, D], the elements of a head contiguous.
        slopes: ALiBi's of the heads, contiguous fp32 [H].
        first: each request's first position that counts, contiguous int64 [B].

    Returns:
        fp32 [B, H, D].
    """
    requests, heads, size = q.shape
    assert q.dtype == torch.float32
    assert q.stride(2) == 1
    assert stop <= cache.geometry.positions
    assert first is None or first.dtype == torch.int64
    assert slopes is None or slopes.numel() == heads
    group, way = heads // cache.geometry.heads, _way(cache.geometry)
    out = torch.empty(requests, heads, size)
    working = torch.empty(torch.get_num_threads(), 2 * size + stop * group)
    by_request, by_head, _ = q.stride()
    run(
        _attend_kernel(cache.k.dtype, cache.geometry.layout is KVLayout.FT),
        AttendJob(
            *(q.data_ptr(), cache.k.data_ptr() + layer * way.layer, cache.v.data_ptr() + layer * way.layer),
            *(out.data_ptr(), working.data_ptr(), address(slopes), address(first)),
            *(requests, heads // group, group, stop, size, way.piece, *way.k, *way.v, by_request * 4, by_head * 4),
        ),
    )
    return out


@dataclass(frozen=True)
class Way:
    """How a kernel finds its way in a cache.

    Attributes:
        layer: bytes of a layer of K, or of V.
        piece: elements of a key that are neighbours.
        k: bytes from a request's, head's, position's and piece's keys to the next one's.
        v: of values, from a request's, head's and position's.
    """

    layer: int
    piece: int
    k: tuple[int, int, int, int]
    v: tuple[int, int, int]


@cache
def _way(geometry: KVGeometry) -> Way:
    layer, *v = geometry.strides("v")
    if geometry.layout is KVLayout.NHD:
        request, position, head, _ = v
    else:
        request, head, position, _ = v
    if geometry.layout is not KVLayout.FT:
        piece, k = geometry.head_size, (request, head, position, 0)
    else:
        piece = geometry.vector
        _, k_request, k_head, k_piece, k_position, _ = geometry.strides("k")
        k = (k_request, k_head, k_position, k_piece)
    return Way(layer, piece, k, (request, head, position))


@compiled
def _far(apart):  # type: ignore[no-untyped-def]
    """How far ahead of a row lies one that will be read soon."""
    return (AHEAD + apart - 1) // apart * apart


@cache
def _attend_kernel(dtype: torch.dtype, in_vectors: bool) -> Any:
    """Args: in_vectors: keys lie as ``ft`` has them, each in pieces of 16 bytes."""
    values_fold = folds(dtype)
    keys_fold = values_fold and not in_vectors
    lanes = min(LANES, FT_VECTOR_BYTES // dtype.itemsize) if in_vectors else LANES
    four, one = (dots(dtype, keys, 1, lanes, keys_fold) for keys in (4, 1))
    values = blend(dtype)

    @compiled
    def score(q, k, apart, count, size, scores, ahead):  # type: ignore[no-untyped-def]
        """Add the products of ``count`` keys' pieces with that of the query."""
        for s in range(0, count - 3, 4):
            four(k + s * apart, apart, q, 0, size, scores + s * 4, 0, 4, ahead)
        for s in range(count // 4 * 4, count):
            one(k + s * apart, 0, q, 0, size, scores + s * 4, 0, 4, 0)

    @kernel
    def attention(job):  # type: ignore[no-untyped-def]
        q, k, v, out, working, slopes, firsts = carray(job, 22)[:7]
        requests, heads, group, stop, size, piece = carray(job, 22)[7:13]
        k_request, k_head, k_position, k_piece, v_request, v_head, v_position = carray(job, 22)[13:20]
        q_request, q_head = carray(job, 22)[20:]
        query = working + thread_number() * (2 * size + group * stop) * 4
        scaled, folded = carray(floats(query), size), carray(floats(query + size * 4), size)
        mine, scale = query + 2 * size * 4, np.float32(1 / np.sqrt(size))
        begin, end = share(requests * heads, 1)
        for number in range(begin, end):
            request, head = number // heads, number % heads
            first = 0
            if firsts:
                first = carray(integers(firsts), requests)[request]
            count = stop - first
            keys = k + request * k_request + head * k_head + first * k_position
            for member in range(group):
                given = carray(floats(q + request * q_request + (head * group + member) * q_head), size)
                for d in range(size):
                    scaled[d] = given[d] * scale
                if keys_fold:
                    fold(scaled, folded)
                scores = carray(floats(mine + member * stop * 4), count)
                slope = np.float32(0)
                if slopes:
                    slope = carray(floats(slopes), heads * group)[head * group + member]
                for s in range(count):
                    scores[s] = slope * np.float32(s + 1 - count)
                for part in range(size // piece):
                    ahead = 0 if member else _far(k_position)
                    score(
                        query + (size * keys_fold + part * piece) * 4,
                        keys + part * k_piece,
                        k_position,
                        count,
                        piece,
                        mine + member * stop * 4,
                        ahead,
                    )
                softmax(scores)
            rows = v + request * v_request + head * v_head + first * v_position
            for member in range(group):
                into = out + (number * group + member) * size * 4
                there = query if values_fold else into
                values(
                    mine + member * stop * 4,
                    rows,
                    v_position,
                    count,
                    size,
                    there,
                    0 if member else _far(v_position),
                )
                if values_fold:
                    unfold(scaled, carray(floats(into), size))

    return attention
