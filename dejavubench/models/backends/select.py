"""Choosing the operators of a device."""

from __future__ import annotations

import torch

from dejavubench.models.backends.protocol import Backend


def choose_backend(device: torch.device | str) -> Backend:
    """Return the operators of a device; every device but a CUDA one has those of a CPU."""
    # Each import here loads a compiler (numba, Triton), which a process needs one of at most.
    if torch.device(device).type == "cuda":
        from dejavubench.models.backends.cuda.backend import CudaBackend

        return CudaBackend()
    from dejavubench.models.backends.cpu.backend import CpuBackend

    return CpuBackend()
