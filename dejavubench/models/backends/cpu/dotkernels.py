"""Sums over rows of half or single precision, in vector registers: what :mod:`.cpu_step` is made of.

They are written in LLVM's own language, because a plain loop is not enough: the compiler would neither fetch what comes
next from memory while it computes, nor keep several rows' sums in registers, nor use the whole width of AVX-512.

Addresses and distances are in bytes, as integers; nothing is checked. Types of two bytes are widened to fp32 as they
are read, which is exact, or multiplied in :func:`pairs`; sums are fp32. What writes them is :mod:`.cpu_amx`'s, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dejavubench.machine.hardware import cpu_flags
from dejavubench.models.backends.cpu.threads import compiled

BYTE, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()

AVX512, AVX512_BF16 = (name in cpu_flags() for name in ("avx512f", "avx512_bf16"))

PAIRS = AVX512_BF16 and binding.get_host_cpu_name().startswith("znver")
"""Whether bf16 is multiplied without being widened first, two at a time: AMD's CPUs do it twice as fast as they
multiply fp32, an Intel Xeon half as fast (82 GFLOP/s of bf16 and 145 of fp32, matmuls of one thread)."""

LANES = 16 if AVX512 else 8
"""fp32 elements of a vector."""

TOTALS = 16 if AVX512 else 8
"""Sums that fit in registers beside what is read."""

PIECES = 64 // LANES
"""Vectors of a row that :func:`blend` sums side by side: one head's row, mostly."""

LINE = 64
"""Bytes that memory is fetched by."""

Value = Any
"""A value of llvmlite's, which has no types of its own to check by."""


def as_pointer(kind: Any) -> Any:
    """What makes of an integer the address of such elements."""

    def emit(context: Any, builder: Any, signature: Any, values: Sequence[Value]) -> Value:
        return builder.inttoptr(values[0], kind.as_pointer())

    return emit


def folds(dtype: torch.dtype) -> bool:
    """Whether vectors that meet those of ``dtype`` should be folded.

    Of bf16 a register of 32-bit words holds two vectors: one by a shift, of the even elements, one by a mask, of the
    odd ones. That is half of the instructions of widening neighbours; what they are multiplied with has to lie so, too:
    folded, each block's even elements before its odd ones. Blocks are of 2 · LANES elements, of what is left one of
    LANES, and the rest stays as it is.
    """
    return dtype == torch.bfloat16


