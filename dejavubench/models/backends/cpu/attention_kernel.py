"""The kernel of attention of one query: what counts is to read the cache at the memory's speed.

Keys and values are read as they lie in the cache, in the type that they are kept in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numba import carray
from torch import Tensor

from dejavubench.dejavulib.kv_cache import FT_VECTOR_BYTES, KVCache, KVGeometry, KVLayout
from dejavubench.models.backends.cpu.code_cache import Kernel
from dejavubench.models.backends.cpu.dot_kernels import (
    AHEAD_NBYTES,
    LANES,
    STREAMS,
    blend,
    dots,
    sizes_text,
)
from dejavubench.models.backends.cpu.elementwise import floats, integers, softmax
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

AttentionJob = struct(
    "AttentionJob",
    *("q", "k", "v", "out", "slopes", "prompt_start"),
    *("requests", "heads", "group", "stop", "size", "piece"),
    *("k_request", "k_head", "k_position", "k_piece"),
    *("v_request", "v_head", "v_position", "q_request", "q_head"),
)
"""Addresses (``slopes`` and ``prompt_start`` may be 0), then numbers, then distances in bytes.

``heads`` are those of keys and values, ``group`` the queries of each. ``piece`` is how many
elements of a key are neighbours."""


def attend(
    q: Tensor,
    cache: KVCache,
    layer: int,
    stop: int,
    slopes: Tensor | None = None,
    prompt_start: Tensor | None = None,
) -> Tensor:
    """Return attention of one query of each head over the positions [0, stop), fp32 [B, H, D].

    Args:
        q: fp32 [B, H, D], the elements of a head contiguous.
        slopes: ALiBi's of the heads, contiguous fp32 [H].
        prompt_start: each request's first position that counts, contiguous int64 [B].
    """
    requests, heads, size = q.shape
    assert q.dtype == torch.float32
    assert q.stride(2) == 1
    assert stop <= cache.geometry.positions
    assert prompt_start is None or prompt_start.dtype == torch.int64
    assert slopes is None or slopes.numel() == heads
    group = heads // cache.geometry.heads
    strides = _find_strides(cache.geometry)
    out = torch.empty(requests, heads, size)
    q_request, q_head, _ = q.stride()
    offset = layer * strides.layer
    job = AttentionJob(
        *(q.data_ptr(), cache.k.data_ptr() + offset, cache.v.data_ptr() + offset, out.data_ptr()),
        *(pointer_of(slopes), pointer_of(prompt_start)),
        *(requests, heads // group, group, stop, size, strides.piece),
        *(*strides.k, *strides.v, q_request * 4, q_head * 4),
    )
    run(kernel_for(cache.k.dtype, cache.geometry.layout), job)
    return out


@dataclass(frozen=True)
class Strides:
    """Distances in a cache, in bytes.

    Attributes:
        layer: distance from a layer of K, or of V, to the next one.
        piece: elements of a key that are neighbours; a number, not bytes.
        k: distances of keys, from one request, head, position and piece to the next.
        v: distances of values, from one request, head and position to the next.
    """

    layer: int
    piece: int
    k: tuple[int, int, int, int]
    v: tuple[int, int, int]


@functools.cache
def _find_strides(geometry: KVGeometry) -> Strides:
    """Return a cache's distances; it is called per layer and step, hence the cache."""
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
    return Strides(layer, piece, k, (request, head, position))


def kernel_for(dtype: torch.dtype, layout: KVLayout) -> Kernel:
    """Return the kernel for caches of ``dtype`` in ``layout``."""
    return _make_kernel(dtype, layout is KVLayout.FT)


@functools.cache
def _make_kernel(dtype: torch.dtype, in_vectors: bool) -> Kernel:
    name = f"attention: {dtype}, in vectors {in_vectors}, {sizes_text()}"
    return Kernel(name, partial(_compile, dtype, in_vectors))


# ---- compiled code ----


@compiled
def _scratch_nbytes(size: int, group: int, stop: int) -> int:
    """Return the scratch bytes: one scaled query, and ``group`` rows of scores."""
    return (size + group * stop) * 4


@compiled
def _plan_fetching(base, count, stride, nbytes, following):  # type: ignore[no-untyped-def]
    """Return ``(turn, ahead, beyond)``: which line each row prefetches while it is read.

    ``count`` rows of ``nbytes`` are read from ``base`` on, ``stride`` bytes between them.

        row          0 …………… turn − 1     turn …………………………… count − 1
        prefetches   the row ``ahead``     ``following`` + (row − turn) · stride,
                     bytes later           which is ``beyond`` bytes later

    If nothing follows, nothing is prefetched.
    """
    if not following:
        return count, 0, 0
    # At least AHEAD_NBYTES ahead, in whole rows: memory needs that long to answer.
    rows_ahead = (AHEAD_NBYTES + nbytes - 1) // nbytes
    # The last rows have no later row to ask for, so they ask for the next thing that is read.
    turn = max(0, count - rows_ahead)
    return turn, rows_ahead * stride, following - (base + turn * stride)


