"""The two ends of the model: the embedding on the first stage, and the head on the last one.

Letters in shapes as in :mod:`.gpt`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import Span
from dejavubench.models.backends.protocol import identity
from dejavubench.models.hub.model_spec import ModelSpec
from dejavubench.models.layers import LayerPart, Linear
from dejavubench.models.worker_weights import WorkerWeights


class Embedding:
    """Makes the first layer's input of tokens.

    Args:
        dtype: type of the residual stream.

    Attributes:
        table: [vocabulary, embed]; a tied head takes its rows, too.
    """

    def __init__(self, weights: WorkerWeights, spec: ModelSpec, dtype: torch.dtype) -> None:
        self.table = weights.tensor("embedding")
        self._dtype = dtype
        self._position: Tensor | None = None  # [context, hidden]
        if weights.has("position"):
            # OPT's first rows belong to no position.
            self._position = weights.tensor("position")[spec.position_offset :]
        self._norm: LayerPart = identity
        if weights.has("embed_norm.weight"):
            self._norm = weights.norm("embed_norm")
        self._project: LayerPart = identity  # [.., embed] → [.., hidden]
        if weights.has("project_in.weight"):
            self._project = weights.linear("project_in")

    def __call__(
        self, tokens: Tensor, position: int | Tensor, prompt_start: Tensor | None
    ) -> Tensor:
        """Return [B, n, hidden] of tokens [B, n]; arguments as of ``GPT.forward``."""
        x = self._project(F.embedding(tokens, self.table).to(self._dtype))
        if self._position is not None:
            # The other kinds of positions are distances, which padding does not change.
            positions: Tensor | slice
            if isinstance(position, Tensor):
                positions = position
            elif prompt_start is None:
                positions = slice(position, position + x.shape[1])
            else:
                positions = (
                    torch.arange(position, position + x.shape[1]) - prompt_start[:, None]
                ).clamp(min=0)
            x = x + self._position[positions]
        return self._norm(x)

    def linears(self) -> Iterator[Linear]:
        """Yield the linears that a backend must be ready for."""
        if isinstance(self._project, Linear):
            yield self._project


class OutputHead:
    """Makes logits of the last layer's output.

    Args:
        vocab: this rank's rows of the vocabulary.
        table: the embedding if this worker has it; a tied head is a view of it.

    Attributes:
        linear: weight [this rank's vocabulary rows, embed].
    """

    def __init__(
        self, weights: WorkerWeights, spec: ModelSpec, vocab: Span, table: Tensor | None
    ) -> None:
        self._norm: LayerPart = identity
        if weights.has("final_norm.weight"):
            self._norm = weights.norm("final_norm")
        self._project: LayerPart = identity  # [.., hidden] → [.., embed]
        if weights.has("project_out.weight"):
            self._project = weights.linear("project_out")
        if spec.tied and table is not None:
            self.linear = Linear(weights.backend, table[vocab.slice])
        else:
            weight = weights.tensor("embedding" if spec.tied else "head")
            self.linear = Linear(weights.backend, weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return this rank's logits [B, vocabulary rows] of hidden [B, hidden]."""
        return self.linear(self._project(self._norm(x)))

    def linears(self) -> Iterator[Linear]:
        """Yield the linears that a backend must be ready for."""
        if isinstance(self._project, Linear):
            yield self._project
        yield self.linear
