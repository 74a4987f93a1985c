"""Kernels of a CPU's decode step: few rows, so what counts is to read weights and cache at the memory's speed.

Numba compiles them for this CPU before a point is measured, which takes a few seconds; :mod:`.cpu_cache` keeps what it
made for the next run. Weights and cache are read in
the type that they are kept in, which need not be one that the CPU multiplies.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from dejavubench.dejavulib.kvcache import FT_VECTOR_BYTES, KVCache, KVGeometry, KVLayout
from dejavubench.models.backends.cpu import amx as cpu_amx
from dejavubench.models.backends.cpu.codecache import Kernel
from dejavubench.models.backends.cpu.dotkernels import (
    LANES,
    TOTALS,
    blend,
    dots,
    fold,
    folds,
    pairs,
    unfold,
)
from dejavubench.models.backends.cpu.elementwise import (
    add,
    add_widened,
    copy,
    floats,
    gelu,
    halves,
    integers,
    multiply,
    multiply_widened,
    narrow,
    relu,
    round_as_half,
    silu,
    softmax,
    standardise,
    widen,
)
from dejavubench.models.backends.cpu.threads import (
    address,
    compiled,
    kernel,
    released,
    run,
    scratch,
    share,
)
from dejavubench.models.parts import Activation, Norm, Part, RMSNorm, same

AHEAD = 4096
"""Bytes at least between what is read and what memory is asked for: 1 KiB was slower, 16 KiB no faster."""

TILE = 4
"""Rows of x whose products with the same rows of a weight are summed side by side."""

STREAMS = 4
"""Rows of a weight that are read side by side, as far as registers last."""


@dataclass(frozen=True)
class Tiling:
    """How some rows of x meet a weight.

    Attributes:
        rows: of x at once; those that are left over come one by one.
        streams: rows of the weight at once. They come from as many parts of it: each part is a stream that goes on and
            on, which processors notice and fetch ahead.
        several: there is a second turn, so that each asks memory for half of what follows: were it all asked for
            during the first one, memory would be idle during the second.
        amx: by :mod:`.cpu_amx` instead, for which rows of the weight are neighbours.
    """

    rows: int
    streams: int
    several: bool
    amx: bool = False

    @staticmethod
    @cache
    def of(rows: int, ins: int, dtype: torch.dtype, of_x: torch.dtype) -> Tiling:
        if dtype == of_x == torch.bfloat16 and rows > TILE and cpu_amx.takes(rows, ins):
            return Tiling(cpu_amx.ROWS, cpu_amx.ROWS, several=False, amx=True)
        tile = min(TILE, 1 << max(1, rows).bit_length() - 1)
        return Tiling(tile, min(STREAMS, TOTALS // tile), rows > TILE)


def linear_kernel(rows: int, ins: int, dtype: torch.dtype, of_x: torch.dtype) -> Kernel:
    """Return the kernel that multiplies so many rows of x with a weight of ``dtype``."""
    return _linear_kernel(dtype, of_x, Tiling.of(rows, ins, dtype, of_x))


def attention_kernel(dtype: torch.dtype, layout: KVLayout) -> Kernel:
    """Return the kernel that attends to a cache of ``dtype``."""
    return _attend_kernel(dtype, layout is KVLayout.FT)


def _shape() -> str:
    """The sizes that kernels are built with, which depend on this CPU."""
    return f"lanes {LANES} totals {TOTALS} ahead {AHEAD} streams {STREAMS}"


# ---- linear ----

ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}
"""Numbers that a kernel knows them by."""

LinearJob = ctypes.c_int64 * 12
AttendJob = ctypes.c_int64 * 21


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = "none",
    residual: Tensor | None = None,
    norm: Part = same,
) -> Tensor:
    """activation(norm(x) · weightᵀ + bias) + residual, rounded once.

    Args:
        x: [..., in], like bias, residual and norm of fp32, or of bf16 where the weight is.
        weight: [out, in], contiguous.

    Raises:
        TypeError: of other types.
    """
    (outs, ins), gamma, beta, eps = weight.shape, None, None, 0.0
    if isinstance(norm, Norm | RMSNorm):
        gamma, beta, eps = norm.weight, norm.bias if isinstance(norm, Norm) else None, norm.eps
    if gamma is None or any(
        v is not None and (v.dtype != x.dtype or len(v) != ins) for v in (gamma, beta)
    ):
        x, gamma, beta = norm(x), None, None
    given = x.dtype
    if not (given == torch.float32 or given == torch.bfloat16 == weight.dtype) or not (
        (bias is None or bias.dtype == given) and (residual is None or residual.dtype == given)
    ):
        raise TypeError(
            f"x of {given} with a weight of {weight.dtype}; bias and residual must be of x's type"
        )
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = x.new_empty((*x.shape[:-1], outs))
    rows = x.numel() // ins
    job = LinearJob(
        *(x.data_ptr(), weight.data_ptr(), address(bias), address(residual), out.data_ptr()),
        *(rows, ins, outs, ACTIVATIONS[activation], address(gamma), address(beta), _bits(eps)),
    )
    run(_linear_kernel(weight.dtype, given, Tiling.of(rows, ins, weight.dtype, given)), job)
    return out


@cache
def _bits(number: float) -> int:
    """A fraction as a job holds it."""
    return int(np.float64(number).view(np.int64))


@cache
def _product(dtype: torch.dtype, of_x: torch.dtype, tiling: Tiling) -> Any:
    """Args: of_x: as :func:`~.cpu_rows.dots` takes x, folded where it is fp32 and the weight's type :func:`~.folds`."""
    tile, streams, several = tiling.rows, tiling.streams, tiling.several
    folded, fetches = folds(dtype) and of_x == torch.float32, streams // 2 if several else streams
    itemsize, itemsize_x = dtype.itemsize, of_x.itemsize
    most = dots(dtype, streams, tile, folded=folded, of_x=of_x, fetches=fetches)
    one = most if tile == 1 else dots(dtype, streams, 1, folded=folded, of_x=of_x, fetches=fetches)
    last = dots(dtype, 1, 1, folded=folded, of_x=of_x)

    @compiled
    def turns(w, apart, x, rows, ins, sums, sums_apart, after):  # type: ignore[no-untyped-def]
        """Some rows of the weight with all rows of x."""
        row, m = ins * itemsize_x, 0
        ahead = max(AHEAD, 2 * ins * itemsize) if several else AHEAD
        following = ahead + fetches * apart if several else 0
        while m <= rows - tile:
            most(w, apart, x + m * row, row, ins, sums + m * sums_apart, sums_apart, after, ahead)
            m, ahead, following = m + tile, following, 0
        if tile > 1:
            while m < rows:
                one(
                    w, apart, x + m * row, row, ins, sums + m * sums_apart, sums_apart, after, ahead
                )
                m, ahead, following = m + 1, following, 0

    @compiled
    def product(x, rows, ins, weight, columns, sums, sums_apart):  # type: ignore[no-untyped-def]
        """Add x · weightᵀ to the sums [rows, columns]."""
        part, row = columns // streams, ins * itemsize
        for n in range(part):
            turns(weight + n * row, part * row, x, rows, ins, sums + n * 4, sums_apart, part * 4)
        for n in range(part * streams, columns):
            for m in range(rows):
                at = x + m * ins * itemsize_x
                last(weight + n * row, 0, at, 0, ins, sums + m * sums_apart + n * 4, 0, 0, 0)

    return product


