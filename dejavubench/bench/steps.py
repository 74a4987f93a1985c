"""Running a prompt or a decode step of one microbatch: at once on the CPU, launched and waited for on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dejavubench.kvcache import KVCache
from dejavubench.models.gpt import GPT


class Steps(Protocol):
    """What the batch maker runs; the microbatches in flight are told apart by their number."""

    def run(self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None) -> Tensor:
        """Begin a step of ``x`` (tokens or hidden), whose first position is ``position``.

        Returns:
            On the model's device: new tokens [B] on the last stage, else hidden.
        """

    def wait(self, ubatch: int) -> Tensor:
        """Wait for the step that was begun; on the last stage its new tokens [B] on the host."""

    def event_ms(self, ubatch: int) -> list[float]:
        """The device's own times of all steps since the last call; empty where there are none."""


def steps_of(model: GPT, caches: list[KVCache], requests: int) -> Steps:
    """As the model's device needs it."""
    return DeviceSteps(model, caches, requests) if model.device.type == "cuda" else HostSteps(model, caches)


class HostSteps:
    """On the CPU a step is over when it returns."""

    def __init__(self, model: GPT, caches: list[KVCache]) -> None:
        self._model, self._caches = model, caches
        self._out = [torch.empty(0) for _ in caches]

    def run(self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None) -> Tensor:
        out = self._model.forward(x, self._caches[ubatch], position, on_layer)
        self._out[ubatch] = self._model.greedy(out) if self._model.shard.last else out
        return self._out[ubatch]

    def wait(self, ubatch: int) -> Tensor:
        return self._out[ubatch]

    def event_ms(self, ubatch: int) -> list[float]:
        return []


class DeviceSteps:
    """On a CUDA device the prompt is launched kernel by kernel, a decode step as one graph."""

    def __init__(self, model: GPT, caches: list[KVCache], requests: int) -> None:
        from dejavubench.models.cuda_graph import DecodeGraph

        self._model, self._caches = model, caches
        self._graphs = [DecodeGraph(model, cache, requests) for cache in caches]
        self._events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in caches]

    def run(self, ubatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None) -> Tensor:
        graph, shard = self._graphs[ubatch], self._model.shard
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        if position == 0:
            out = self._prompt(ubatch, x, on_layer)
        else:
            if not (shard.first and shard.last):  # else the graph has fed its tokens back itself
                graph.x.copy_(x, non_blocking=True)
            graph.replay()
            out = graph.out
        ended.record()
        self._events[ubatch].append((began, ended))
        return out

    def _prompt(self, ubatch: int, x: Tensor, on_layer: Callable[[int], None] | None) -> Tensor:
        x = x.to(self._model.device, non_blocking=True)
        out = self._model.forward(x, self._caches[ubatch], 0, on_layer)
        if self._model.shard.last:
            out = self._model.greedy(out)
        self._graphs[ubatch].begin(x.shape[1], out)
        return out

    def wait(self, ubatch: int) -> Tensor:
        self._events[ubatch][-1][1].synchronize()
        return self._graphs[ubatch].tokens.clone()

    def event_ms(self, ubatch: int) -> list[float]:
        events, self._events[ubatch] = self._events[ubatch], []
        if events:
            events[-1][1].synchronize()
        return [began.elapsed_time(ended) for began, ended in events]
