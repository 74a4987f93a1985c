"""Compiled kernels on the threads of torch's own pool: a second pool would wait busily on the cores of the first.

A kernel is compiled by numba for this CPU, reads its job from an array of integers, and does this thread's share of it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from llvmlite import binding
from torch import Tensor

from dejavubench.machine.hardware import features_left_out

if (
    "avx512" in features_left_out()
):  # numba reads these as it is imported: AVX2, FMA and F16C are left
    os.environ.setdefault("NUMBA_CPU_NAME", "x86-64-v3")
    os.environ.setdefault("NUMBA_CPU_FEATURES", "")

from numba import cfunc, njit, types

OPENMP = ctypes.CDLL(
    None
)  # torch has loaded its OpenMP library for all to see; this entry is GCC's, LLVM's has it too
if not hasattr(OPENMP, "GOMP_parallel"):
    raise ImportError(
        "a model on a CPU needs a torch whose threads are OpenMP's (GCC's or LLVM's), as PyPI's for Linux"
    )
OPENMP.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
for _name in ("omp_get_thread_num", "omp_get_num_threads"):
    binding.add_symbol(_name, ctypes.cast(getattr(OPENMP, _name), ctypes.c_void_p).value)
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
_aligned = types.ExternalFunction("aligned_alloc", types.intp(types.intp, types.intp))
released = types.ExternalFunction("free", types.void(types.intp))
"""Gives back what :func:`scratch` took."""

COMPILED: Any = {
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}

compiled = njit(**COMPILED)
kernel = cfunc(types.void(types.CPointer(types.int64)), **COMPILED)


def run(kernel: Any, job: Any) -> None:
    """Call a kernel on every thread, with a ctypes array of int64."""
    OPENMP.GOMP_parallel(kernel.address, ctypes.addressof(job), torch.get_num_threads(), 0)


def address(tensor: Tensor | None) -> int:
    """Where its elements are; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


@compiled
def scratch(nbytes: int) -> int:
    """The address of so many bytes, from the beginning of a line on, which are this thread's until ``released``.

    They are few; where there is no memory for them the kernel ends in a fault, as the machine would.
    """
    return _aligned(64, (nbytes + 63) // 64 * 64)


@compiled
def share(count: int, unit: int) -> tuple[int, int]:
    """This thread's part of [0, count): whole units, but for the last one."""
    thread, threads = thread_number(), thread_count()
    units = (count + unit - 1) // unit
    return min(count, units * thread // threads * unit), min(
        count, units * (thread + 1) // threads * unit
    )