@cache
def _linear_kernel(dtype: torch.dtype, of_x: torch.dtype, tiling: Tiling) -> Kernel:
    name = f"linear: {of_x} by {dtype}, {tiling}, in pairs {pairs(dtype, of_x)}, {_shape()}"
    return Kernel(name, partial(_compile_linear, dtype, of_x, tiling))


def _compile_linear(dtype: torch.dtype, of_x: torch.dtype, tiling: Tiling) -> Any:
    itemsize, itemsize_x, half, amx = (
        dtype.itemsize,
        of_x.itemsize,
        of_x == torch.bfloat16,
        tiling.amx,
    )
    paired = amx or pairs(dtype, of_x)
    folded = folds(dtype) and not paired
    taken = of_x if paired else torch.float32  # what the sums take x as
    product = cpu_amx.product if amx else _product(dtype, taken, tiling)
    given, read, plus, times = (
        (halves, widen, add_widened, multiply_widened) if half else (floats, copy, add, multiply)
    )

    @compiled
    def prepared(x, gamma, beta, eps, rows, ins, into):  # type: ignore[no-untyped-def]
        """x as the sums take it: normalised and folded if they ask for it; each row first in the place after all."""
        row = carray(floats(into + rows * ins * 4), ins)
        for m in range(rows):
            read(carray(given(x + m * ins * itemsize_x), ins), row)
            if gamma:
                standardise(row, beta != 0, eps)
                times(carray(given(gamma), ins), row)
            if beta:
                plus(carray(given(beta), ins), row)
            if (
                gamma and half and not paired
            ):  # as a norm that is an operator of its own, for rows that go other ways
                round_as_half(row)
            if paired:
                narrow(row, carray(halves(into + m * ins * 2), ins))
            elif folded:
                fold(row, carray(floats(into + m * ins * 4), ins))
            else:
                copy(row, carray(floats(into + m * ins * 4), ins))

    @compiled
    def finish(sums, activation, residual, out):  # type: ignore[no-untyped-def]
        if activation == 1:
            gelu(sums)
        elif activation == 2:
            relu(sums)
        elif activation == 3:
            silu(sums)
        if residual:
            plus(carray(given(residual), len(sums)), sums)
        if half:
            narrow(sums, carray(halves(out), len(sums)))

    @kernel
    def product_of_rows(job):  # type: ignore[no-untyped-def]
        x, weight, bias, residual, out, rows, ins, outs, activation, gamma, beta, eps = carray(
            job, 12
        )
        begin, stop = share(outs, STREAMS)
        columns, prepares = stop - begin, folded or gamma != 0
        own = scratch((rows * columns * half + (rows + 1) * ins * prepares) * 4)
        sums, apart = out + begin * 4, outs * 4
        if half:
            sums, apart = own, columns * 4
        for m in range(rows):
            row = carray(floats(sums + m * apart), columns)
            row[:] = np.float32(0)
            if bias:
                plus(carray(given(bias + begin * itemsize_x), columns), row)
        if prepares:
            ready = own + rows * columns * half * 4
            prepared(x, gamma, beta, np.int64(eps).view(np.float64), rows, ins, ready)
            x = ready
        product(x, rows, ins, weight + begin * ins * itemsize, columns, sums, apart)
        for m in range(rows):
            at = (m * outs + begin) * itemsize_x
            there = residual + at if residual else 0
            finish(carray(floats(sums + m * apart), columns), activation, there, out + at)
        released(own)

    return product_of_rows


