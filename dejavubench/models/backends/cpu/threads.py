"""Compiled kernels on the threads of torch's own pool.

A kernel is compiled by numba for this CPU. It reads its job from a struct, and every thread of the
pool does its share of it. A pool of its own would not do: its threads and torch's would each wait
busily for work on the cores that the others need.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor

from dejavubench.machine.cpu import list_features_left_out

if "avx512" in list_features_left_out():
    # Numba reads these as it is imported; x86-64-v3 has AVX2, FMA and F16C.
    os.environ.setdefault("NUMBA_CPU_NAME", "x86-64-v3")
    os.environ.setdefault("NUMBA_CPU_FEATURES", "")

from numba import cfunc, from_dtype, njit, types

# Torch has loaded its OpenMP library for all to see. GOMP_parallel is GCC's entry to it; LLVM's
# library has it, too. Torch offers no public way to run compiled code on its threads.
OPENMP = ctypes.CDLL(None)
if not hasattr(OPENMP, "GOMP_parallel"):
    raise ImportError(
        "a model on a CPU needs a torch whose threads are OpenMP's (GCC's or LLVM's), "
        "such as PyPI's for Linux"
    )
OPENMP.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
for _name in ("omp_get_thread_num", "omp_get_num_threads"):
    binding.add_symbol(_name, ctypes.cast(getattr(OPENMP, _name), ctypes.c_void_p).value)
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
_aligned_alloc = types.ExternalFunction("aligned_alloc", types.intp(types.intp, types.intp))
free_scratch = types.ExternalFunction("free", types.void(types.intp))
"""Gives back what :func:`take_scratch` took."""

CompiledFunction = Any
"""A function that numba has compiled, and that compiled code may call. It has no types to check."""

COMPILE_OPTIONS: dict[str, object] = {
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}
"""Numba's options for kernels: NaN and infinity are kept, sums may be reordered."""

compiled = njit(**COMPILE_OPTIONS)
"""Decorator of functions that kernels call."""

LINE_NBYTES = 64
"""Bytes of a cache line."""


class LoadedCode(Protocol):
    """Machine code that is ready to be called."""

    @property
    def address(self) -> int:
        """Address of the code, ``void (*)(Job *)``; any number of threads may call it at once."""


def make_job_type(name: str, *fields: str) -> type[ctypes.Structure]:
    """Return the type of a kernel's job: int64 numbers, addresses and distances."""
    return type(
        name, (ctypes.Structure,), {"_fields_": [(field, ctypes.c_int64) for field in fields]}
    )


def compiled_kernel(job: type[ctypes.Structure]) -> Callable[[CompiledFunction], LoadedCode]:
    """Return a decorator that compiles ``f(jobs)``, ``jobs`` being the address of one such job."""
    return cfunc(types.void(types.CPointer(from_dtype(np.dtype(job)))), **COMPILE_OPTIONS)


def run_on_all_threads(code: LoadedCode, job: ctypes.Structure) -> None:
    """Call a kernel on every thread of torch's pool, and wait for all of them."""
    # The same number of threads each time: OpenMP keeps the pool and need not make threads.
    OPENMP.GOMP_parallel(code.address, ctypes.addressof(job), torch.get_num_threads(), 0)


def address_or_zero(tensor: Tensor | None) -> int:
    """Return where a tensor's elements are; 0 if there is no tensor."""
    return 0 if tensor is None else tensor.data_ptr()


@compiled
def take_scratch(nbytes: int) -> int:
    """Return the address of ``nbytes`` of this thread's own, from a cache line's begin on.

    They are few: if there is no memory for them, the kernel ends in a fault.
    """
    return _aligned_alloc(LINE_NBYTES, (nbytes + LINE_NBYTES - 1) // LINE_NBYTES * LINE_NBYTES)


@compiled
def take_share(count: int, unit: int) -> tuple[int, int]:
    """Return this thread's part [begin, stop) of [0, count): whole units, but for the last."""
    thread, threads = thread_number(), thread_count()
    unit_count = (count + unit - 1) // unit
    first_unit, end_unit = unit_count * thread // threads, unit_count * (thread + 1) // threads
    return min(count, first_unit * unit), min(count, end_unit * unit)
