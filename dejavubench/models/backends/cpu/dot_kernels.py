"""Sums over rows of half or single precision, in vector registers.

Types of two bytes are widened to fp32 as they are read, which is exact, or multiplied in pairs;
sums are in fp32. Addresses and distances are in bytes.

Arguments of the kernels. A distance named ``stride`` leads from one row to the next::

    dots     w [rows, n], ``stride``         the weights or keys that are read from memory
             x [columns, n], ``x_stride``    the inputs or query, in the CPU's caches
             out [columns, rows], ``out_stride`` between columns, ``after`` between rows  fp32
    blend    p [streams · part]              a factor for each row, contiguous            fp32
             v [streams · part, n], ``stride``
             out [n], contiguous                                                         fp32
    both     ``ahead``: bytes from what is read to the line that memory is asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from llvmlite import binding
from numba.extending import intrinsic

from dejavubench.machine.cpu import cpu_flags
from dejavubench.models.backends.cpu.emitter import Emitter, Value, emitting
from dejavubench.models.backends.cpu.threads import LINE_NBYTES, Compiled

AVX512, AVX512_BF16 = (name in cpu_flags() for name in ("avx512f", "avx512_bf16"))
"""Instructions that this CPU has."""

MULTIPLIES_BF16_PAIRS = AVX512_BF16 and binding.get_host_cpu_name().startswith("znver")
"""Whether bf16 is multiplied without being widened, two at a time.

AMD's CPUs do it twice as fast as they multiply fp32. An Intel Xeon did it half as fast: matmuls of
one thread reached 82 GFLOP/s in bf16, and 145 in fp32.
"""

LANES = 16 if AVX512 else 8
"""fp32 elements of a vector."""

TOTALS = 16 if AVX512 else 8
"""Sums that fit in registers beside what is read."""

STREAMS = 4
"""Rows that are read side by side; more would not fit in registers."""

AHEAD_NBYTES = 4096
"""Least distance from what is read to what memory is asked for.

1 KiB was slower, 16 KiB no faster."""

PIECES = 64 // LANES
"""Vectors of a row that :func:`blend` sums side by side: mostly one head's row."""


def sizes_text() -> str:
    """Return the sizes that kernels are built with, which depend on this CPU."""
    return f"lanes {LANES} totals {TOTALS} ahead {AHEAD_NBYTES} streams {STREAMS}"


def multiplies_pairs(dtype: torch.dtype, x_dtype: torch.dtype) -> bool:
    """Return whether this CPU adds products of pairs of such elements to fp32 sums."""
    return MULTIPLIES_BF16_PAIRS and dtype == x_dtype == torch.bfloat16


def dots(
    dtype: torch.dtype,
    rows: int,
    columns: int,
    lanes: int = LANES,
    x_dtype: torch.dtype = torch.float32,
    fetches: int | None = None,
) -> Compiled:
    """Return ``f(w, stride, x, x_stride, n, out, out_stride, after, ahead)`` for compiled code.

    It adds Σₖ w[r, k] · x[q, k], k < n, to out[q, r] for ``rows`` rows of w and ``columns`` rows
    of x. Elements of w are of ``dtype``, of x of ``x_dtype``, of out fp32. ``stride`` is the
    distance from one row to the next, ``after`` that from out[q, r] to out[q, r + 1]. Memory is
    asked for the line ``ahead`` of each line of w that is read.

    Args:
        lanes: elements of a vector.
        x_dtype: fp32, or bf16 if :func:`multiplies_pairs`.
        fetches: number of w's rows, from the first one on, that are prefetched; None: all.
    """
    paired = x_dtype != torch.float32
    assert not paired or multiplies_pairs(dtype, x_dtype)
    writes = _Dots(
        dtype=dtype,
        rows=rows,
        columns=columns,
        x_dtype=x_dtype,
        fetches=rows if fetches is None else fetches,
    )
    line = LINE_NBYTES // dtype.itemsize
    if paired:
        units = {line: 2 * LANES, 2 * LANES: 2 * LANES, LANES: LANES, 1: 1}
    else:
        units = {line: lanes, lanes: lanes, 1: 1}

    @intrinsic
    def function(typing, w, stride, x, x_stride, n, out, out_stride, after, ahead):  # type: ignore[no-untyped-def]
        return emitting(9, _emit_in_widths(4, units, writes.sums))

    return function


