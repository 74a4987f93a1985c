"""Data types by name, and the type that a device computes in."""

from __future__ import annotations

import torch

from dejavubench.machine import cpu

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Types by the names of ``--inference-data-type``."""


def dtype_of(name: str) -> torch.dtype:
    """Return the type of torch: ``fp32`` → ``torch.float32``.

    Raises:
        ValueError: not one of :data:`DTYPES`.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise ValueError(f"unknown data type {name!r}: choose from {', '.join(DTYPES)}") from None


def name_of(dtype: torch.dtype) -> str:
    """Return our name of a type: ``torch.float32`` → ``fp32``.

    Raises:
        ValueError: not one of :data:`DTYPES`.
    """
    for name, candidate in DTYPES.items():
        if candidate == dtype:
            return name
    raise ValueError(f"{dtype} is not one of {', '.join(DTYPES)}")


def compute_dtype(
    dtype: torch.dtype, device: torch.device | str = "cpu", has_native_bf16: bool | None = None
) -> torch.dtype:
    """Return the type of linears' inputs and outputs: ``dtype`` if it is native here, else fp32.

    A CPU without AVX512-BF16 or AMX multiplies bf16 several times slower than fp32, and fp16 is
    slow on all CPUs that torch supports. Weights and KV cache are of ``dtype`` nevertheless, and
    are widened as they are multiplied.

    Args:
        has_native_bf16: whether the CPU multiplies bf16; None: find out. Workers of one model must
            agree.
    """
    if torch.device(device).type == "cuda":
        return dtype
    is_native = cpu.has_native_bf16() if has_native_bf16 is None else has_native_bf16
    return dtype if dtype == torch.bfloat16 and is_native else torch.float32