def _make_score(dtype: torch.dtype, in_vectors: bool) -> Compiled:
    """Return ``score(q, k, stride, count, size, scores, following)``, compiled.

    It adds the products of ``count`` keys' pieces of ``size`` elements with that of the query.
    """
    itemsize = dtype.itemsize
    # In ``ft``, neighbouring keys' pieces lie in one line: they are no streams of their own.
    keys_per_line = STREAMS if in_vectors else 1
    lanes = min(LANES, FT_VECTOR_BYTES // itemsize) if in_vectors else LANES
    stream_dots = dots(dtype, STREAMS, 1, lanes, fetches=1 if in_vectors else STREAMS)
    single_dots = dots(dtype, 1, 1, lanes)

    @compiled
    def score(q, k, stride, count, size, scores, following):  # type: ignore[no-untyped-def]
        """Add up the products of all keys, STREAMS keys at a time, then the rest singly."""
        part = count // STREAMS  # keys of each stream; in ``ft`` groups of neighbours
        turn, ahead, beyond = _plan_fetching(
            k, part * keys_per_line, stride, size * itemsize, following
        )
        # Row-wise layouts: four streams, a quarter of the keys each, keep four lines in flight.
        # ``ft``: the four neighbours share a line, so one stream of groups of four.
        stream_distance = 1 if in_vectors else part
        for s in range(0, part * keys_per_line, keys_per_line):
            if s >= turn:
                ahead = beyond
            stream_dots(
                k + s * stride,
                stream_distance * stride,
                q,
                0,
                size,
                scores + s * 4,
                0,
                stream_distance * 4,
                ahead,
            )
        # The rest of the division, at most STREAMS − 1 keys; too few to fetch ahead for.
        for s in range(part * STREAMS, count):
            single_dots(k + s * stride, 0, q, 0, size, scores + s * 4, 0, 4, 0)

    return score


def _make_weighted_sum(dtype: torch.dtype) -> Compiled:
    """Return ``weighted_sum(p, v, stride, count, size, out, following)``, compiled.

    It writes the sum of ``count`` values, each by its factor, to ``out``.
    """
    itemsize = dtype.itemsize
    values, value = (blend(dtype, streams) for streams in (STREAMS, 1))

    @compiled
    def weighted_sum(p, v, stride, count, size, out, following):  # type: ignore[no-untyped-def]
        carray(floats(out), size)[:] = np.float32(0)
        part = count // STREAMS
        turn, ahead, beyond = _plan_fetching(v, part, stride, size * itemsize, following)
        # Rows up to ``turn`` ask for later values, the rest for what follows all values. One call
        # in a loop, so that the inlined kernel is in the code once.
        begin, stop = 0, turn
        for _ in range(2):
            values(p, v, stride, part, begin, stop, size, out, ahead)
            begin, stop, ahead = turn, part, beyond
        value(p, v, stride, 0, part * STREAMS, count, size, out, 0)

    return weighted_sum


@compiled
def _scale_query(unscaled, scale, query):  # type: ignore[no-untyped-def]
    for d in range(len(query)):
        query[d] = unscaled[d] * scale


@compiled
def _start_scores(scores, slope):  # type: ignore[no-untyped-def]
    """Begin with ALiBi's bias, slope · (key's position − query's)."""
    for s in range(len(scores)):
        scores[s] = slope * np.float32(s + 1 - len(scores))


def _compile(dtype: torch.dtype, in_vectors: bool) -> LoadedCode:
    """Compile the kernel: scores and softmax of each head, then the sum of its values."""
    score, weighted_sum = _make_score(dtype, in_vectors), _make_weighted_sum(dtype)

    @compiled
    def probabilities(job, request, head, member, keys, count, query, scores, rows):  # type: ignore[no-untyped-def]
        """Write one query's probabilities of ``count`` keys; ``rows`` is read after the keys."""
        size, query_head = job.size, head * job.group + member
        query_address = job.q + request * job.q_request + query_head * job.q_head
        scaled = carray(floats(query), size)
        _scale_query(carray(floats(query_address), size), np.float32(1 / np.sqrt(size)), scaled)
        slope = np.float32(0)
        if job.slopes:
            slope = carray(floats(job.slopes), job.heads * job.group)[query_head]
        own_scores = carray(floats(scores), count)
        _start_scores(own_scores, slope)
        pieces = size // job.piece
        for part in range(pieces):
            piece = keys + part * job.k_piece
            following = piece + job.k_piece if part + 1 < pieces else rows
            if member:  # the group's first query has fetched it
                following = 0
            of_query = query + part * job.piece * 4
            score(of_query, piece, job.k_position, count, job.piece, scores, following)
        softmax(own_scores)

    @kernel(AttentionJob)
    def attention(jobs):  # type: ignore[no-untyped-def]
        """Serve this thread's pairs of request and KV head, one after the other."""
        job = carray(jobs, 1)[0]
        size, heads, group, stop = job.size, job.heads, job.group, job.stop
        query = scratch(_scratch_nbytes(size, group, stop))
        scores, row = query + size * 4, stop * 4  # a row of scores for each query of the group
        begin, end = share(job.requests * heads, 1)
        for pair_index in range(begin, end):
            request, head = pair_index // heads, pair_index % heads
            start = 0
            if job.prompt_start:
                start = carray(integers(job.prompt_start), job.requests)[request]
            count = stop - start
            keys = job.k + request * job.k_request + head * job.k_head + start * job.k_position
            rows = job.v + request * job.v_request + head * job.v_head + start * job.v_position
            # The first query brings keys to the cache of the CPU, the others find them there.
            for m in range(group):
                probabilities(job, request, head, m, keys, count, query, scores + m * row, rows)
            following = 0
            if pair_index + 1 < end:
                # The next head's keys; if they are another request's, its padding differs a little.
                next_request, next_head = (pair_index + 1) // heads, (pair_index + 1) % heads
                following = job.k + next_request * job.k_request + next_head * job.k_head
                following += start * job.k_position
            for m in range(group):
                out = job.out + (pair_index * group + m) * size * 4
                weights = scores + m * row
                weighted_sum(weights, rows, job.v_position, count, size, out, 0 if m else following)
        released(query)

    return attention