@dataclass(frozen=True)
class _Dots:
    """Writes the sums of :func:`dots`; ``job`` holds that function's nine arguments in order."""

    dtype: torch.dtype
    rows: int
    columns: int
    x_dtype: torch.dtype
    fetches: int

    def sums(
        self, emit: Emitter, width: int, unit: int, begin: Value, stop: Value, job: Sequence[Value]
    ) -> None:
        """Write the loop over steps of ``width`` elements, and add its totals to ``out``."""
        paired = self.x_dtype != torch.float32 and unit == 2 * LANES
        lanes = unit // 2 if paired else unit
        # Several totals for each sum: a single one would wait for its last addition. All of them
        # together must fit in registers.
        totals_each = min(max(1, TOTALS // (self.rows * self.columns)), width // unit)
        totals = {
            (q, r): [emit.variable(lanes) for _ in range(totals_each)]
            for q in range(self.columns)
            for r in range(self.rows)
        }
        w, stride, _, _, _, out, out_stride, after, ahead = job
        with emit.steps(begin, stop, width) as k:
            for r in range(self.fetches):
                emit.fetch(emit.offset(w, (stride, r), (k, self.dtype.itemsize)), ahead)
            # Totals take turns, so that additions that follow one another are independent.
            for unit_index, start in enumerate(range(0, width, unit)):
                turn = {
                    place: own_totals[unit_index % totals_each]
                    for place, own_totals in totals.items()
                }
                self._emit_products(emit, turn, k, start, lanes, paired, job)
        for (q, r), own_totals in totals.items():
            emit.add_to(
                emit.offset(out, (out_stride, q), (after, r)), emit.reduce(own_totals, lanes)
            )

    def _emit_products(
        self,
        emit: Emitter,
        totals: Mapping[tuple[int, int], Value],
        k: Value,
        start: int,
        lanes: int,
        paired: bool,
        job: Sequence[Value],
    ) -> None:
        """Write the products of one vector of each row, which begins at element ``k + start``."""
        w, stride, x, x_stride = job[:4]

        def read(base: Value, distance: Value, row: int, dtype: torch.dtype) -> Value:
            address = emit.offset(
                base, (distance, row), (k, dtype.itemsize), (dtype.itemsize, start)
            )
            return emit.words(address, lanes) if paired else emit.widen(address, dtype, lanes)

        # Rows of w are read once and kept in registers for all of x: memory limits a decode step.
        of_w = [read(w, stride, r, self.dtype) for r in range(self.rows)]
        for q in range(self.columns):
            of_x = read(x, x_stride, q, self.x_dtype)
            for r in range(self.rows):
                if paired:
                    emit.add_pairs(totals[q, r], of_w[r], of_x)
                else:
                    emit.add_product(totals[q, r], of_w[r], of_x, lanes)


def blend(dtype: torch.dtype, streams: int) -> Compiled:
    """Return ``f(p, v, stride, part, begin, stop, n, out, ahead)``, for use in compiled code.

    It adds Σₛ p[s] · v[s, d] to out[d], d < n. v is cut into ``streams`` parts of ``part`` rows;
    the sum covers the rows s = begin … stop − 1 of each part. Elements of v are of ``dtype``, of
    p and out fp32. Each read prefetches the line ``ahead`` bytes later.
    """
    units = {PIECES * LANES: LANES, LANES: LANES, 1: 1}

    def sums(
        emit: Emitter,
        width: int,
        lanes: int,
        first_element: Value,
        stop: Value,
        job: Sequence[Value],
    ) -> None:
        with emit.steps(first_element, stop, width) as d:
            piece(emit, width, lanes, d, job)

    def piece(emit: Emitter, width: int, lanes: int, d: Value, job: Sequence[Value]) -> None:
        """Write the sums of the elements d … d + width − 1 of all rows."""
        p, v, stride, part, begin, stop, _, out, ahead = job
        totals = [emit.variable(lanes) for _ in range(width // lanes)]
        with emit.steps(begin, stop, 1) as row_of_first:
            for stream in range(streams):
                s = emit.offset(row_of_first, (part, stream))
                factor = emit.spread(emit.offset(p, (s, 4)), lanes)
                row = emit.offset(v, (stride, s), (d, dtype.itemsize))
                for offset in range(0, width * dtype.itemsize, LINE_NBYTES):
                    emit.fetch(emit.offset(row, (1, offset)), ahead)
                for total_index, total in enumerate(totals):
                    address = emit.offset(row, (dtype.itemsize, total_index * lanes))
                    emit.add_product(total, factor, emit.widen(address, dtype, lanes), lanes)
        for total_index, total in enumerate(totals):
            emit.add_vector(emit.offset(out, (d, 4), (4 * lanes, total_index)), total, lanes)

    @intrinsic
    def function(typing, p, v, stride, part, begin, stop, n, out, ahead):  # type: ignore[no-untyped-def]
        return emitting(9, _emit_in_widths(6, units, sums))

    return function


def _emit_in_widths(
    length: int,
    units: Mapping[int, int],
    sums: Callable[[Emitter, int, int, Value, Value, Sequence[Value]], None],
) -> Callable[[Emitter, Sequence[Value]], None]:
    """Return the emitter of the sums in steps of each width, the rest of one width by the next.

    Args:
        length: number of the function's argument that is the count of elements.
        units: widths; of each, the elements that are read at once.
    """

    def body(emit: Emitter, job: Sequence[Value]) -> None:
        def work(width: int, begin: Value, stop: Value) -> None:
            sums(emit, width, units[width], begin, stop, job)

        emit.in_turn(job[length], list(units), work)

    return body