@compiled
def fold(x, into):  # type: ignore[no-untyped-def]
    """One fp32 vector, in the order of :func:`folds`."""
    done = 0
    while len(x) - done >= 2 * LANES:
        for i in range(LANES):
            into[done + i], into[done + LANES + i] = x[done + 2 * i], x[done + 2 * i + 1]
        done += 2 * LANES
    if len(x) - done >= LANES:
        for i in range(LANES // 2):
            into[done + i], into[done + LANES // 2 + i] = x[done + 2 * i], x[done + 2 * i + 1]
        done += LANES
    for i in range(done, len(x)):
        into[i] = x[i]


@compiled
def unfold(x, into):  # type: ignore[no-untyped-def]
    """What :func:`fold` made, as it was."""
    done = 0
    while len(x) - done >= 2 * LANES:
        for i in range(LANES):
            into[done + 2 * i], into[done + 2 * i + 1] = x[done + i], x[done + LANES + i]
        done += 2 * LANES
    if len(x) - done >= LANES:
        for i in range(LANES // 2):
            into[done + 2 * i], into[done + 2 * i + 1] = x[done + i], x[done + LANES // 2 + i]
        done += LANES
    for i in range(done, len(x)):
        into[i] = x[i]


def pairs(dtype: torch.dtype, of_x: torch.dtype) -> bool:
    """Whether this CPU adds products of pairs of such elements, as they are, to fp32 sums."""
    return PAIRS and dtype == of_x == torch.bfloat16


def dots(
    dtype: torch.dtype,
    rows: int,
    columns: int,
    lanes: int = LANES,
    folded: bool = False,
    of_x: torch.dtype = torch.float32,
    fetches: int | None = None,
) -> Any:
    """Products of rows: ``f(w, apart, x, x_apart, n, out, out_apart, after, ahead)``, for use in compiled code.

    Adds Σₖ w[r, k] · x[q, k], k < n, to out[q, r] for the ``rows`` of w and the ``columns`` rows of x. w has elements
    of ``dtype``, x those of ``of_x``, out of fp32; ``apart`` is from one row to the next, ``after`` from out[q, r] to
    out[q, r + 1]. Memory is asked for the line ``ahead`` of each that is read of w.

    Args:
        lanes: elements of a vector, where x is not folded.
        of_x: fp32, or where :func:`pairs` are added bf16.
        fetches: so many of w's rows, the first ones, are what memory is asked ahead of; all of them, unless given.
    """
    paired = of_x != torch.float32
    assert not paired or pairs(dtype, of_x)
    apiece = max(
        1, TOTALS // (rows * columns)
    )  # totals for each sum: one alone would wait for its last addition

    def sums(
        emit: Emitter, width: int, unit: int, begin: Value, stop: Value, job: Sequence[Value]
    ) -> None:
        w, apart, x, x_apart, _, out, out_apart, after, ahead = job
        halves, in_pairs = folded and unit > 1, paired and unit == 2 * LANES
        vector = unit // 2 if halves or in_pairs else unit
        count = min(apiece, width // unit if in_pairs else width // vector)
        totals = {
            (q, r): [emit.variable(vector) for _ in range(count)]
            for q in range(columns)
            for r in range(rows)
        }
        with emit.steps(begin, stop, width) as k:
            for r in range(rows if fetches is None else fetches):
                emit.fetch(emit.at(w, (apart, r), (k, dtype.itemsize)), ahead)
            for start in range(0, width, unit):
                at = [
                    emit.at(w, (apart, r), (k, dtype.itemsize), (dtype.itemsize, start))
                    for r in range(rows)
                ]
                if in_pairs:
                    words = [emit.words(each, vector) for each in at]
                    for q in range(columns):
                        with_x = emit.words(emit.at(x, (x_apart, q), (k, 2), (2, start)), vector)
                        for r in range(rows):
                            emit.add_pairs(totals[q, r][start // unit % count], words[r], with_x)
                    continue
                read = [
                    emit.both(each, vector) if halves else [emit.widened(each, dtype, vector)]
                    for each in at
                ]
                for half in range(unit // vector):
                    for q in range(columns):
                        at_x = emit.at(
                            x,
                            (x_apart, q),
                            (k, of_x.itemsize),
                            (of_x.itemsize, start + half * vector),
                        )
                        with_x = emit.widened(at_x, of_x, vector)
                        for r in range(rows):
                            total = totals[q, r][(start // vector + half) % count]
                            emit.add_product(total, read[r][half], with_x, vector)
        for (q, r), mine in totals.items():
            emit.add_to(emit.at(out, (out_apart, q), (after, r)), emit.reduced(mine, vector))

    line = LINE // dtype.itemsize
    if folded or paired:
        units = {line: 2 * LANES, 2 * LANES: 2 * LANES, LANES: LANES, 1: 1}
    else:
        units = {line: lanes, lanes: lanes, 1: 1}

    def body(emit: Emitter, job: Sequence[Value]) -> None:
        def span(width: int, begin: Value, stop: Value) -> None:
            sums(emit, width, units[width], begin, stop, job)

        emit.in_turn(job[4], list(units), span)

    @intrinsic
    def function(typing, w, apart, x, x_apart, n, out, out_apart, after, ahead):  # type: ignore[no-untyped-def]
        return emitting(9, body)

    return function


def blend(dtype: torch.dtype, streams: int) -> Any:
    """A sum of rows, each with a factor: ``f(p, v, apart, part, begin, stop, n, out, ahead)``, for compiled code.

    Adds Σₛ p[s] · v[s, d] to out[d], d < n, over the rows s = begin … stop − 1 of v, those ``part`` beyond, twice that
    far and so on, ``streams`` times; out is folded where v's type :func:`folds`. v has elements of ``dtype``, p and out
    of fp32. Memory is asked for the lines ``ahead`` of those that are read of v.
    """

    def sums(emit: Emitter, width: int, unit: int, d: Value, job: Sequence[Value]) -> None:
        p, v, apart, part, begin, stop, _, out, ahead = job
        halves = folds(dtype) and unit > 1
        vector = unit // 2 if halves else unit
        totals = [emit.variable(vector) for _ in range(width // vector)]
        with emit.steps(begin, stop, 1) as first:
            for stream in range(streams):
                s = emit.at(first, (part, stream))
                factor = emit.spread(emit.at(p, (s, 4)), vector)
                row = emit.at(v, (apart, s), (d, dtype.itemsize))
                for offset in range(0, width * dtype.itemsize, LINE):
                    emit.fetch(emit.at(row, (1, offset)), ahead)
                read: list[Value] = []
                for start in range(0, width, unit):
                    at = emit.at(row, (dtype.itemsize, start))
                    read += emit.both(at, vector) if halves else [emit.widened(at, dtype, vector)]
                for total, values in zip(totals, read, strict=True):
                    emit.add_product(total, factor, values, vector)
        for number, total in enumerate(totals):
            emit.add_vector(emit.at(out, (d, 4), (4 * vector, number)), total, vector)

    whole = 2 * LANES if folds(dtype) else LANES
    units = {PIECES * LANES: whole, whole: whole, LANES: LANES, 1: 1}

    def body(emit: Emitter, job: Sequence[Value]) -> None:
        def span(width: int, begin: Value, stop: Value) -> None:
            with emit.steps(begin, stop, width) as d:
                sums(emit, width, units[width], d, job)

        emit.in_turn(job[6], list(units), span)

    @intrinsic
    def function(typing, p, v, apart, part, begin, stop, n, out, ahead):  # type: ignore[no-untyped-def]
        return emitting(9, body)

    return function


def emitting(arguments: int, body: Callable[[Emitter, Sequence[Value]], None]) -> Any:
    """What numba asks of an intrinsic: its signature, of so many integers, and what writes it into its caller."""

    def emit(context: Any, builder: Any, signature: Any, values: Sequence[Value]) -> Value:
        body(Emitter(builder), values)
        return context.get_dummy_value()

    return types.void(*[types.intp] * arguments), emit


class Emitter:
    """Writes the instructions of one function."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def at(self, base: Value, *steps: tuple[Value | int, Value | int]) -> Value:
        """``base`` and the products of the pairs."""
        for step in steps:
            one, other = (INT64(each) if isinstance(each, int) else each for each in step)
            base = self._builder.add(base, self._builder.mul(one, other))
        return base

    @contextmanager
    def steps(self, begin: Value, stop: Value, by: int) -> Iterator[Value]:
        with cgutils.for_range_slice(self._builder, begin, stop, INT64(by)) as (index, _):
            yield index

    def in_turn(
        self, n: Value, widths: Sequence[int], work: Callable[[int, Value, Value], None]
    ) -> None:
        """[0, n) in as many steps of the first width as it has, what is left of it in those of the next, and so on."""
        begin: Value = INT64(0)
        for width in widths:
            left = self._builder.sub(n, begin)
            stop = self._builder.add(
                begin, self._builder.sub(left, self._builder.urem(left, INT64(width)))
            )
            with self._builder.if_then(self._builder.icmp_signed("<", begin, stop)):
                work(width, begin, stop)
            begin = stop

    def half(self, of: Value) -> Value:
        return self._builder.lshr(of, INT64(1))

    def pointer(self, at: Value, to: Any) -> Value:
        return self._builder.inttoptr(at, to.as_pointer())

    def call(self, name: str, *values: Value) -> None:
        """An instruction of this CPU's, by LLVM's name, that returns nothing."""
        declared = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self._builder.call(
            cgutils.get_or_insert_function(self._builder.module, declared, name), values
        )

    def fetch(self, at: Value, ahead: Value) -> None:
        pointer = self.pointer(self._builder.add(at, ahead), BYTE)
        # to read, data; into the second cache, for the first one has no room beside x
        self.call("llvm.prefetch.p0", pointer, INT32(0), INT32(2), INT32(1))

    def widened(self, at: Value, dtype: torch.dtype, lanes: int) -> Value:
        read = {torch.float32: FLOAT, torch.bfloat16: INT16, torch.float16: HALF}[dtype]
        pointer = self.pointer(at, ir.VectorType(read, lanes))
        value = self._builder.load(pointer, align=dtype.itemsize)
        if read is HALF:
            return self._builder.fpext(value, ir.VectorType(FLOAT, lanes))
        if read is INT16:  # bf16 is the upper half of fp32
            words = ir.VectorType(INT32, lanes)
            value = self._builder.shl(
                self._builder.zext(value, words), ir.Constant(words, [16] * lanes)
            )
        return self._builder.bitcast(value, ir.VectorType(FLOAT, lanes))

    def words(self, at: Value, lanes: int) -> Value:
        """Twice as many bf16, two in a word."""
        pointer = self.pointer(at, ir.VectorType(INT32, lanes))
        return self._builder.load(pointer, align=2)

    def both(self, at: Value, lanes: int) -> list[Value]:
        """The even and the odd ones of twice as many bf16."""
        words, value = ir.VectorType(INT32, lanes), self.words(at, lanes)
        even = self._builder.shl(value, ir.Constant(words, [16] * lanes))
        odd = self._builder.and_(value, ir.Constant(words, [0xFFFF0000] * lanes))
        return [self._builder.bitcast(each, ir.VectorType(FLOAT, lanes)) for each in (even, odd)]

    def spread(self, at: Value, lanes: int) -> Value:
        """One fp32 in every lane."""
        value = self._builder.load(self.pointer(at, FLOAT))
        vector = ir.VectorType(FLOAT, lanes)
        first = self._builder.insert_element(ir.Constant(vector, ir.Undefined), value, INT32(0))
        mask = ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes)
        return self._builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)

    def variable(self, lanes: int) -> Value:
        """A vector of zeros, in a register once the compiler is done."""
        vector = ir.VectorType(FLOAT, lanes)
        slot = cgutils.alloca_once(self._builder, vector)
        self._builder.store(ir.Constant(vector, [0.0] * lanes), slot)
        return slot

    def add_product(self, total: Value, one: Value, other: Value, lanes: int) -> None:
        vector = ir.VectorType(FLOAT, lanes)
        function = self._declared("llvm.fmuladd", vector, [vector] * 3, lanes)
        self._builder.store(
            self._builder.call(function, [one, other, self._builder.load(total)]), total
        )

    def add_pairs(self, total: Value, one: Value, other: Value) -> None:
        """AVX512-BF16's: to each fp32 of ``total`` the sum of two products of bf16."""
        vector, words = ir.VectorType(FLOAT, 16), ir.VectorType(INT32, 16)
        function = ir.FunctionType(vector, [vector, words, words])
        add = cgutils.get_or_insert_function(
            self._builder.module, function, "llvm.x86.avx512bf16.dpbf16ps.512"
        )
        self._builder.store(self._builder.call(add, [self._builder.load(total), one, other]), total)

    def reduced(self, totals: Sequence[Value], lanes: int) -> Value:
        """The sum of all lanes of all totals."""
        first, *others = (self._builder.load(total) for total in totals)
        for other in others:
            first = self._builder.fadd(first, other)
        function = self._declared(
            "llvm.vector.reduce.fadd", FLOAT, [FLOAT, ir.VectorType(FLOAT, lanes)], lanes
        )
        return self._builder.call(function, [FLOAT(0.0), first], fastmath=("reassoc",))

    def add_to(self, at: Value, value: Value) -> None:
        pointer = self.pointer(at, FLOAT)
        self._builder.store(self._builder.fadd(self._builder.load(pointer), value), pointer)

    def add_vector(self, at: Value, total: Value, lanes: int) -> None:
        pointer = self.pointer(at, ir.VectorType(FLOAT, lanes))
        sum_of_both = self._builder.fadd(
            self._builder.load(pointer, align=4), self._builder.load(total)
        )
        self._builder.store(sum_of_both, pointer, align=4)

    def _declared(self, name: str, result: Value, given: Sequence[Value], lanes: int) -> Value:
        function = ir.FunctionType(result, given)
        return cgutils.get_or_insert_function(self._builder.module, function, f"{name}.v{lanes}f32")
