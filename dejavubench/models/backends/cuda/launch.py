"""How the kernels of a decode step are launched, and their working memory.

Kernels use programmatic stream serialisation: a kernel's blocks may start while the previous kernel
runs. They prefetch weights or cache, which that kernel does not write, and then wait for its
results. So the memory stays busy where one kernel ends and the next begins.

The wait is for the whole previous kernel, and each of our kernels waits. So all that earlier
kernels wrote is in place after the wait. Before it, a kernel reads only parameters, and
``position``, which none of our kernels writes. Kernels of other libraries are never overlapped.

Sums over parts are made in a fixed order by the block that arrives last, so that equal inputs
give equal bits. All kernels may be captured in a graph once they have run outside of one. Each
device has one working memory: two streams must not run these kernels at the same time.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 16
"""Rows up to which a product is a matter of reading the weights, and the tensor cores' least."""

KERNEL_TYPES = (torch.float16, torch.bfloat16)
"""Types of activations that the kernels take."""

PARTIAL_SUMS = 1 << 22
"""Floats for sums over parts: 16 MiB."""

ARRIVAL_COUNTERS = 1 << 16
"""Counters of the parts that have arrived; each is back at 0 when its kernel ends."""


@functools.cache
def allocate_workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the device's floats for sums over parts, and its counters."""
    return (
        torch.empty(PARTIAL_SUMS, dtype=torch.float32, device=device),
        torch.zeros(ARRIVAL_COUNTERS, dtype=torch.int32, device=device),
    )


@functools.cache
def count_processors(device: torch.device) -> int:
    """Return the number of streaming multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Return whether kernels can start before the one before them ends (from Hopper on)."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def prefetch(addresses):  # type: ignore[no-untyped-def]
    """Bring the lines at these addresses to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [addresses],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def activate(x, activation: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the activation of values in fp32; "gelu" is the tanh approximation."""
    if activation == "silu":
        return x * tl.sigmoid(x)
    elif activation == "gelu":
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif activation == "relu":
        return tl.maximum(x, 0.0)
    else:
        return x
