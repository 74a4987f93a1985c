"""The memory of one worker's weights, and which cut of each full tensor goes where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dejavubench.models.backends.protocol import Backend, HeadNorms
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.hub.shard import Cut, Shard
from dejavubench.models.layers import LayerNorm, Linear, RMSNorm


@dataclass(frozen=True)
class WeightSlice:
    """The memory that one cut of a full tensor goes to.

    Attributes:
        name: name of the full tensor.
        memory: this worker's memory, often a part of a larger tensor.
        cut: where the cut lies in the full tensor.
    """

    name: str
    memory: Tensor
    cut: tuple[slice, ...]


class WorkerWeights:
    """Allocates the weights of a shard by name; their values are undefined.

    Args:
        dtype: type of matrices.
        compute_dtype: type of vectors (norms and biases), which are small and used as they are.

    Attributes:
        backend: computes with the weights.
        slices: the places of all requested weights, in the order of requests.

    Raises:
        ValueError: the model cannot be split like this.
    """

    def __init__(
        self,
        spec: ModelSpec,
        shard: Shard,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
    ) -> None:
        self.slices: list[WeightSlice] = []
        self.backend = backend
        self._spec = spec
        self._dtype = dtype
        self._compute_dtype = compute_dtype
        self._device = device
        self._cuts: dict[str, Cut] = shard.outer_cuts(spec)
        layer_cuts = shard.layer_cuts(spec)
        for layer in range(*shard.layers(spec)):
            self._cuts |= {f"layers.{layer}.{name}": cut for name, cut in layer_cuts.items()}

    def has(self, name: str) -> bool:
        """Return whether this worker holds some of the tensor ``name``."""
        return name in self._cuts

    def tensor(self, *tensor_names: str) -> Tensor:
        """Return one new tensor of the cuts of all these tensors, rows one below the other."""
        cuts = [self._cuts[name] for name in tensor_names]
        row_count = sum(cut[0].size for cut in cuts)
        inner_shape = [span.size for span in cuts[0][1:]]
        # One tensor for queries, keys and values lets one product serve all three.
        dtype = self._dtype if inner_shape else self._compute_dtype
        joined_tensor = torch.empty((row_count, *inner_shape), dtype=dtype, device=self._device)
        memories = joined_tensor.split([cut[0].size for cut in cuts])
        for name, memory, cut in zip(tensor_names, memories, cuts, strict=True):
            self.slices.append(WeightSlice(name, memory, tuple(span.slice for span in cut)))
        return joined_tensor

    def linear(self, *tensor_names: str) -> Linear:
        """Return one linear of the outputs of all of ``tensor_names``, in this order."""
        weight = self.tensor(*_add_suffix(tensor_names, "weight"))
        has_bias = self.has(f"{tensor_names[0]}.bias")
        return Linear(
            self.backend,
            weight,
            self.tensor(*_add_suffix(tensor_names, "bias")) if has_bias else None,
        )

    def norm(self, name: str) -> LayerNorm | RMSNorm:
        """Return a layer norm, or an RMS norm if the model has no bias for it."""
        weight = self.tensor(f"{name}.weight")
        if self.has(f"{name}.bias"):
            return LayerNorm(self.backend, weight, self.tensor(f"{name}.bias"))
        return RMSNorm(self.backend, weight, self._spec.eps)

    def head_norms(self, prefix: str) -> HeadNorms:
        """Return the norms of one layer's heads of queries and keys."""
        return HeadNorms(
            query_weight=self.tensor(f"{prefix}.query_norm.weight"),
            key_weight=self.tensor(f"{prefix}.key_norm.weight"),
            eps=self._spec.eps,
        )


def _add_suffix(tensor_names: Sequence[str], suffix: str) -> list[str]:
    return [f"{name}.{suffix}" for name in tensor_names]
