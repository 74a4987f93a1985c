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
    PART_COUNT,
    format_sizes,
    make_blend,
    make_dots,
)
from dejavubench.models.backends.cpu.elementwise import as_floats, as_integers, softmax
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

AttentionJob = make_job_type(
    "AttentionJob",
    *("q", "k", "v", "out", "slopes", "prompt_start"),
    *("requests", "heads", "group", "stop", "head_size", "piece_size"),
    *("k_request", "k_head", "k_position", "k_piece"),
    *("v_request", "v_head", "v_position", "q_request", "q_head"),
)
"""Addresses (``slopes`` and ``prompt_start`` may be 0), then numbers, then distances in bytes.

``heads`` are those of keys and values, ``group`` the queries of each. ``piece_size`` is how many
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
    requests, heads, head_size = q.shape
    assert q.dtype == torch.float32
    assert q.stride(2) == 1
    assert stop <= cache.geometry.positions
    assert prompt_start is None or prompt_start.dtype == torch.int64
    assert slopes is None or slopes.numel() == heads
    group = heads // cache.geometry.heads
    strides = _find_strides(cache.geometry)
    out = torch.empty(requests, heads, head_size)
    q_request, q_head, _ = q.stride()
    layer_offset = layer * strides.layer
    job = AttentionJob(
        *(
            q.data_ptr(),
            cache.k.data_ptr() + layer_offset,
            cache.v.data_ptr() + layer_offset,
            out.data_ptr(),
        ),
        *(address_or_zero(slopes), address_or_zero(prompt_start)),
        *(requests, heads // group, group, stop, head_size, strides.piece_size),
        *(*strides.k, *strides.v, q_request * 4, q_head * 4),
    )
    run_on_all_threads(choose_kernel(cache.k.dtype, cache.geometry.layout), job)
    return out


@dataclass(frozen=True)
class Strides:
    """Distances in a cache, in bytes.

    Attributes:
        layer: distance from a layer of K, or of V, to the next one.
        piece_size: elements of a key that are neighbours; a number, not bytes.
        k: distances of keys, from one request, head, position and piece to the next.
        v: distances of values, from one request, head and position to the next.
    """

    layer: int
    piece_size: int
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
        piece_size, k = geometry.head_size, (request, head, position, 0)
    else:
        piece_size = geometry.vector
        _, k_request, k_head, k_piece, k_position, _ = geometry.strides("k")
        k = (k_request, k_head, k_position, k_piece)
    return Strides(layer, piece_size, k, (request, head, position))


def choose_kernel(dtype: torch.dtype, layout: KVLayout) -> Kernel:
    """Return the kernel for caches of ``dtype`` in ``layout``."""
    return _make_kernel(dtype, layout is KVLayout.FT)


@functools.cache
def _make_kernel(dtype: torch.dtype, in_vectors: bool) -> Kernel:
    name = f"attention: {dtype}, in vectors {in_vectors}, {format_sizes()}"
    return Kernel(name, partial(_compile, dtype, in_vectors))


# ---- compiled code ----


@compiled
def _scratch_nbytes(head_size: int, group: int, stop: int) -> int:
    """Return the scratch bytes: one scaled query, and ``group`` rows of scores."""
    return (head_size + group * stop) * 4


@compiled
def _plan_fetching(first_address, count, stride, row_nbytes, next_address):  # type: ignore[no-untyped-def]
    """Return ``(switch_row, ahead, ahead_after_switch)``: the line that each row prefetches.

    ``count`` rows of ``row_nbytes`` are read from ``first_address`` on, ``stride`` bytes between
    them.

        row          0 … switch_row − 1   switch_row … count − 1
        prefetches   the row ``ahead``    ``next_address`` + (row − switch_row) · stride,
                     bytes later          which is ``ahead_after_switch`` bytes later

    If nothing follows, ``next_address`` is 0: nothing is prefetched.
    """
    if not next_address:
        return count, 0, 0
    # At least AHEAD_NBYTES ahead, in whole rows: memory needs that long to answer.
    rows_ahead = (AHEAD_NBYTES + row_nbytes - 1) // row_nbytes
    # The last rows have no later row to ask for, so they ask for the next thing that is read.
    switch_row = max(0, count - rows_ahead)
    return switch_row, rows_ahead * stride, next_address - (first_address + switch_row * stride)


def _make_score(dtype: torch.dtype, in_vectors: bool) -> CompiledFunction:
    """Return ``score(q, k, k_stride, count, piece_size, scores, next_address)``, compiled.

    It adds the products of ``count`` keys' pieces of ``piece_size`` elements with that of the
    query.
    """
    itemsize = dtype.itemsize
    # In ``ft``, neighbouring keys' pieces lie in one line: they are no parts of their own.
    keys_per_line = PART_COUNT if in_vectors else 1
    lanes = min(LANES, FT_VECTOR_BYTES // itemsize) if in_vectors else LANES
    part_dots = make_dots(
        dtype, PART_COUNT, 1, lanes, prefetched_row_count=1 if in_vectors else PART_COUNT
    )
    single_dots = make_dots(dtype, 1, 1, lanes)

    @compiled
    def score(q, k, k_stride, count, piece_size, scores, next_address):  # type: ignore[no-untyped-def]
        """Add up the products of all keys, one of each part at a time, then the rest singly."""
        # Keys of each part; in ``ft`` groups of neighbours.
        part_keys = count // PART_COUNT
        switch_row, ahead, ahead_after_switch = _plan_fetching(
            k, part_keys * keys_per_line, k_stride, piece_size * itemsize, next_address
        )
        # Row-wise layouts: four parts, a quarter of the keys each, keep four lines in flight.
        # ``ft``: the four neighbours share a line, so one part of groups of four.
        part_distance = 1 if in_vectors else part_keys
        for s in range(0, part_keys * keys_per_line, keys_per_line):
            if s >= switch_row:
                ahead = ahead_after_switch
            part_dots(
                k + s * k_stride,
                part_distance * k_stride,
                q,
                0,
                piece_size,
                scores + s * 4,
                0,
                part_distance * 4,
                ahead,
            )
        # The rest of the division, at most PART_COUNT − 1 keys; too few to fetch ahead for.
        for s in range(part_keys * PART_COUNT, count):
            single_dots(k + s * k_stride, 0, q, 0, piece_size, scores + s * 4, 0, 4, 0)

    return score


def _make_weighted_sum(dtype: torch.dtype) -> CompiledFunction:
    """Return ``weighted_sum(p, v, v_stride, count, head_size, out, next_address)``, compiled.

    It writes the sum of ``count`` values, each by its factor, to ``out``.
    """
    itemsize = dtype.itemsize
    blend_parts, blend_row = (make_blend(dtype, count) for count in (PART_COUNT, 1))

    @compiled
    def weighted_sum(p, v, v_stride, count, head_size, out, next_address):  # type: ignore[no-untyped-def]
        carray(as_floats(out), head_size)[:] = np.float32(0)
        part_rows = count // PART_COUNT
        switch_row, ahead, ahead_after_switch = _plan_fetching(
            v, part_rows, v_stride, head_size * itemsize, next_address
        )
        # Rows up to ``switch_row`` ask for later values, the rest for what follows all values. One
        # call in a loop, so that the inlined kernel is in the code once.
        begin, stop = 0, switch_row
        for _ in range(2):
            blend_parts(p, v, v_stride, part_rows, begin, stop, head_size, out, ahead)
            begin, stop, ahead = switch_row, part_rows, ahead_after_switch
        blend_row(p, v, v_stride, 0, part_rows * PART_COUNT, count, head_size, out, 0)

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


def _make_write_probabilities(dtype: torch.dtype, in_vectors: bool) -> CompiledFunction:
    """Return the compiled function that writes one query's probabilities of its keys."""
    score = _make_score(dtype, in_vectors)

    @compiled
    def write_probabilities(job, request, head, query_index, keys, count, query, scores, values):  # type: ignore[no-untyped-def]
        """Write one query's probabilities of ``count`` keys; ``values`` is read after the keys."""
        head_size, query_head = job.head_size, head * job.group + query_index
        query_address = job.q + request * job.q_request + query_head * job.q_head
        scaled_query = carray(as_floats(query), head_size)
        _scale_query(
            carray(as_floats(query_address), head_size),
            np.float32(1 / np.sqrt(head_size)),
            scaled_query,
        )
        slope = np.float32(0)
        if job.slopes:
            slope = carray(as_floats(job.slopes), job.heads * job.group)[query_head]
        own_scores = carray(as_floats(scores), count)
        _start_scores(own_scores, slope)
        piece_count = head_size // job.piece_size
        for piece_index in range(piece_count):
            key_piece = keys + piece_index * job.k_piece
            next_address = key_piece + job.k_piece if piece_index + 1 < piece_count else values
            if query_index:  # the group's first query has fetched it
                next_address = 0
            query_piece = query + piece_index * job.piece_size * 4
            score(
                query_piece, key_piece, job.k_position, count, job.piece_size, scores, next_address
            )
        softmax(own_scores)

    return write_probabilities


