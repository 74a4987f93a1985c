"""Data types by name, and what this machine computes in where a type is not native to it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Linux's names of the x86 extensions that multiply bf16; plain AVX-512 only emulates it."""


def dtype_of(name: str) -> torch.dtype:
    """``fp32`` → ``torch.float32``, and so on.

    Raises:
        ValueError: not one of :data:`DTYPES`.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise ValueError(f"unknown data type {name!r}: choose from {', '.join(DTYPES)}") from None


def name_of(dtype: torch.dtype) -> str:
    """``torch.float32`` → ``fp32``, and so on.

    Raises:
        ValueError: not one of :data:`DTYPES`.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"{dtype} is not one of {', '.join(DTYPES)}")


def flags_in(cpuinfo: str) -> frozenset[str]:
    """The instruction-set flags of the first processor in the text of ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@cache
def cpu_flags() -> frozenset[str]:
    """This machine's flags; empty where the system has no ``/proc/cpuinfo``."""
    cpuinfo = Path("/proc/cpuinfo")
    return flags_in(cpuinfo.read_text()) if cpuinfo.exists() else frozenset()


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX."""
    return not _BF16_FLAGS.isdisjoint(cpu_flags())


def resolve_auto(name: str, device: torch.device | str = "cpu") -> str:
    """The data type that ``auto`` stands for; any other name is checked and returned.

    On CUDA fp16, as in the paper; on a CPU bf16 where it is native, else fp32.

    Raises:
        ValueError: an unknown name.
    """
    if name != AUTO:
        return name_of(dtype_of(name))
    if torch.device(device).type == "cuda":
        return "fp16"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def compute_dtype(dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """What linears run in: ``dtype`` where the device has it natively, else fp32.

    A CPU without AVX512-BF16 or AMX multiplies bf16 several times slower than fp32, and fp16 is slow on all
    CPUs that torch supports: weights are then held in fp32 and only the KV cache is of ``dtype``.
    """
    if torch.device(device).type == "cuda":
        return dtype
    return dtype if dtype == torch.bfloat16 and cpu_multiplies_bf16() else torch.float32
