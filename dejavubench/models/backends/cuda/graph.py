"""One decode step as a CUDA graph: each replay samples a token and sets up the next step."""

from __future__ import annotations

import torch
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.gpt import GPT
from dejavubench.models.sampling import Sampler

WARM_UP_STEPS = 3
"""Steps before capture, in which kernels are compiled and libraries allocate their workspaces."""


class StepInput:
    """The input of the decode steps of one microbatch, in memory that its graphs read.

    Attributes:
        x: tokens [B, 1] on the first stage, else hidden [B, 1, hidden]. If the model is whole, each
            replay leaves its new tokens there.
        position: of the next step, [1]. Each replay counts it up.
    """

    def __init__(self, model: GPT, requests: int) -> None:
        self._is_whole = model.is_first_stage and model.is_last_stage
        shape, dtype = (
            ((requests, 1), torch.long)
            if model.is_first_stage
            else ((requests, 1, model.spec.hidden), model.compute_dtype)
        )
        self.x = torch.zeros(shape, dtype=dtype, device=model.device)
        self.position = torch.zeros(1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def begin(self, position: int, tokens: Tensor | None) -> None:
        """Let the next step be at ``position``.

        Args:
            tokens: input of the step [B], if the model is whole.
        """
        self.position.fill_(position)
        if tokens is not None and self._is_whole:
            self.x.copy_(tokens.unsqueeze(1))


class DecodeGraph:
    """A model's decode step over one cache, captured. Making one writes to the cache.

    Args:
        model: a loaded model on a CUDA device.
        sampler: sampler of the cache's microbatch.
        step_input: shared by the graphs of the microbatch, if it takes several caches in turn.

    Attributes:
        out: the output on the device, until the next replay: tokens [B] on the last stage,
            else hidden [B, 1, hidden].
        check: the tokens' check on the device, until the next replay; None before the last stage.
    """

    def __init__(self, model: GPT, cache: KVCache, sampler: Sampler, step_input: StepInput) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._input = step_input
        step_input.begin(0, None)
        self.graph = torch.cuda.CUDAGraph()
        # CUDA cannot capture the default stream.
        cuda_stream = torch.cuda.Stream(model.device)
        cuda_stream.wait_stream(torch.cuda.current_stream(model.device))
        with torch.inference_mode(), torch.cuda.stream(cuda_stream):
            for _ in range(WARM_UP_STEPS):
                self._step()
            cuda_stream.synchronize()
            with torch.cuda.graph(self.graph, stream=cuda_stream):
                # The capture's own tensors: every replay writes there.
                self.out, self.check = self._step()
        torch.cuda.current_stream(model.device).wait_stream(cuda_stream)

    def _step(self) -> tuple[Tensor, Tensor | None]:
        x = self._input.x
        position = self._input.position
        out = self._model.forward(x, self._cache, position)
        # On the device, within the graph: a replay reads no number from the host.
        position.add_(1)
        if not self._model.is_last_stage:
            return out, None
        chosen = self._sampler(out, position)
        if self._model.is_first_stage:
            x.copy_(chosen.tokens.unsqueeze(1))
        return chosen

    def replay(self) -> None:
        """Launch the next step, and return at once."""
        self.graph.replay()
