"""Sums over rows of half or single precision, in vector registers.

Types of two bytes are widened to fp32 as they are read, which is exact, or multiplied in pairs;
sums are in fp32. Addresses and distances are in bytes.

Arguments of the kernels. A distance named ``…_stride`` leads from one row to the next::

    dot_products  w [rows, n], ``w_stride``       the weights or keys that are read from memory
                  x [columns, n], ``x_stride``    the inputs or query, in the CPU's caches
                  out [columns, rows], ``out_stride`` between columns, ``out_step`` between
                  rows                                                                     fp32
    blend         p [part_count · part_rows]      a factor for each row, contiguous        fp32
                  v [part_count · part_rows, n], ``v_stride``
                  out [n], contiguous                                                     fp32
    both          ``ahead``: bytes from what is read to the line that memory is asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from llvmlite import binding
from numba.extending import intrinsic

from dejavubench.machine.cpu import read_cpu_flags
from dejavubench.models.backends.cpu.emitter import Emitter, Value, make_intrinsic
from dejavubench.models.backends.cpu.threads import LINE_NBYTES, CompiledFunction

AVX512, AVX512_BF16 = (name in read_cpu_flags() for name in ("avx512f", "avx512_bf16"))
"""Instructions that this CPU has."""

MULTIPLIES_BF16_PAIRS = AVX512_BF16 and binding.get_host_cpu_name().startswith("znver")
"""Whether bf16 is multiplied without being widened, two at a time.

AMD's CPUs do it twice as fast as they multiply fp32. An Intel Xeon did it half as fast: matmuls of
one thread reached 82 GFLOP/s in bf16, and 145 in fp32.
"""

LANES = 16 if AVX512 else 8
"""fp32 elements of a vector."""

MOST_TOTALS = 16 if AVX512 else 8
"""Sums that fit in registers beside what is read."""

PART_COUNT = 4
"""Parts of the rows, of which one row each is read at once; more would not fit in registers."""

AHEAD_NBYTES = 4096
"""Least distance from what is read to what memory is asked for.

1 KiB was slower, 16 KiB no faster."""

BLENDED_VECTOR_COUNT = 64 // LANES
"""Vectors of a row that :func:`make_blend` sums side by side: mostly one head's row."""


def format_sizes() -> str:
    """Return the sizes that kernels are built with, which depend on this CPU."""
    return f"lanes {LANES} totals {MOST_TOTALS} ahead {AHEAD_NBYTES} parts {PART_COUNT}"


def multiplies_pairs(dtype: torch.dtype, x_dtype: torch.dtype) -> bool:
    """Return whether this CPU adds products of pairs of such elements to fp32 sums."""
    return MULTIPLIES_BF16_PAIRS and dtype == x_dtype == torch.bfloat16


def make_dots(
    dtype: torch.dtype,
    w_row_count: int,
    x_row_count: int,
    lanes: int = LANES,
    x_dtype: torch.dtype = torch.float32,
    prefetched_row_count: int | None = None,
) -> CompiledFunction:
    """Return ``f(w, w_stride, x, x_stride, n, out, out_stride, out_step, ahead)``, compiled.

    It adds Σₖ w[r, k] · x[q, k], k < n, to out[q, r] for some rows of w and of x. Elements of w are
    of ``dtype``, of x of ``x_dtype``, of out fp32. ``w_stride`` is the distance from one row to the
    next, ``out_step`` that from out[q, r] to out[q, r + 1]. Memory is asked for the line ``ahead``
    of each line of w that is read.

    Args:
        lanes: elements of a vector.
        x_dtype: fp32, or bf16 if :func:`multiplies_pairs`.
        prefetched_row_count: number of w's rows, from the first one on, that are prefetched;
            None: all.
    """
    in_pairs = x_dtype != torch.float32
    assert not in_pairs or multiplies_pairs(dtype, x_dtype)
    dots_writer = _DotsWriter(
        dtype=dtype,
        w_row_count=w_row_count,
        x_row_count=x_row_count,
        x_dtype=x_dtype,
        prefetched_row_count=w_row_count if prefetched_row_count is None else prefetched_row_count,
    )
    line_elements = LINE_NBYTES // dtype.itemsize
    if in_pairs:
        unit_of_width = {line_elements: 2 * LANES, 2 * LANES: 2 * LANES, LANES: LANES, 1: 1}
    else:
        unit_of_width = {line_elements: lanes, lanes: lanes, 1: 1}

    @intrinsic
    def dot_products(typing, w, w_stride, x, x_stride, n, out, out_stride, out_step, ahead):  # type: ignore[no-untyped-def]
        return make_intrinsic(9, _write_in_widths(4, unit_of_width, dots_writer.write_sums))

    return dot_products