# ---- attention ----


def attend(
    q: Tensor,
    cache: KVCache,
    layer: int,
    stop: int,
    slopes: Tensor | None = None,
    first: Tensor | None = None,
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
    by_request, by_head, _ = q.stride()
    run(
        _attend_kernel(cache.k.dtype, cache.geometry.layout is KVLayout.FT),
        AttendJob(
            *(
                q.data_ptr(),
                cache.k.data_ptr() + layer * way.layer,
                cache.v.data_ptr() + layer * way.layer,
            ),
            *(out.data_ptr(), address(slopes), address(first)),
            *(
                requests,
                heads // group,
                group,
                stop,
                size,
                way.piece,
                *way.k,
                *way.v,
                by_request * 4,
                by_head * 4,
            ),
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
def _fetching(base, count, apart, nbytes, following):  # type: ignore[no-untyped-def]
    """What to fetch beside ``count`` rows of so many bytes, the first of them at ``base``.

    Rows before ``turn`` fetch the row that is AHEAD bytes on; row s from there on fetches what lies at
    following + (s − turn) · apart. Without anything that follows nothing is fetched.

    Returns:
        turn, and from a row to what it fetches, before it and from it on.
    """
    if not following:
        return count, 0, 0
    soon = (AHEAD + nbytes - 1) // nbytes
    turn = max(0, count - soon)
    return turn, soon * apart, following - (base + turn * apart)


@cache
def _attend_kernel(dtype: torch.dtype, in_vectors: bool) -> Kernel:
    name = f"attention: {dtype}, in vectors {in_vectors}, {_shape()}"
    return Kernel(name, partial(_compile_attention, dtype, in_vectors))


def _compile_attention(dtype: torch.dtype, in_vectors: bool) -> Any:
    """Args: in_vectors: keys lie as ``ft`` has them, each in pieces of 16 bytes."""
    itemsize, values_fold = dtype.itemsize, folds(dtype)
    once = STREAMS if in_vectors else 1  # pieces of neighbours lie in one line: they are no streams
    keys_fold = values_fold and not in_vectors
    lanes = min(LANES, FT_VECTOR_BYTES // dtype.itemsize) if in_vectors else LANES
    most = dots(dtype, STREAMS, 1, lanes, keys_fold, fetches=1 if in_vectors else STREAMS)
    one = dots(dtype, 1, 1, lanes, keys_fold)
    values, value = (blend(dtype, streams) for streams in (STREAMS, 1))

    @compiled
    def score(q, k, apart, count, size, scores, following):  # type: ignore[no-untyped-def]
        """Add the products of ``count`` keys' pieces with that of the query."""
        part = count // STREAMS
        turn, ahead, beyond = _fetching(k, part * once, apart, size * itemsize, following)
        for s in range(0, part * once, once):
            if s >= turn:
                ahead = beyond
            between = 1 if in_vectors else part
            most(k + s * apart, between * apart, q, 0, size, scores + s * 4, 0, between * 4, ahead)
        for s in range(part * STREAMS, count):
            one(k + s * apart, 0, q, 0, size, scores + s * 4, 0, 4, 0)

    @compiled
    def blended(p, v, apart, count, size, out, following):  # type: ignore[no-untyped-def]
        """Add the sum of ``count`` values, each by its factor, to ``out``."""
        part = count // STREAMS
        turn, ahead, beyond = _fetching(v, part, apart, size * itemsize, following)
        begin, stop = 0, turn
        for _ in range(2):
            values(p, v, apart, part, begin, stop, size, out, ahead)
            begin, stop, ahead = turn, part, beyond
        value(p, v, apart, 0, part * STREAMS, count, size, out, 0)

    @kernel
    def attention(job):  # type: ignore[no-untyped-def]
        q, k, v, out, slopes, firsts, requests, heads, group, stop, size, piece = carray(job, 21)[
            :12
        ]
        k_request, k_head, k_position, k_piece, v_request, v_head, v_position = carray(job, 21)[
            12:19
        ]
        q_request, q_head = carray(job, 21)[19:]
        query = scratch((2 * size + group * stop) * 4)
        scaled, folded = carray(floats(query), size), carray(floats(query + size * 4), size)
        mine, scale, pieces = query + 2 * size * 4, np.float32(1 / np.sqrt(size)), size // piece
        begin, end = share(requests * heads, 1)
        for number in range(begin, end):
            request, head = number // heads, number % heads
            first = 0
            if firsts:
                first = carray(integers(firsts), requests)[request]
            count = stop - first
            keys = k + request * k_request + head * k_head + first * k_position
            rows = v + request * v_request + head * v_head + first * v_position
            for member in range(group):
                given = carray(
                    floats(q + request * q_request + (head * group + member) * q_head), size
                )
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
                for part in range(pieces):
                    following = keys + (part + 1) * k_piece if part + 1 < pieces else rows
                    score(
                        query + (size * keys_fold + part * piece) * 4,
                        keys + part * k_piece,
                        k_position,
                        count,
                        piece,
                        mine + member * stop * 4,
                        0 if member else following,
                    )
                softmax(scores)
            following = 0
            if number + 1 < end:  # of another request, whose padding is another, nearly
                following = (
                    k
                    + (number + 1) // heads * k_request
                    + (number + 1) % heads * k_head
                    + first * k_position
                )
            for member in range(group):
                into = out + (number * group + member) * size * 4
                there = query if values_fold else into
                carray(floats(there), size)[:] = np.float32(0)
                blended(
                    mine + member * stop * 4,
                    rows,
                    v_position,
                    count,
                    size,
                    there,
                    0 if member else following,
                )
                if values_fold:
                    unfold(scaled, carray(floats(into), size))
        released(query)

    return attention
