"""Writing instructions into compiled code, in LLVM's own language.

A plain loop is not enough for the sums that kernels are made of. The compiler would neither fetch
what comes next from memory while it computes, nor keep several rows' sums in registers, nor use the
whole width of AVX-512.

Addresses and distances are in bytes, as integers; nothing is checked.

Methods of :class:`Emitter` write instructions when they are called and compute nothing: a
:data:`Value` stands for a register of the code to come. A Python loop around them unrolls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.typing import Signature

BYTE, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
"""LLVM's types."""

Value: TypeAlias = ir.Value
"""A value of llvmlite's, which has no types of its own to check by."""


CodeGenerator = Callable[[BaseContext, ir.IRBuilder, Signature, Sequence[Value]], Value]
"""The code generator of an intrinsic, as numba calls it."""


def make_pointer_cast(pointed_type: ir.Type) -> CodeGenerator:
    """Return the code generator that turns an integer into the address of such elements."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, values: Sequence[Value]
    ) -> Value:
        return builder.inttoptr(values[0], pointed_type.as_pointer())

    return emit


def make_intrinsic(
    argument_count: int, write_body: Callable[[Emitter, Sequence[Value]], None]
) -> tuple[Signature, CodeGenerator]:
    """Return the signature and the code generator of an intrinsic, as numba asks for them.

    Args:
        argument_count: number of integers that the intrinsic takes.
        write_body: writes the instructions, given the arguments.
    """

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, values: Sequence[Value]
    ) -> Value:
        write_body(Emitter(builder), values)
        return context.get_dummy_value()

    return types.void(*[types.intp] * argument_count), emit


class Emitter:
    """Writes the instructions of one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder = builder

    # ---- addresses and loops ----

    def add_offsets(self, base: Value, *distances: tuple[Value | int, Value | int]) -> Value:
        """Return ``base`` plus the product of each pair."""
        address = base
        for distance_of_count in distances:
            # LLVM folds products of constants, so unrolled offsets cost no instruction.
            count, distance = (
                INT64(term) if isinstance(term, int) else term for term in distance_of_count
            )
            address = self._builder.add(address, self._builder.mul(count, distance))
        return address

    def halve(self, value: Value) -> Value:
        """Return half of a value that is not negative, rounded down."""
        return self._builder.lshr(value, INT64(1))

    def typed_pointer(self, address: Value, element: ir.Type) -> Value:
        """Return an address as a pointer to an ``element``."""
        return self._builder.inttoptr(address, element.as_pointer())

    @contextmanager
    def loop(self, begin: Value, stop: Value, width: int) -> Iterator[Value]:
        """Write ``for index in range(begin, stop, width)`` around what is written inside."""
        with cgutils.for_range_slice(self._builder, begin, stop, INT64(width)) as (index, _):
            yield index

    def cut_into_widths(
        self, count: Value, widths: Sequence[int], write_steps: Callable[[int, Value, Value], None]
    ) -> None:
        """Cut [0, count) into as many steps of the first width as fit, the rest by the next width.

        Args:
            write_steps: writes the steps of one width, given width, begin and stop.
        """
        begin: Value = INT64(0)
        for width in widths:
            count_left = self._builder.sub(count, begin)
            # Rounded down to whole steps; what is left over is the next width's.
            whole_steps = self._builder.sub(
                count_left, self._builder.urem(count_left, INT64(width))
            )
            stop = self._builder.add(begin, whole_steps)
            with self._builder.if_then(self._builder.icmp_signed("<", begin, stop)):
                write_steps(width, begin, stop)
            begin = stop

    # ---- instructions ----

    def call(self, name: str, *values: Value) -> None:
        """Call an instruction of this CPU that returns nothing, by LLVM's name."""
        function_type = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self._builder.call(
            cgutils.get_or_insert_function(self._builder.module, function_type, name), values
        )

    def prefetch(self, address: Value, ahead: Value) -> None:
        """Ask memory for the line that lies ``ahead`` bytes on."""
        pointer = self.typed_pointer(self._builder.add(address, ahead), BYTE)
        # The arguments say: to read (0), into the second-level cache (2), data (1). The first level
        # has no room beside x.
        self.call("llvm.prefetch.p0", pointer, INT32(0), INT32(2), INT32(1))

    def load_widened(self, address: Value, dtype: torch.dtype, lanes: int) -> Value:
        """Read neighbouring elements of ``dtype`` as a vector of fp32, which is exact."""
        read_type = {torch.float32: FLOAT, torch.bfloat16: INT16, torch.float16: HALF}[dtype]
        pointer = self.typed_pointer(address, ir.VectorType(read_type, lanes))
        # Rows of a cache begin anywhere: without ``align`` LLVM would assume a whole vector's.
        value = self._builder.load(pointer, align=dtype.itemsize)
        if read_type is HALF:
            return self._builder.fpext(value, ir.VectorType(FLOAT, lanes))
        if read_type is INT16:  # bf16 is the upper half of fp32
            word_type = ir.VectorType(INT32, lanes)
            shifts = ir.Constant(word_type, [16] * lanes)
            value = self._builder.shl(self._builder.zext(value, word_type), shifts)
        return self._builder.bitcast(value, ir.VectorType(FLOAT, lanes))

    def load_pairs(self, address: Value, lanes: int) -> Value:
        """Read twice as many neighbouring bf16, two in a word."""
        return self._builder.load(self.typed_pointer(address, ir.VectorType(INT32, lanes)), align=2)

    def load_spread(self, address: Value, lanes: int) -> Value:
        """Read one fp32 into every lane."""
        value = self._builder.load(self.typed_pointer(address, FLOAT))
        vector_type = ir.VectorType(FLOAT, lanes)
        one_lane = self._builder.insert_element(
            ir.Constant(vector_type, ir.Undefined), value, INT32(0)
        )
        first_lanes = ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes)
        return self._builder.shuffle_vector(
            one_lane, ir.Constant(vector_type, ir.Undefined), first_lanes
        )

    # ---- sums ----

    def make_total(self, lanes: int) -> Value:
        """Return a vector of zeros, which the compiler keeps in a register."""
        vector_type = ir.VectorType(FLOAT, lanes)
        # In the function's entry block, whence LLVM promotes it to a register.
        total = cgutils.alloca_once(self._builder, vector_type)
        self._builder.store(ir.Constant(vector_type, [0.0] * lanes), total)
        return total

    def add_product(self, total: Value, factor: Value, other_factor: Value, lanes: int) -> None:
        """Add the product of two vectors, ``lanes`` floats each, to the vector at ``total``."""
        vector_type = ir.VectorType(FLOAT, lanes)
        function = self._declare("llvm.fmuladd", vector_type, [vector_type] * 3, lanes)
        product = self._builder.call(function, [factor, other_factor, self._builder.load(total)])
        self._builder.store(product, total)

    def add_pair_products(self, total: Value, pairs: Value, other_pairs: Value) -> None:
        """Add to each fp32 of ``total`` the sum of two products of bf16, by AVX512-BF16."""
        vector_type, word_type = ir.VectorType(FLOAT, 16), ir.VectorType(INT32, 16)
        add_instruction = cgutils.get_or_insert_function(
            self._builder.module,
            ir.FunctionType(vector_type, [vector_type, word_type, word_type]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        self._builder.store(
            self._builder.call(add_instruction, [self._builder.load(total), pairs, other_pairs]),
            total,
        )

    def sum_lanes(self, totals: Sequence[Value], lanes: int) -> Value:
        """Return the sum of all lanes of all totals."""
        lane_sums, *others = (self._builder.load(total) for total in totals)
        for other in others:
            lane_sums = self._builder.fadd(lane_sums, other)
        function = self._declare(
            "llvm.vector.reduce.fadd", FLOAT, [FLOAT, ir.VectorType(FLOAT, lanes)], lanes
        )
        # Without "reassoc" LLVM must add the lanes one after another.
        return self._builder.call(function, [FLOAT(0.0), lane_sums], fastmath=("reassoc",))

    def add_to_memory(self, address: Value, value: Value) -> None:
        """Add one fp32 to the one in memory."""
        pointer = self.typed_pointer(address, FLOAT)
        self._builder.store(self._builder.fadd(self._builder.load(pointer), value), pointer)

    def add_vector_to_memory(self, address: Value, total: Value, lanes: int) -> None:
        """Add a vector of sums to the one in memory."""
        pointer = self.typed_pointer(address, ir.VectorType(FLOAT, lanes))
        sums = self._builder.load(pointer, align=4)
        self._builder.store(self._builder.fadd(sums, self._builder.load(total)), pointer, align=4)

    def _declare(self, name: str, result: Value, arguments: Sequence[Value], lanes: int) -> Value:
        function = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self._builder.module, function, f"{name}.v{lanes}f32")
