"""Running a prompt or a decode step of one microbatch: at once on the CPU, launched and waited for on a CUDA device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dejavubench.bench.prompts import Prompts
from dejavubench.dejavulib.kvcache import KVCache
from dejavubench.models.gpt import GPT
from dejavubench.models.sampling import Sampler
from dejavubench.models.samplingoptions import Sampling


class Steps(Protocol):
    """What the batch maker runs; the microbatches in flight are told apart by their number.

    Attributes:
        thorough: the peaks of all steps are kept, which on a device takes time.
        ahead: a decode step takes its tokens from the one before it by itself, so that it may begin, and should, before
            they are known on the host.
    """

    ahead: bool
    thorough: bool

    def run(
        self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None
    ) -> Tensor:
        """Begin a step of ``x`` (tokens or hidden), whose first position is ``position``.

        Returns:
            On the model's device: new tokens [B] on the last stage, else hidden.
        """

    def go_on(self, ubatch: int, position: int, tokens: Tensor | None) -> None:
        """The next step is at ``position``, over a cache that holds what was before.

        Args:
            tokens: those that go into it [B], on the first stage.
        """

    def wait(self, ubatch: int) -> Tensor:
        """Wait for the oldest step that was begun and not waited for; on the last stage its new tokens [B] on the host.

        Of the steps that run ahead at most two are begun and not waited for.
        """

    def event_ms(self, ubatch: int) -> list[float]:
        """The device's own times of all steps since the last call; empty where there are none."""

    def peaks(self, ubatch: int) -> list[tuple[int, Tensor]]:
        """:attr:`GPT.peak` of steps since the last call, each with the position of the tokens that were chosen.

        Of all steps on a CPU, and on a device while ``thorough``; else of the prompt's and the last one. Other stages
        than the last have none. For use outside the clock.
        """


def steps_of(
    model: GPT, caches: list[KVCache], prompts: list[Prompts], sampling: Sampling | None
) -> Steps:
    """As the model's device needs it; ``prompts`` and caches are those of the microbatches in flight."""
    samplers = [
        Sampler(model, sampling, each.numbers.to(model.device), each.tokens.shape[1])
        for each in prompts
    ]
    if model.device.type == "cuda":
        return DeviceSteps(model, caches, samplers)
    return HostSteps(model, caches, samplers, [each.first for each in prompts])


class HostSteps:
    """On the CPU a step is over when it returns."""

    ahead = False
    thorough = True

    def __init__(
        self,
        model: GPT,
        caches: list[KVCache],
        samplers: list[Sampler],
        firsts: list[Tensor | None],
    ) -> None:
        self._model, self._caches = model, caches
        self._samplers, self._firsts = samplers, firsts
        self._out = [torch.empty(0) for _ in caches]
        self._peaks: list[list[tuple[int, Tensor]]] = [[] for _ in caches]

    def run(
        self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None
    ) -> Tensor:
        out = self._model.forward(x, self._caches[ubatch], position, on_layer, self._firsts[ubatch])
        if self._model.shard.last:
            next_position = position + x.shape[1]
            out = self._samplers[ubatch](out, next_position)
            self._peaks[ubatch].append((next_position, self._model.peak))
        self._out[ubatch] = out
        return out

    def go_on(self, ubatch: int, position: int, tokens: Tensor | None) -> None:
        return  # every step is told all that it needs

    def wait(self, ubatch: int) -> Tensor:
        return self._out[ubatch]

    def event_ms(self, ubatch: int) -> list[float]:
        return []

    def peaks(self, ubatch: int) -> list[tuple[int, Tensor]]:
        peaks, self._peaks[ubatch] = self._peaks[ubatch], []
        return peaks


class DeviceSteps:
    """On a CUDA device the prompt is launched kernel by kernel, a decode step as one graph."""

    def __init__(self, model: GPT, caches: list[KVCache], samplers: list[Sampler]) -> None:
        from dejavubench.models.backends.cuda.graph import DecodeGraph

        self.ahead = model.shard.first and model.shard.last
        self._model, self._caches, self._samplers = model, caches, samplers
        self._graphs = [
            DecodeGraph(model, cache, of) for cache, of in zip(caches, samplers, strict=True)
        ]
        self.thorough = False
        requests = len(samplers[0].requests)
        self._peaks: list[list[tuple[int, Tensor]]] = [[] for _ in caches]
        self._last: list[tuple[int, Tensor] | None] = [
            None for _ in caches
        ]  # of the newest replay, not kept yet
        self._events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in caches]
        self._begun: list[deque[tuple[torch.cuda.Event, Tensor]]] = [deque() for _ in caches]
        # on the host, taken in turns: those of a step can be read while the next one is under way
        self._tokens = [
            deque(torch.zeros(2, requests, dtype=torch.long, pin_memory=True)) for _ in caches
        ]

    def run(
        self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None
    ) -> Tensor:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        out = (
            self._prompt(ubatch, x, on_layer)
            if position == 0
            else self._replay(ubatch, x, position)
        )
        tokens = self._tokens[ubatch][0]
        self._tokens[ubatch].rotate()
        if self._model.shard.last:
            tokens.copy_(out, non_blocking=True)
        ended.record()
        self._events[ubatch].append((began, ended))
        self._begun[ubatch].append((ended, tokens))
        return out

    def _prompt(self, ubatch: int, x: Tensor, on_layer: Callable[[int], None] | None) -> Tensor:
        x = x.to(self._model.device, non_blocking=True)
        out = self._model.forward(x, self._caches[ubatch], 0, on_layer)
        if self._model.shard.last:
            out = self._samplers[ubatch](out, x.shape[1])
            self._peaks[ubatch].append((x.shape[1], self._model.peak))
        self._graphs[ubatch].begin(x.shape[1], out)
        return out

    def go_on(self, ubatch: int, position: int, tokens: Tensor | None) -> None:
        self._graphs[ubatch].begin(position, tokens)

    def _replay(self, ubatch: int, x: Tensor, position: int) -> Tensor:
        graph = self._graphs[ubatch]
        if not self.ahead:  # else the graph has fed its tokens back itself
            graph.x.copy_(x, non_blocking=True)
        graph.replay()
        if self._model.shard.last:
            self._last[ubatch] = (position + 1, graph.peak)
            if self.thorough:  # the next replay overwrites it
                self._peaks[ubatch].append((position + 1, graph.peak.clone()))
        return graph.out

    def wait(self, ubatch: int) -> Tensor:
        ended, tokens = self._begun[ubatch].popleft()
        ended.synchronize()
        return tokens.clone()

    def event_ms(self, ubatch: int) -> list[float]:
        events, self._events[ubatch] = self._events[ubatch], []
        self._begun[
            ubatch
        ].clear()  # a first stage that is not the last waits for tokens, not for its steps
        if events:
            events[-1][1].synchronize()
        return [began.elapsed_time(ended) for began, ended in events]

    def peaks(self, ubatch: int) -> list[tuple[int, Tensor]]:
        peaks, self._peaks[ubatch] = self._peaks[ubatch], []
        last, self._last[ubatch] = self._last[ubatch], None
        return peaks if last is None else [*peaks, last]
