"""Kernels of a CPU's decode step: few rows, so what counts is to read weights and cache at the memory's speed.

Numba compiles them for this CPU when a model is made, which takes a second or two. Weights and cache are read in the
type that they are kept in, which need not be one that the CPU multiplies. They run on the threads of torch's own pool:
a second pool would wait busily on the cores of the first.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import carray, cfunc, njit, types
from torch import Tensor

from dejavubench.kvcache import BOTH, FT_VECTOR_BYTES, KVCache, KVGeometry, KVLayout
from dejavubench.models.cpu_rows import LANES, MOST_ROWS, PAIR, blend, dots, floats, fold, folds, integers, unfold
from dejavubench.models.parts import Activation

AHEAD = 4096
"""Bytes between what is read and what memory is asked for meanwhile: 1 KiB was slower, 16 KiB no faster."""

OPENMP = ctypes.CDLL(None)  # torch has loaded its OpenMP library for all to see
OPENMP.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
for _name in ("omp_get_thread_num", "omp_get_num_threads"):
    binding.add_symbol(_name, ctypes.cast(getattr(OPENMP, _name), ctypes.c_void_p).value)
_thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
_thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())

COMPILED: Any = {"boundscheck": False, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
JOB = types.void(types.CPointer(types.int64))


def _run(kernel: Any, job: Any) -> None:
    """Call a kernel on every thread, with a ctypes array of what it knows how to read."""
    OPENMP.GOMP_parallel(kernel.address, ctypes.addressof(job), torch.get_num_threads(), 0)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _as_floats(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.float().contiguous()


@njit(**COMPILED)
def _share(count: int, unit: int) -> tuple[int, int]:
    """This thread's part of [0, count): whole units, but for the last thread's."""
    thread, threads = _thread_number(), _thread_count()
    units = (count + unit - 1) // unit
    return min(count, units * thread // threads * unit), min(count, units * (thread + 1) // threads * unit)


def compile(dtype: torch.dtype, layout: KVLayout) -> None:
    """What :func:`linear` and :func:`attend` need for weights and a cache of this type."""
    _linear_kernel(dtype)
    _attend_kernel(dtype, layout is KVLayout.FT)


# ---- linear ----


ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}
"""Numbers that a kernel knows them by."""

LinearJob = ctypes.c_int64 * 10
AttendJob = ctypes.c_int64 * 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None) -> Tensor:
    """activation(x · weightᵀ + bias) + residual; x [..., in] and all but the weight [out, in] of one type."""
    outs, ins = weight.shape
    numbers, bias, added = _as_floats(x), _as_floats(bias), _as_floats(residual)
    out = torch.empty(*x.shape[:-1], outs)
    working = torch.empty(torch.get_num_threads(), x.numel()) if folds(weight.dtype) else None
    _run(
        _linear_kernel(weight.dtype),
        LinearJob(
            *(_address(numbers), _address(bias), _address(added), weight.data_ptr(), out.data_ptr(), _address(working)),
            *(out.numel() // outs, ins, outs, ACTIVATIONS[activation]),
        ),
    )
    return out if x.dtype == torch.float32 else out.to(x.dtype)


@njit(**COMPILED)
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x of fp32 |x| ≤ 87, to two units in the last place: Cephes' expf. Branchless, so that loops become vectors."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    power = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - power * np.float32(0.693359375) - power * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1.0)
    return y * np.int32((np.int32(power) + 127) << 23).view(np.float32)


@njit(**COMPILED)
def _begin(out, bias, residual):  # type: ignore[no-untyped-def]
    """What the product is added to."""
    for n in range(len(out)):
        out[n] = np.float32(0)
    for n in range(len(bias)):
        out[n] += bias[n]
    for n in range(len(residual)):
        out[n] += residual[n]


@njit(**COMPILED)
def _activate(out, activation):  # type: ignore[no-untyped-def]
    one = np.float32(1)
    if activation == 1:  # 0.5 · (1 + tanh y) = 1 / (1 + e^−2y)
        for n in range(len(out)):
            x = out[n]
            y = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
            out[n] = x / (one + _exp(np.float32(-2) * y))
    elif activation == 2:
        for n in range(len(out)):
            out[n] = max(out[n], np.float32(0))
    elif activation == 3:
        for n in range(len(out)):
            out[n] = out[n] / (one + _exp(-out[n]))


@cache
def _linear_kernel(dtype: torch.dtype) -> Any:
    itemsize = dtype.itemsize
    folded = folds(dtype)
    most, four, two, one = (dots(dtype, PAIR, columns, folded=folded) for columns in (MOST_ROWS, 4, 2, 1))
    last = dots(dtype, 1, 1, folded=folded)

    @njit(**COMPILED)
    def pair(w, apart, x, x_apart, rows, ins, out, out_apart):  # type: ignore[no-untyped-def]
        """Two rows of the weights with all of x. What follows them is fetched with the first of the tiles."""
        ahead = AHEAD
        while rows >= MOST_ROWS:
            most(w, apart, x, x_apart, ins, out, out_apart, ahead)
            x, out, rows, ahead = x + MOST_ROWS * x_apart, out + MOST_ROWS * out_apart, rows - MOST_ROWS, 0
        if rows >= 4:
            four(w, apart, x, x_apart, ins, out, out_apart, ahead)
            x, out, rows, ahead = x + 4 * x_apart, out + 4 * out_apart, rows - 4, 0
        if rows >= 2:
            two(w, apart, x, x_apart, ins, out, out_apart, ahead)
            x, out, rows, ahead = x + 2 * x_apart, out + 2 * out_apart, rows - 2, 0
        if rows:
            one(w, apart, x, x_apart, ins, out, out_apart, ahead)

    @cfunc(JOB, **COMPILED)
    def kernel(job):  # type: ignore[no-untyped-def]
        x, bias, residual, weight, out, working, rows, ins, outs, activation = carray(job, 10)
        begin, stop = _share(outs, PAIR)
        columns, apart = stop - begin, ins * itemsize
        biases = carray(floats(bias + begin * 4), columns if bias else 0)
        for row in range(rows):
            at = (row * outs + begin) * 4
            added = carray(floats(residual + at), columns if residual and not activation else 0)
            _begin(carray(floats(out + at), columns), biases, added)
        if folded:
            given, x = x, working + _thread_number() * rows * ins * 4
            for row in range(rows):
                fold(carray(floats(given + row * ins * 4), ins), carray(floats(x + row * ins * 4), ins))
        for n in range(begin, stop - 1, PAIR):
            pair(weight + n * apart, apart, x, ins * 4, rows, ins, out + n * 4, outs * 4)
        if columns % PAIR:
            n = stop - 1
            for row in range(rows):
                last(weight + n * apart, 0, x + row * ins * 4, 0, ins, out + (row * outs + n) * 4, 0, 0)
        for row in range(rows if activation else 0):
            at = (row * outs + begin) * 4
            mine = carray(floats(out + at), columns)
            _activate(mine, activation)
            if residual:
                added = carray(floats(residual + at), columns)
                for n in range(columns):
                    mine[n] += added[n]

    return kernel


# ---- attention ----


def attend(
    q: Tensor, cache: KVCache, layer: int, stop: int, slopes: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """Attention of one query of each head over the positions [0, stop) of the cache, as it lies.

    Args:
        q: fp32 [B, H, D], the elements of a head contiguous.
        slopes: ALiBi's of the heads, fp32 [H].
        first: each request's first position that counts, int64 [B].

    Returns:
        fp32 [B, H, D].
    """
    requests, heads, size = q.shape
    group, way = heads // cache.geometry.heads, _way(cache.geometry)
    out = torch.empty(requests, heads, size)
    working = torch.empty(torch.get_num_threads(), 2 * size + stop * group)
    by_request, by_head, _ = q.stride()
    _run(
        _attend_kernel(cache.k.dtype, cache.geometry.layout is KVLayout.FT),
        AttendJob(
            *(q.data_ptr(), cache.k.data_ptr() + layer * way.layer, cache.v.data_ptr() + layer * way.layer),
            *(out.data_ptr(), working.data_ptr(), _address(slopes), _address(first)),
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
    steps = {kv: [step * geometry.itemsize for step in _strides(geometry.shape(kv))] for kv in BOTH}
    layer, *v = steps["v"]
    if geometry.layout is KVLayout.NHD:
        request, position, head, _ = v
    else:
        request, head, position, _ = v
    if geometry.layout is not KVLayout.FT:
        piece, k = geometry.head_size, (request, head, position, 0)
    else:
        piece = geometry.vector
        _, k_request, k_head, k_piece, k_position, _ = steps["k"]
        k = (k_request, k_head, k_position, k_piece)
    return Way(layer, piece, k, (request, head, position))


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of a contiguous tensor, in elements."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


@njit(**COMPILED)
def _softmax(scores):  # type: ignore[no-untyped-def]
    top, total = np.float32(-np.inf), np.float32(0)
    for s in range(len(scores)):
        top = max(top, scores[s])
    for s in range(len(scores)):
        scores[s] = _exp(scores[s] - top)
    for s in range(len(scores)):
        total += scores[s]
    for s in range(len(scores)):
        scores[s] /= total


@njit(**COMPILED)
def _far(apart):  # type: ignore[no-untyped-def]
    """Bytes to fetch ahead of rows that lie ``apart``: a row that will be read."""
    return (AHEAD + apart - 1) // apart * apart


@cache
def _attend_kernel(dtype: torch.dtype, in_vectors: bool) -> Any:
    """Args: in_vectors: keys lie as ``ft`` has them, each in pieces of 16 bytes."""
    values_fold = folds(dtype)
    keys_fold = values_fold and not in_vectors
    lanes = min(LANES, FT_VECTOR_BYTES // dtype.itemsize) if in_vectors else LANES
    four, one = (dots(dtype, keys, 1, lanes, keys_fold) for keys in (4, 1))
    values = blend(dtype)

    @njit(**COMPILED)
    def score(q, k, apart, count, size, scores, ahead):  # type: ignore[no-untyped-def]
        """Add the products of ``count`` keys' pieces with that of the query."""
        for s in range(0, count - 3, 4):
            four(k + s * apart, apart, q, 0, size, scores + s * 4, 0, ahead)
        for s in range(count // 4 * 4, count):
            one(k + s * apart, 0, q, 0, size, scores + s * 4, 0, 0)

    @cfunc(JOB, **COMPILED)
    def kernel(job):  # type: ignore[no-untyped-def]
        q, k, v, out, working, slopes, firsts = carray(job, 22)[:7]
        requests, heads, group, stop, size, piece = carray(job, 22)[7:13]
        k_request, k_head, k_position, k_piece, v_request, v_head, v_position = carray(job, 22)[13:20]
        q_request, q_head = carray(job, 22)[20:]
        query = working + _thread_number() * (2 * size + group * stop) * 4
        scaled, folded = carray(floats(query), size), carray(floats(query + size * 4), size)
        mine, scale = query + 2 * size * 4, np.float32(1 / np.sqrt(size))
        begin, end = _share(requests * heads, 1)
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
                _softmax(scores)
            rows = v + request * v_request + head * v_head + first * v_position
            for member in range(group):
                into = out + (number * group + member) * size * 4
                there = query if values_fold else into
                values(
                    mine + member * stop * 4, rows, v_position, count, size, there, 0 if member else _far(v_position)
                )
                if values_fold:
                    unfold(scaled, carray(floats(into), size))

    return kernel
