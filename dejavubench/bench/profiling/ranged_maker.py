"""A batch maker that names its steps, layers and stalls for a profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from torch import Tensor

from dejavubench.bench.engine.batch_maker import BatchMaker
from dejavubench.bench.engine.clock import MicrobatchClock
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.engine.steps import OnLayer, Steps
from dejavubench.dejavulib.ranged_streamer import Ranges, name_range, push_range
from dejavubench.dejavulib.titles import format_layer_title, format_step_title
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from dejavubench.records import lanes


class RangedBatchMaker(BatchMaker):
    """A batch maker that pushes a range for each step, layer of a prompt, stall, and drain.

    Args:
        ranges: where they are pushed. All others are those of :class:`BatchMaker`.
    """

    def __init__(
        self,
        ranges: Ranges,
        model: GPT,
        steps: Steps,
        collectives: Collectives,
        prompts: list[Tensor],
        output_len: int,
        before_step: Callable[[int, int], None] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ranges = ranges
        input_lens = [tokens.shape[1] for tokens in prompts]
        ranged_steps = RangedSteps(steps, input_lens, len(model.layers), ranges)
        super().__init__(model, ranged_steps, collectives, prompts, output_len, before_step, now)

    def drain(self, clocks: list[MicrobatchClock], streams: list[MicrobatchStream]) -> None:
        """Wait for the last byte of every stream, within one range."""
        with push_range(self._ranges, name_range(lanes.MODEL, lanes.DRAIN)):
            super().drain(clocks, streams)

    def _take_step(
        self, step: int, microbatch: int, clock: MicrobatchClock, stream: MicrobatchStream
    ) -> None:
        super()._take_step(step, microbatch, clock, RangedStream(stream, self._ranges))


class RangedSteps:
    """Steps that push a range around each step, and around the layers of a prompt.

    On a CUDA device a range covers the call that launches the step. Profilers show the kernels that
    were launched in it.

    Args:
        steps: those that run the model.
        input_lens: prompt length P of each microbatch in flight.
        layers: layers of this worker.
    """

    def __init__(
        self, steps: Steps, input_lens: Sequence[int], layer_count: int, ranges: Ranges
    ) -> None:
        self._steps = steps
        self.runs_ahead = steps.runs_ahead
        self._input_lens = input_lens
        self._layer_count = layer_count
        self._ranges = ranges

    @property
    def keeps_all_checks(self) -> bool:
        """Whether the wrapped steps keep all checks."""
        return self._steps.keeps_all_checks

    @keeps_all_checks.setter
    def keeps_all_checks(self, value: bool) -> None:
        self._steps.keeps_all_checks = value

    def run(self, microbatch: int, x: Tensor, position: int, on_layer: OnLayer | None) -> Tensor:
        """Begin a step within a range, and each layer of a prompt within one of its own."""
        # The prompt fills P positions, and decode step n begins at position P + n − 1.
        step = position - self._input_lens[microbatch] + 1 if position else 0
        with push_range(self._ranges, name_range(lanes.MODEL, format_step_title(step))):
            if step or on_layer is None:
                return self._steps.run(microbatch, x, position, on_layer)
            layers = _Layers(on_layer, self._layer_count, self._ranges)
            try:
                return self._steps.run(microbatch, x, position, layers)
            finally:
                layers.end()

    def prepare_decode(self, microbatch: int, position: int, tokens: Tensor | None) -> None:
        """Prepare the wrapped steps, without a range."""
        self._steps.prepare_decode(microbatch, position, tokens)

    def wait(self, microbatch: int) -> Tensor:
        """Wait for the oldest step; the wait has no range of its own."""
        return self._steps.wait(microbatch)

    def take_event_ms(self, microbatch: int) -> list[float]:
        """Return the device's times of the wrapped steps, in milliseconds."""
        return self._steps.take_event_ms(microbatch)

    def take_checks(self, microbatch: int) -> list[tuple[int, Tensor]]:
        """Return the checks of the wrapped steps."""
        return self._steps.take_checks(microbatch)


class _Layers:
    """The layers of one prompt, as the lane ``layers in place`` has them.

    The range of a layer begins where the layer before was in place: so it holds the attention and
    the MLP of that one, and ends before its own.
    """

    def __init__(self, on_layer: OnLayer, layer_count: int, ranges: Ranges) -> None:
        self._on_layer = on_layer
        self._missing_count = layer_count
        self._ranges = ranges
        self._is_open = False
        self._begin(0)

    def __call__(self, layer: int) -> None:
        self.end()
        self._on_layer(layer)
        self._missing_count -= 1
        if self._missing_count:  # no layer is in place after the last one
            self._begin(layer + 1)

    def end(self) -> None:
        """End the range of a layer, if one is open."""
        if self._is_open:
            self._is_open = False
            self._ranges.pop()

    def _begin(self, layer: int) -> None:
        self._ranges.push(name_range(lanes.LAYERS, format_layer_title(layer)))
        self._is_open = True


class RangedStream:
    """The streaming of one microbatch, with a range around each call of the model's thread."""

    def __init__(self, stream: MicrobatchStream, ranges: Ranges) -> None:
        self._stream = stream
        self._ranges = ranges
        self.prompt = stream.prompt
        self.tokens = stream.tokens
        self.draining = stream.draining

    def begin(self, tokens: np.ndarray | None = None) -> None:
        """Prepare the wrapped stream, outside the clock and without a range."""
        self._stream.begin(tokens)

    def layer_ready(self, layer: int) -> None:
        """Hand a layer on, within a range named for the prompt's stall."""
        with self._stall_range("prompt"):
            self._stream.layer_ready(layer)

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        """Hand a step on, within a range named for the stall of its phase."""
        with self._stall_range("tokens" if step else "prompt"):
            self._stream.step_ready(step, tokens)

    def drain(self) -> None:
        """Drain the wrapped stream; the batch maker has a range around all drains."""
        self._stream.drain()

    def _stall_range(self, phase: str) -> AbstractContextManager[None]:
        return push_range(self._ranges, name_range(lanes.STALL, lanes.wait_title(phase)))
