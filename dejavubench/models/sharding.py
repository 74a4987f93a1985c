"""Which part of a model one worker holds, and what it needs of the workers that hold the rest of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dejavubench.dejavulib.kvcache import Span
from dejavubench.models.hub.specs import ModelSpec


@dataclass(frozen=True)
class Shard:
    """Which part of the model one worker holds.

    Raises:
        ValueError: a rank outside its group.
    """

    stage: int = 0
    stages: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.stage < self.stages and 0 <= self.tensor_rank < self.tensor_size):
            raise ValueError(
                f"not a part of {self.stages} stages × {self.tensor_size} tensor ranks: {self}"
            )

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    def layers(self, spec: ModelSpec) -> Span:
        """Layer numbers, counted over the whole model. Raises ValueError: more stages than layers."""
        cuts = spec.layer_cuts(self.stages)
        return Span(cuts[self.stage], cuts[self.stage + 1])

    def heads(self, spec: ModelSpec) -> Span:
        """Numbers of the heads of keys and values; of queries there are ``spec.group`` for each.

        Raises ValueError: the tensor-parallel size does not divide them.
        """
        kind = "heads" if spec.group == 1 else "KV heads"
        return self._even(spec.kv_heads, f"{spec.kv_heads} {kind} of {spec.name}")

    def ffn(self, spec: ModelSpec) -> Span:
        """MLP columns. Raises ValueError: the tensor-parallel size does not divide them."""
        return self._even(spec.ffn_size, f"MLP of {spec.name}, {spec.ffn_size} wide,")

    def vocab(self, spec: ModelSpec) -> Span:
        """Vocabulary rows, as even as can be. Raises ValueError: fewer rows than tensor ranks."""
        each, more = divmod(spec.vocab_size, self.tensor_size)
        if each == 0:
            raise ValueError(
                f"a vocabulary of {spec.vocab_size} cannot be split over {self.tensor_size} tensor ranks"
            )
        start = self.tensor_rank * each + min(self.tensor_rank, more)
        return Span(start, start + each + (self.tensor_rank < more))

    def _even(self, total: int, what: str) -> Span:
        each, over = divmod(total, self.tensor_size)
        if over:
            raise ValueError(
                f"the {what} cannot be divided evenly over {self.tensor_size} tensor-parallel ranks"
            )
        return Span(self.tensor_rank * each, (self.tensor_rank + 1) * each)


class TensorParallel(Protocol):
    """What the model needs of the ranks that hold the other parts of its layers."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the group; may be in place. The caller may change the result."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's ``x``, as [tensor_size, *x.shape]."""


class Alone:
    """The tensor-parallel group of one."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)
