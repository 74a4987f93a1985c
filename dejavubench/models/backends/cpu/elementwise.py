"""Loops over the elements of one vector, compiled: what surrounds the sums of :mod:`.dot_kernels`.

Arrays are in fp32; bf16 is seen as uint16.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from dejavubench.models.backends.cpu.emitter import (
    FLOAT,
    INT16,
    INT32,
    INT64,
    CodeGenerator,
    make_pointer_cast,
)
from dejavubench.models.backends.cpu.threads import CompiledFunction, compiled


def _make_address_cast(numba_type: types.Type, llvm_type: ir.Type) -> CompiledFunction:
    """Return an intrinsic that types an address as one of such elements, for ``carray``."""

    @intrinsic
    def address_cast(typing: object, address: types.Type) -> tuple[Signature, CodeGenerator]:
        return types.CPointer(numba_type)(types.intp), make_pointer_cast(llvm_type)

    return address_cast


as_floats, as_integers = (
    _make_address_cast(types.float32, FLOAT),
    _make_address_cast(types.int64, INT64),
)
as_halves, as_words = (
    _make_address_cast(types.uint16, INT16),
    _make_address_cast(types.int32, INT32),
)
"""bf16 one by one, and in pairs."""


@compiled
def to_fp32(x):  # type: ignore[no-untyped-def]
    """Return a bf16 as fp32, of which it is the upper half."""
    return np.uint32(x << 16).view(np.float32)


@compiled
def widen(x, target):  # type: ignore[no-untyped-def]
    """Write bf16 as fp32."""
    for i in range(len(x)):
        target[i] = to_fp32(x[i])


@compiled
def to_bf16(x):  # type: ignore[no-untyped-def]
    """Return the bf16 nearest to an fp32, of two equally near ones the even one; NaN stays NaN."""
    bits = np.float32(x).view(np.uint32)
    rounded_bits = np.uint32(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.uint16(rounded_bits) if x == x else np.uint16(0x7FC0)


@compiled
def narrow(x, target):  # type: ignore[no-untyped-def]
    """Write fp32 as the nearest bf16."""
    for i in range(len(x)):
        target[i] = to_bf16(x[i])


@compiled
def add(x, target):  # type: ignore[no-untyped-def]
    """Add ``x`` to ``target`` in place, element by element, both of one type."""
    for i in range(len(x)):
        target[i] += x[i]


@compiled
def add_widened(x, target):  # type: ignore[no-untyped-def]
    """Add ``x``, widened to fp32, to ``target`` in place."""
    for i in range(len(x)):
        target[i] += to_fp32(x[i])


# No "reassoc": the two parts of ln 2 must be subtracted one after the other.
@njit(error_model="numpy", fastmath={"contract", "nsz"})
def exp(x):  # type: ignore[no-untyped-def]
    """Return e^x, |x| ≤ 87, to two units in the last place, by Cephes' expf.

    It has no branch, so that loops of it become vector instructions.
    """
    clamped_x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    exponent = np.floor(clamped_x * np.float32(1.44269504088896341) + np.float32(0.5))
    remainder = (
        clamped_x - exponent * np.float32(0.693359375) - exponent * np.float32(-2.12194440e-4)
    )
    polynomial = np.float32(1.9875691500e-4)
    polynomial = polynomial * remainder + np.float32(1.3981999507e-3)
    polynomial = polynomial * remainder + np.float32(8.3334519073e-3)
    polynomial = polynomial * remainder + np.float32(4.1665795894e-2)
    polynomial = polynomial * remainder + np.float32(1.6666665459e-1)
    polynomial = polynomial * remainder + np.float32(5.0000001201e-1)
    polynomial = polynomial * remainder * remainder + remainder + np.float32(1.0)
    return polynomial * np.int32((np.int32(exponent) + 127) << 23).view(np.float32)


@compiled
def gelu(x):  # type: ignore[no-untyped-def]
    """Apply GPT-2's GELU, 0.5 · x · (1 + tanh y)."""
    # 0.5 · (1 + tanh y) = 1 / (1 + e^−2y).
    for i in range(len(x)):
        y = np.float32(0.7978845608028654) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
        x[i] = x[i] / (np.float32(1) + exp(np.float32(-2) * y))


@compiled
def relu(x):  # type: ignore[no-untyped-def]
    """Apply ReLU in place, fp32."""
    for i in range(len(x)):
        x[i] = max(x[i], np.float32(0))


@compiled
def silu(x):  # type: ignore[no-untyped-def]
    """Apply SiLU in place, fp32: x / (1 + e^−x)."""
    for i in range(len(x)):
        x[i] = x[i] / (np.float32(1) + exp(-x[i]))


@compiled
def softmax(x):  # type: ignore[no-untyped-def]
    """Turn scores into shares in place, fp32. The largest is subtracted, so none overflows."""
    largest_x, total = np.float32(-np.inf), np.float32(0)
    for i in range(len(x)):
        largest_x = max(largest_x, x[i])
    for i in range(len(x)):
        x[i] = exp(x[i] - largest_x)
    for i in range(len(x)):
        total += x[i]
    for i in range(len(x)):
        x[i] /= total