def _compile(dtype: torch.dtype, in_vectors: bool) -> LoadedCode:
    """Compile the kernel: scores and softmax of each head, then the sum of its values."""
    write_probabilities = _make_write_probabilities(dtype, in_vectors)
    weighted_sum = _make_weighted_sum(dtype)

    @compiled_kernel(AttentionJob)
    def attention(jobs):  # type: ignore[no-untyped-def]
        """Serve this thread's pairs of request and KV head, one after the other."""
        job = carray(jobs, 1)[0]
        head_size, heads, group, stop = job.head_size, job.heads, job.group, job.stop
        query = take_scratch(_scratch_nbytes(head_size, group, stop))
        # A row of scores for each query of the group.
        scores, row_nbytes = query + head_size * 4, stop * 4
        first_pair, end_pair = take_share(job.requests * heads, 1)
        for pair_index in range(first_pair, end_pair):
            request, head = pair_index // heads, pair_index % heads
            start = 0
            if job.prompt_start:
                start = carray(as_integers(job.prompt_start), job.requests)[request]
            count = stop - start
            keys = job.k + request * job.k_request + head * job.k_head + start * job.k_position
            values = job.v + request * job.v_request + head * job.v_head + start * job.v_position
            # The first query brings keys to the cache of the CPU, the others find them there.
            for m in range(group):
                write_probabilities(
                    job,
                    request,
                    head,
                    m,
                    keys,
                    count,
                    query,
                    scores + m * row_nbytes,
                    values,
                )
            next_address = 0
            if pair_index + 1 < end_pair:
                # The next head's keys; if they are another request's, its padding differs a little.
                next_request, next_head = (pair_index + 1) // heads, (pair_index + 1) % heads
                next_address = job.k + next_request * job.k_request + next_head * job.k_head
                next_address += start * job.k_position
            for m in range(group):
                out = job.out + (pair_index * group + m) * head_size * 4
                weights = scores + m * row_nbytes
                weighted_sum(
                    weights, values, job.v_position, count, head_size, out, 0 if m else next_address
                )
        free_scratch(query)

    return attention
