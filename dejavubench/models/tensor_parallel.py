"""The collectives that a model needs of the ranks that hold the other parts of its layers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TensorParallel(Protocol):
    """Sums and gathers over the tensor-parallel group."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the group; may be in place. The caller may change the result."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's ``x``, as [tensor_size, *x.shape]."""


class SingleRank:
    """The tensor-parallel group of one rank."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return ``x`` itself."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return ``x`` as [1, *x.shape]."""
        return x.unsqueeze(0)