@dataclass(frozen=True)
class _DotsWriter:
    """Writes the sums of :func:`make_dots`; ``arguments`` are the nine of ``dot_products``."""

    dtype: torch.dtype
    w_row_count: int
    x_row_count: int
    x_dtype: torch.dtype
    prefetched_row_count: int

    def write_sums(
        self,
        emit: Emitter,
        width: int,
        unit: int,
        begin: Value,
        stop: Value,
        arguments: Sequence[Value],
    ) -> None:
        """Write the loop over steps of ``width`` elements, and add its totals to ``out``."""
        in_pairs = self.x_dtype != torch.float32 and unit == 2 * LANES
        lanes = unit // 2 if in_pairs else unit
        # Several totals for each sum: a single one would wait for its last addition. All of them
        # together must fit in registers.
        totals_per_sum = min(
            max(1, MOST_TOTALS // (self.w_row_count * self.x_row_count)), width // unit
        )
        totals = {
            (q, r): [emit.make_total(lanes) for _ in range(totals_per_sum)]
            for q in range(self.x_row_count)
            for r in range(self.w_row_count)
        }
        w, w_stride, _, _, _, out, out_stride, out_step, ahead = arguments
        with emit.loop(begin, stop, width) as k:
            for r in range(self.prefetched_row_count):
                emit.prefetch(emit.add_offsets(w, (w_stride, r), (k, self.dtype.itemsize)), ahead)
            # Totals take turns, so that additions that follow one another are independent.
            for unit_index, start in enumerate(range(0, width, unit)):
                turn_totals = {
                    sum_index: own_totals[unit_index % totals_per_sum]
                    for sum_index, own_totals in totals.items()
                }
                self._write_products(emit, turn_totals, k, start, lanes, in_pairs, arguments)
        for (q, r), own_totals in totals.items():
            emit.add_to_memory(
                emit.add_offsets(out, (out_stride, q), (out_step, r)),
                emit.sum_lanes(own_totals, lanes),
            )

    def _write_products(
        self,
        emit: Emitter,
        totals: Mapping[tuple[int, int], Value],
        k: Value,
        start: int,
        lanes: int,
        in_pairs: bool,
        arguments: Sequence[Value],
    ) -> None:
        """Write the products of one vector of each row, which begins at element ``k + start``."""
        w, w_stride, x, x_stride = arguments[:4]

        def read(base: Value, distance: Value, row: int, dtype: torch.dtype) -> Value:
            address = emit.add_offsets(
                base, (distance, row), (k, dtype.itemsize), (dtype.itemsize, start)
            )
            return (
                emit.load_pairs(address, lanes)
                if in_pairs
                else emit.load_widened(address, dtype, lanes)
            )

        # Rows of w are read once and kept in registers for all of x: memory limits a decode step.
        w_vectors = [read(w, w_stride, r, self.dtype) for r in range(self.w_row_count)]
        for q in range(self.x_row_count):
            x_vector = read(x, x_stride, q, self.x_dtype)
            for r in range(self.w_row_count):
                if in_pairs:
                    emit.add_pair_products(totals[q, r], w_vectors[r], x_vector)
                else:
                    emit.add_product(totals[q, r], w_vectors[r], x_vector, lanes)


def make_blend(dtype: torch.dtype, part_count: int) -> CompiledFunction:
    """Return ``f(p, v, v_stride, part_rows, begin, stop, n, out, ahead)``, for compiled code.

    It adds Σₛ p[s] · v[s, d] to out[d], d < n. v is cut into ``part_count`` parts of ``part_rows``
    rows; the sum covers the rows s = begin … stop − 1 of each part. Elements of v are of ``dtype``,
    of p and out fp32. Each read prefetches the line ``ahead`` bytes later.
    """
    unit_of_width = {BLENDED_VECTOR_COUNT * LANES: LANES, LANES: LANES, 1: 1}

    def write_sums(
        emit: Emitter,
        width: int,
        lanes: int,
        first_element: Value,
        stop: Value,
        arguments: Sequence[Value],
    ) -> None:
        with emit.loop(first_element, stop, width) as d:
            write_piece(emit, width, lanes, d, arguments)

    def write_piece(
        emit: Emitter, width: int, lanes: int, d: Value, arguments: Sequence[Value]
    ) -> None:
        """Write the sums of the elements d … d + width − 1 of all rows."""
        p, v, v_stride, part_rows, begin, stop, _, out, ahead = arguments
        totals = [emit.make_total(lanes) for _ in range(width // lanes)]
        with emit.loop(begin, stop, 1) as first_part_row:
            for part in range(part_count):
                s = emit.add_offsets(first_part_row, (part_rows, part))
                factor = emit.load_spread(emit.add_offsets(p, (s, 4)), lanes)
                row_address = emit.add_offsets(v, (v_stride, s), (d, dtype.itemsize))
                for offset in range(0, width * dtype.itemsize, LINE_NBYTES):
                    emit.prefetch(emit.add_offsets(row_address, (1, offset)), ahead)
                for total_index, total in enumerate(totals):
                    address = emit.add_offsets(row_address, (dtype.itemsize, total_index * lanes))
                    emit.add_product(total, factor, emit.load_widened(address, dtype, lanes), lanes)
        for total_index, total in enumerate(totals):
            emit.add_vector_to_memory(
                emit.add_offsets(out, (d, 4), (4 * lanes, total_index)), total, lanes
            )

    @intrinsic
    def blend(typing, p, v, v_stride, part_rows, begin, stop, n, out, ahead):  # type: ignore[no-untyped-def]
        return make_intrinsic(9, _write_in_widths(6, unit_of_width, write_sums))

    return blend


def _write_in_widths(
    count_argument: int,
    unit_of_width: Mapping[int, int],
    write_sums: Callable[[Emitter, int, int, Value, Value, Sequence[Value]], None],
) -> Callable[[Emitter, Sequence[Value]], None]:
    """Return the emitter of the sums in steps of each width, the rest of one width by the next.

    Args:
        count_argument: number of the function's argument that is the count of elements.
        unit_of_width: widths; of each, the elements that are read at once.
    """

    def write_body(emit: Emitter, arguments: Sequence[Value]) -> None:
        def write_steps(width: int, begin: Value, stop: Value) -> None:
            write_sums(emit, width, unit_of_width[width], begin, stop, arguments)

        emit.cut_into_widths(arguments[count_argument], list(unit_of_width), write_steps)

    return write_body
