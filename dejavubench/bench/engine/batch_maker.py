"""The batch maker: takes microbatches through prompt, tokens and drain.

With pipeline depth U there are U microbatches in flight, and each stage takes them in turn. When a
step begins and when it is over is the business of :mod:`.clock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dejavubench.bench.engine.clock import MicrobatchClock, make_stage
from dejavubench.bench.engine.logits import check_logits
from dejavubench.bench.engine.microbatch_stream import MicrobatchStream
from dejavubench.bench.engine.steps import Steps
from dejavubench.machine import liveness
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives

MarkPhase = Callable[[str], None]
"""Records, outside the phases' clocks, that a phase begins."""


def _report_progress(layer_ready: Callable[[int], None]) -> Callable[[int], None]:
    """Report each layer to the watchdog as well: a large model's prompt can take minutes."""

    def report_layer(layer: int) -> None:
        liveness.count_progress()
        layer_ready(layer)

    return report_layer


class BatchMaker:
    """Runs iterations on one source.

    Args:
        model: this worker's part.
        steps: runs the model over the caches of the microbatches in flight.
        collectives: messages between the stages.
        prompts: token ids [B, P] of each microbatch in flight.
        output_len: new tokens T of each request.
        before_step: called with a microbatch and a step right before the model runs it, within the
            step's clock.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        model: GPT,
        steps: Steps,
        collectives: Collectives,
        prompts: list[torch.Tensor],
        output_len: int,
        before_step: Callable[[int, int], None] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.steps = steps
        self.collectives = collectives
        self.prompts = prompts
        self.output_len = output_len
        self._before_step = before_step
        self._now = now
        self._stage = make_stage(model, steps, collectives, prompts)

    def make_clocks(self) -> list[MicrobatchClock]:
        """Return a new clock for each microbatch in flight."""
        return [MicrobatchClock(self._now) for _ in self.prompts]

    def run(
        self,
        streams: list[MicrobatchStream],
        mark: MarkPhase,
        token_count: int | None = None,
        on_generated: Callable[[list[MicrobatchClock]], None] = lambda clocks: None,
    ) -> tuple[list[MicrobatchClock], float]:
        """Run one iteration: every microbatch in flight, from prompt to drain.

        Args:
            streams: one per microbatch.
            mark: called as each phase begins.
            token_count: number of new tokens of each request; T if it is not given.
            on_generated: called once all tokens are known, before the drain.

        Returns:
            The microbatches' clocks, and the makespan in milliseconds from the first submission to
            the last drain.

        Raises:
            LogitsError: tokens were chosen from logits that are NaN or infinite.
        """
        clocks = self.make_clocks()
        step_count = self.output_len if token_count is None else token_count
        mark("prompt")
        began_s = self._now()
        for step in range(step_count):
            if step == 1:
                mark("tokens")
            for microbatch, (clock, stream) in enumerate(zip(clocks, streams, strict=True)):
                self._take_step(step, microbatch, clock, stream)
        self._finish_steps(clocks)
        on_generated(clocks)
        mark("drain")
        self.drain(clocks, streams)
        makespan_ms = (self._now() - began_s) * 1e3
        # Outside the clock: this only waits for the buffers of messages that others still receive.
        self.collectives.finish()
        for microbatch, clock in enumerate(clocks):
            clock.event_ms = self.steps.take_event_ms(microbatch)
        check_logits(self.steps, self.prompts, self.model.dtype)
        return clocks, makespan_ms

    def decode(
        self,
        clocks: list[MicrobatchClock],
        streams: list[MicrobatchStream],
        first_step: int,
        stop: int,
    ) -> None:
        """Run decode steps [first_step, stop) of every microbatch, over caches that hold the past.

        Args:
            clocks: on the first stage they hold the tokens of the steps before ``first_step``.
        """
        for microbatch, (clock, prompts) in enumerate(zip(clocks, self.prompts, strict=True)):
            # The prompt fills P positions and step k position P + k − 1: we go on there.
            newest_tokens = clock.tokens[-1] if self.model.is_first_stage else None
            self.steps.prepare_decode(microbatch, prompts.shape[1] + first_step - 1, newest_tokens)
        for step in range(first_step, stop):
            for microbatch, (clock, stream) in enumerate(zip(clocks, streams, strict=True)):
                self._take_step(step, microbatch, clock, stream)
        self._finish_steps(clocks)
        self.collectives.finish()
        for microbatch, clock in enumerate(clocks):
            clock.event_ms += self.steps.take_event_ms(microbatch)
        check_logits(self.steps, self.prompts, self.model.dtype)

    def drain(self, clocks: list[MicrobatchClock], streams: list[MicrobatchStream]) -> None:
        """Wait for the last byte of every microbatch's stream."""
        for clock, stream in zip(clocks, streams, strict=True):
            clock.drain_began_s = self._now()
            stream.drain()
            clock.drain_ms = (self._now() - clock.drain_began_s) * 1e3

    def _take_step(
        self, step: int, microbatch: int, clock: MicrobatchClock, stream: MicrobatchStream
    ) -> None:
        """Take one microbatch one step further; see the drawings in :mod:`.clock`."""
        x = self._stage.begin_step(step, microbatch, clock)
        position = self.prompts[microbatch].shape[1] + step - 1 if step else 0
        liveness.count_progress()
        if self._before_step is not None:
            self._before_step(microbatch, step)
        # Only a prompt is streamed layer by layer: a token step is one chunk, ready at its end.
        on_layer = None if step else _report_progress(stream.layer_ready)
        out = self.steps.run(microbatch, x, position, on_layer)
        clock.compute_ended_s = self._now()
        self._stage.after_launch(microbatch, clock, out)
        # The streams of the first stage also keep the token ids that went into each step. The token
        # of step − 1 is known even where steps run ahead: after_launch() has just waited for it.
        input_tokens = (
            clock.tokens[step - 1].numpy() if step and self.model.is_first_stage else None
        )
        stream.step_ready(step, input_tokens)
        self._stage.after_streaming(step, microbatch, clock)

    def _finish_steps(self, clocks: list[MicrobatchClock]) -> None:
        for microbatch, clock in enumerate(clocks):
            self._stage.finish(microbatch, clock)


def tokens_of(clocks: list[MicrobatchClock]) -> torch.Tensor:
    """Return the new tokens [U, B, T] of an iteration; empty on stages that do not see them."""
    if not clocks[0].tokens:
        return torch.empty(0)
    return torch.stack([torch.stack(clock.tokens, dim=1) for clock in clocks])
