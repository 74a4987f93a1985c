"""Norm and rotary embedding of queries and keys by one Triton kernel; see :mod:`.launch`.

Letters in shapes: B requests, n new positions, H heads of queries, G of keys and values, D elements
of a head. The kernel serves steps of any number of positions: plain torch takes seven kernels for
the rotation alone, each of which reads and writes all heads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dejavubench.models.backends.cuda.launch import can_overlap
from dejavubench.models.backends.protocol import Angles, HeadNorms

HEADS_PER_BLOCK = 8
"""Heads of one position that a block of threads turns."""


@triton.jit(do_not_specialize=["first_position"])
def _norm_and_rotate(  # type: ignore[no-untyped-def]
    q, k, out, query_weight, key_weight, table, position_at, first_position,
    positions, query_heads, heads, sine_offset, eps,
    q_b, q_h, q_n, k_b, k_h, k_n,
    size: tl.constexpr, padded_half: tl.constexpr, block: tl.constexpr, has_norms: tl.constexpr,
):  # fmt: skip
    """Norm and turn ``block`` heads of one request's position; ``heads`` counts H + G."""
    half: tl.constexpr = size // 2
    row = tl.program_id(0).to(tl.int64)
    request, position_index = row // positions, row % positions
    head = tl.program_id(1) * block + tl.arange(0, block)
    is_query = head < query_heads
    elements = tl.arange(0, padded_half)[None, :]
    mask = (head < heads)[:, None] & (elements < half)
    gdc_launch_dependents()
    # Table, weights and position are written by no kernel of a step: they are read before the wait.
    position = position_index + (
        tl.load(position_at) if position_at is not None else first_position
    )
    cosine_pointers = table + position * size + elements
    cosine = tl.load(cosine_pointers, mask=elements < half, other=0.0).to(tl.float32)
    sine = tl.load(cosine_pointers + sine_offset, mask=elements < half, other=0.0).to(tl.float32)
    gdc_wait()

    query = q + request * q_b + position_index * q_n + head * q_h
    key = k + request * k_b + position_index * k_n + (head - query_heads) * k_h
    pointers = tl.where(is_query, query, key)[:, None] + elements
    first_half = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    second_half = tl.load(pointers + half, mask=mask, other=0.0).to(tl.float32)
    if has_norms:
        mean_square = tl.sum(first_half * first_half + second_half * second_half, 1) / size
        weights = tl.where(is_query, query_weight, key_weight)[:, None] + elements
        inverse_root = tl.rsqrt(mean_square + eps)[:, None]
        first_half = (
            first_half * inverse_root * tl.load(weights, mask=mask, other=0.0).to(tl.float32)
        )
        second_half = (
            second_half
            * inverse_root
            * tl.load(weights + half, mask=mask, other=0.0).to(tl.float32)
        )
    results = out + (row * heads + head)[:, None] * size + elements
    dtype = out.dtype.element_ty
    tl.store(results, (first_half * cosine - second_half * sine).to(dtype), mask=mask)
    tl.store(results + half, (second_half * cosine + first_half * sine).to(dtype), mask=mask)


def norm_and_rotate(
    q: Tensor, k: Tensor, norms: HeadNorms | None, angles: Angles
) -> tuple[Tensor, Tensor]:
    """Return queries and keys normed and turned, computed in fp32 and rounded once.

    Args:
        q: [B, H, n, D], any view whose heads are contiguous.
        k: [B, G, n, D], likewise.
        angles: of the type of q and k.

    Returns:
        Views of one new tensor [B, n, H + G, D].
    """
    requests, query_heads, positions, size = q.shape
    heads = query_heads + k.shape[1]
    out = q.new_empty(requests, positions, heads, size)
    is_on_device = isinstance(angles.position, Tensor)
    _norm_and_rotate[(requests * positions, triton.cdiv(heads, HEADS_PER_BLOCK))](
        q, k, out,
        None if norms is None else norms.query_weight,
        None if norms is None else norms.key_weight,
        angles.table,
        angles.position if is_on_device else None,
        0 if is_on_device else angles.position,
        positions, query_heads, heads, angles.table.stride(0), 0.0 if norms is None else norms.eps,
        q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
        size, triton.next_power_of_2(size // 2), HEADS_PER_BLOCK, norms is not None,
        num_warps=4, launch_pdl=can_overlap(q.device),
    )  # fmt: skip
    rotated_q, rotated_k = out.transpose(1, 2).split_with_sizes((query_heads, k.shape[1]), dim=1)
    return rotated_q, rotated_k
