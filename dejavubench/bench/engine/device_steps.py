"""The steps of microbatches on a CUDA device; see :class:`.steps.Steps` for each method."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.gpt import GPT
from dejavubench.models.sampling import Sampler

if TYPE_CHECKING:
    from dejavubench.models.backends.cuda.graph import DecodeGraph, StepInput


class DeviceSteps:
    """Steps on a CUDA device: a prompt is launched kernel by kernel, a decode step as one graph.

    Args:
        caches: one per microbatch. A swapper replaces the items of the list as caches take turns.
        rotating_caches: those that every microbatch takes in turn; empty if each keeps its own.
    """

    keeps_all_checks = False

    def __init__(
        self,
        model: GPT,
        caches: Sequence[KVCache],
        samplers: list[Sampler],
        rotating_caches: Sequence[KVCache] = (),
    ) -> None:
        self._model = model
        self.runs_ahead = model.is_first_stage and model.is_last_stage
        self._caches = caches
        self._in_flight = [
            _InFlight.capture(model, rotating_caches or [cache], sampler)
            for cache, sampler in zip(caches, samplers, strict=True)
        ]

    def run(
        self, microbatch: int, x: Tensor, position: int, on_layer: Callable[[int], None] | None
    ) -> Tensor:
        """Launch a step on torch's current stream, and the copy of its tokens to the host.

        Returns:
            On the device: new tokens [B] on the last stage, else hidden states. Not computed
                yet.
        """
        in_flight = self._in_flight[microbatch]
        begin_event = torch.cuda.Event(enable_timing=True)
        end_event = torch.cuda.Event(enable_timing=True)
        begin_event.record()
        # A prompt is launched kernel by kernel, since its layers are streamed one by one, and the
        # host must know when each is launched. A graph would hide that.
        cache = self._caches[microbatch]
        if position == 0:
            out = self._run_prompt(in_flight, cache, x, on_layer)
        else:
            out = self._replay(in_flight, cache, x, position)
        # Two host buffers take turns. At most two steps are under way, so the one that is
        # overwritten here was waited for, and read, before.
        tokens = in_flight.tokens[0]
        in_flight.tokens.rotate()
        if self._model.is_last_stage:
            tokens.copy_(out, non_blocking=True)
        end_event.record()
        in_flight.events.append((begin_event, end_event))
        in_flight.steps_under_way.append((end_event, tokens))
        return out

    def _run_prompt(
        self,
        in_flight: _InFlight,
        cache: KVCache,
        x: Tensor,
        on_layer: Callable[[int], None] | None,
    ) -> Tensor:
        position_count = x.shape[1]
        on_device = x.to(self._model.device, non_blocking=True)
        out = self._model.forward(on_device, cache, 0, on_layer)
        if self._model.is_last_stage:
            out, check = in_flight.sampler(out, position_count)
            in_flight.checks.append((position_count, check))
        # Graphs count positions and feed tokens back by themselves: they are told where to begin.
        in_flight.input.begin(position_count, out)
        return out

    def prepare_decode(self, microbatch: int, position: int, tokens: Tensor | None) -> None:
        """Set the position of the next step, and the tokens that go into it."""
        self._in_flight[microbatch].input.begin(position, tokens)

    def _replay(self, in_flight: _InFlight, cache: KVCache, x: Tensor, position: int) -> Tensor:
        graph = in_flight.graphs[id(cache)]
        if not self.runs_ahead:  # else the graph has fed its tokens back itself
            in_flight.input.x.copy_(x, non_blocking=True)
        graph.replay()
        if graph.check is not None:
            in_flight.last_check = (position + 1, graph.check)
            if self.keeps_all_checks:  # the next replay overwrites the check
                in_flight.checks.append((position + 1, graph.check.clone()))
        return graph.out

    def wait(self, microbatch: int) -> Tensor:
        """Wait until the oldest step under way has ended; return a copy of its tokens [B]."""
        end_event, tokens = self._in_flight[microbatch].steps_under_way.popleft()
        end_event.synchronize()  # recorded behind the copy of the tokens, so they are here as well
        return tokens.clone()  # the step after next overwrites this buffer

    def take_event_ms(self, microbatch: int) -> list[float]:
        """Wait for the last step; return the milliseconds between the events of each step."""
        in_flight = self._in_flight[microbatch]
        events, in_flight.events = in_flight.events, []
        # The first of several stages waits for tokens of the last one, not for its own steps.
        in_flight.steps_under_way.clear()
        if events:
            events[-1][1].synchronize()
        return [begin_event.elapsed_time(end_event) for begin_event, end_event in events]

    def take_checks(self, microbatch: int) -> list[tuple[int, Tensor]]:
        """Return the checks of the prompt and of the newest step, or of all that were kept."""
        in_flight = self._in_flight[microbatch]
        checks, in_flight.checks = in_flight.checks, []
        newest_check, in_flight.last_check = in_flight.last_check, None
        return checks if newest_check is None else [*checks, newest_check]


@dataclass
class _InFlight:
    """One microbatch in flight on a CUDA device.

    Attributes:
        input: input of its decode steps. The module needs Triton, so it is imported when used.
        graphs: the decode step captured over each cache that the microbatch takes, by its ``id``.
        tokens: pinned, taken in turn: a step's are read while the next step is under way.
        steps_under_way: those not waited for, each with its end and its tokens on the host.
        last_check: the check of the newest replay, which ``checks`` does not hold yet.
    """

    sampler: Sampler
    input: StepInput
    graphs: dict[int, DecodeGraph]
    tokens: deque[Tensor]
    checks: list[tuple[int, Tensor]] = field(default_factory=list)
    last_check: tuple[int, Tensor] | None = None
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    steps_under_way: deque[tuple[torch.cuda.Event, Tensor]] = field(default_factory=deque)

    @classmethod
    def capture(cls, model: GPT, caches: Sequence[KVCache], sampler: Sampler) -> _InFlight:
        """Capture the microbatch's decode step over each of its caches."""
        from dejavubench.models.backends.cuda.graph import DecodeGraph, StepInput

        request_count = len(sampler.requests)
        step_input = StepInput(model, request_count)
        # A graph holds the addresses of its cache, so the step over each cache is one of its own.
        graphs = {id(cache): DecodeGraph(model, cache, sampler, step_input) for cache in caches}
        tokens = torch.zeros(2, request_count, dtype=torch.long, pin_memory=True)
        return cls(sampler, step_input, graphs, deque(tokens))
