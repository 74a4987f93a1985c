"""One step of one microbatch: computed at once on a CPU, launched on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dejavubench.bench.engine.device_steps import DeviceSteps
from dejavubench.bench.engine.prompts import Prompts
from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.gpt import GPT
from dejavubench.models.sampling import Sampler
from dejavubench.models.sampling_options import SamplingOptions

OnLayer = Callable[[int], None]
"""Called with a layer's number once its keys and values are in place."""


class Steps(Protocol):
    """The steps of the microbatches in flight, which are told apart by their numbers.

    Attributes:
        runs_ahead: a decode step takes its tokens from the step before by itself. So it may begin
            before they are known on the host, and should.
        keeps_all_checks: keep the checks of all steps, which takes time on a device.
    """

    runs_ahead: bool
    keeps_all_checks: bool

    def run(self, microbatch: int, x: Tensor, position: int, on_layer: OnLayer | None) -> Tensor:
        """Begin a step of ``x`` (tokens or hidden states), whose first position is ``position``.

        Returns:
            On the model's device: new tokens [B] on the last stage, else hidden states.
        """

    def prepare_decode(self, microbatch: int, position: int, tokens: Tensor | None) -> None:
        """Prepare for a step at ``position``, over a cache that holds the positions before.

        Args:
            tokens: the tokens [B] that go into it, on the first stage.
        """

    def wait(self, microbatch: int) -> Tensor:
        """Wait for the oldest step that was begun and not waited for.

        At most two steps that run ahead may be begun and not waited for.

        Returns:
            On the host: its new tokens [B], on the last stage.
        """

    def take_event_ms(self, microbatch: int) -> list[float]:
        """Return the device's own times of all steps since the last call; none on a CPU."""

    def take_checks(self, microbatch: int) -> list[tuple[int, Tensor]]:
        """Return the checks of steps' logits since the last call, with the positions of the tokens.

        A CPU has all steps, and so has a device with ``keeps_all_checks``; else it has the prompt
        and the last step. Only the last stage has any. This takes time outside the clock.
        """


def make_steps(
    model: GPT,
    caches: Sequence[KVCache],
    prompts: Sequence[Prompts],
    sampling: SamplingOptions | None,
    rotating_caches: Sequence[KVCache] = (),
) -> Steps:
    """Return the steps for the model's device; caches and prompts are those in flight.

    Args:
        rotating_caches: those that every microbatch takes in turn; empty if each keeps its own.
    """
    samplers = [
        # By the requests' own numbers, so that a draw does not depend on the microbatch.
        Sampler(model, sampling, prompt.request_numbers.to(model.device), prompt.tokens.shape[1])
        for prompt in prompts
    ]
    if model.device.type == "cuda":
        return DeviceSteps(model, caches, samplers, rotating_caches)
    return HostSteps(model, caches, samplers, [prompt.prompt_start for prompt in prompts])


class HostSteps:
    """Steps on the CPU: each is over when it returns.

    Args:
        caches: one per microbatch. A swapper replaces the items of the list as caches take turns.
    """

    runs_ahead = False
    keeps_all_checks = True

    def __init__(
        self,
        model: GPT,
        caches: Sequence[KVCache],
        samplers: list[Sampler],
        prompt_starts: list[Tensor | None],
    ) -> None:
        self._model = model
        self._caches = caches
        self._samplers = samplers
        self._starts = prompt_starts
        self._out = [torch.empty(0) for _ in caches]
        self._checks: list[list[tuple[int, Tensor]]] = [[] for _ in caches]

    def run(self, microbatch: int, x: Tensor, position: int, on_layer: OnLayer | None) -> Tensor:
        """Compute a step; it is over when this returns."""
        # Looked up in every step: a swapper has put another cache in the list since.
        out = self._model.forward(
            x, self._caches[microbatch], position, on_layer, self._starts[microbatch]
        )
        if self._model.is_last_stage:
            next_position = position + x.shape[1]  # of the token that is chosen now
            out, check = self._samplers[microbatch](out, next_position)
            self._checks[microbatch].append((next_position, check))
        self._out[microbatch] = out
        return out

    def prepare_decode(self, microbatch: int, position: int, tokens: Tensor | None) -> None:
        """Do nothing: every step is given all that it needs."""

    def wait(self, microbatch: int) -> Tensor:
        """Return the newest step's output at once."""
        return self._out[microbatch]

    def take_event_ms(self, microbatch: int) -> list[float]:
        """Return nothing: a CPU has no events of its own."""
        return []

    def take_checks(self, microbatch: int) -> list[tuple[int, Tensor]]:
        """Return and forget the checks of all steps since the last call."""
        checks, self._checks[microbatch] = self._checks[microbatch], []
        return checks
