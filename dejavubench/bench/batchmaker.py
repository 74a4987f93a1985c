"""The batch maker: takes microbatches through prompt, tokens and drain, and clocks them.

With pipeline depth U there are U microbatches in flight; each stage takes them in turn. Stage 0 clocks a
step from its submission to its token's return, the other stages from hidden states in to hidden states out. A step
that was submitted while the one before it still ran is clocked from that one's return: what its request waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from dejavubench.bench.steps import Steps
from dejavubench.dejavulib import pulse
from dejavubench.dejavulib.streamer import Streaming
from dejavubench.errors import DataError
from dejavubench.models.dtypes import name_of
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives


class Streamed(Protocol):
    """What the batch maker tells of a microbatch's cache; ``CacheManager`` is one."""

    prompt: Streaming
    tokens: Streaming
    draining: Streaming

    def begin(self, tokens: np.ndarray | None = None) -> None: ...
    def layer_ready(self, layer: int) -> None: ...
    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None: ...
    def drain(self) -> None: ...


class NoStreaming:
    """``none``: the model runs, nothing leaves."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, tokens: np.ndarray | None = None) -> None:
        self.prompt, self.tokens, self.draining = Streaming(), Streaming(), Streaming()

    def layer_ready(self, layer: int) -> None:
        return

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        return

    def drain(self) -> None:
        return


@dataclass
class Clocked:
    """One microbatch's times in milliseconds, and the tokens [T, B] that this rank knows of.

    ``event_ms``: a CUDA device's own time of each step; empty on the CPU.
    """

    step_ms: list[float] = field(default_factory=list)
    event_ms: list[float] = field(default_factory=list)
    all_token_ms: float = 0.0
    drain_ms: float = 0.0
    tokens: list[torch.Tensor] = field(default_factory=list)
    computed: float = 0.0  # when the newest step was, by the clock of the others
    _submitted: deque[float] = field(default_factory=deque)  # steps under way
    _returned: float = 0.0
    _tokens_began: float = 0.0

    def submit(self) -> None:
        self._submitted.append(time.perf_counter())

    def returned(self) -> None:
        now, began = time.perf_counter(), max(self._submitted.popleft(), self._returned)
        if len(self.step_ms) == 1:
            self._tokens_began = began
        self.step_ms.append((now - began) * 1e3)
        if len(self.step_ms) > 1:
            self.all_token_ms = (now - self._tokens_began) * 1e3
        self._returned = now

    @property
    def under_way(self) -> int:
        """Steps that were submitted and have not returned."""
        return len(self._submitted)

    @property
    def total_ms(self) -> float:
        return self.step_ms[0] + self.all_token_ms + self.drain_ms


class LogitsError(DataError):
    """Logits are no numbers; the message says which."""


def _noting(layer_ready: Callable[[int], None]) -> Callable[[int], None]:
    """The same, and each layer is progress: a long prompt of a large model takes minutes."""

    def ready(layer: int) -> None:
        pulse.progress()
        layer_ready(layer)

    return ready


class BatchMaker:
    """Runs iterations on one source.

    Args:
        model: this worker's part.
        steps: what runs it, over the caches of the microbatches in flight.
        collectives: messages between the stages.
        prompts: token ids [B, P] of each microbatch in flight.
        output_len: new tokens T of each request.
        before_step: called with a microbatch and a step right before the model runs it, within the step's clock.
    """

    def __init__(
        self,
        model: GPT,
        steps: Steps,
        collectives: Collectives,
        prompts: list[torch.Tensor],
        output_len: int,
        before_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model
        self.steps = steps
        self.collectives = collectives
        self.prompts = prompts
        self.output_len = output_len
        self.before_step = before_step

    def run(
        self,
        streams: list[Streamed],
        mark: Callable[[str], None],
        tokens: int | None = None,
        on_generated: Callable[[list[Clocked]], None] = lambda clocks: None,
    ) -> tuple[list[Clocked], float]:
        """One iteration: every microbatch in flight from prompt to drain.

        Args:
            streams: one a microbatch.
            mark: told, outside the phases' clocks, which phase begins.
            tokens: new ones of each request; without it T.
            on_generated: called once all tokens are known, before the drain.

        Returns:
            The microbatches' clocks, and the makespan in milliseconds from the first submission to the last drain.

        Raises:
            LogitsError: tokens were chosen from logits that are NaN or infinite.
        """
        clocks = [Clocked() for _ in self.prompts]
        tokens = tokens or self.output_len
        mark("prompt")
        began = time.perf_counter()
        for step in range(tokens):
            if step == 1:
                mark("tokens")
            for ubatch in range(len(clocks)):
                self._step(step, ubatch, clocks[ubatch], streams[ubatch])
        self._return_last(clocks)
        on_generated(clocks)
        mark("drain")
        self.drain(clocks, streams)
        makespan = (time.perf_counter() - began) * 1e3
        self.collectives.finish()
        for ubatch, clock in enumerate(clocks):
            clock.event_ms = self.steps.event_ms(ubatch)
        self._check_logits()
        return clocks, makespan

    def go_on(self, clocks: list[Clocked], streams: list[Streamed], first: int, stop: int) -> None:
        """Decode steps [first, stop) of every microbatch, over caches that hold what was before.

        Args:
            clocks: on the first stage they hold the tokens before.
        """
        for ubatch, (clock, prompts) in enumerate(zip(clocks, self.prompts, strict=True)):
            known = clock.tokens[-1] if self.model.shard.first else None
            self.steps.go_on(ubatch, prompts.shape[1] + first - 1, known)
        for step in range(first, stop):
            for ubatch, (clock, stream) in enumerate(zip(clocks, streams, strict=True)):
                self._step(step, ubatch, clock, stream)
        self._return_last(clocks)
        self.collectives.finish()
        self._check_logits()

    def _check_logits(self) -> None:
        """Raise LogitsError if tokens were chosen from logits that mean nothing; outside the clock."""
        outgrown = (
            f"Numbers outgrew the range of {name_of(self.model.dtype)}, or the weights are damaged"
        )
        for ubatch, prompts in enumerate(self.prompts):
            peaks = self.steps.peaks(ubatch)
            if not peaks:  # another stage has them
                continue
            values = torch.stack([values for _, values in peaks]).float().cpu()
            if not values.isfinite().all():
                step, request = values.isfinite().logical_not().nonzero()[0].tolist()
                raise LogitsError(
                    f"the logits of new token {peaks[step][0] - prompts.shape[1]} of request {request} in microbatch "
                    f"{ubatch} are NaN or infinite ({values[step, request]}): its tokens mean nothing. {outgrown}"
                )
            zero = (values == 0).all(
                dim=0
            )  # a norm makes 0 of all values where the square of one is infinite
            if zero.any():
                raise LogitsError(
                    f"all logits of request {int(zero.nonzero()[0])} in microbatch {ubatch} are 0: "
                    f"its tokens mean nothing. {outgrown}"
                )

    def drain(self, clocks: list[Clocked], streams: list[Streamed]) -> None:
        """Wait for what is left of every microbatch's stream."""
        for clock, stream in zip(clocks, streams, strict=True):
            drain_began = time.perf_counter()
            stream.drain()
            clock.drain_ms = (time.perf_counter() - drain_began) * 1e3

    def _return_last(self, clocks: list[Clocked]) -> None:
        for ubatch, clock in enumerate(clocks):
            self._return_token(ubatch, clock)
            if clock.under_way and self.model.shard.last:
                self._returned(ubatch, clock)

    def _step(self, step: int, ubatch: int, clock: Clocked, stream: Streamed) -> None:
        shard = self.model.shard
        x = self._input(step, ubatch, clock)
        position = self.prompts[ubatch].shape[1] + step - 1 if step else 0
        pulse.progress()
        if self.before_step is not None:
            self.before_step(ubatch, step)
        out = self.steps.run(ubatch, x, position, None if step else _noting(stream.layer_ready))
        clock.computed = time.perf_counter()
        if not shard.last:
            self.collectives.send_hidden(out, ubatch)
        elif not shard.first:
            self.collectives.send_tokens(out, ubatch)
        if (
            self.steps.ahead and clock.under_way > 1
        ):  # the one before, while this one runs; phases do not overlap
            self._returned(ubatch, clock)
        known = clock.tokens[step - 1].numpy() if shard.first and step else None
        stream.step_ready(step, known)
        if not self.steps.ahead or step == 0:
            self._returned(ubatch, clock)

    def _returned(self, ubatch: int, clock: Clocked) -> None:
        """The oldest step under way is over, on stages that do not wait for a later one's token."""
        shard = self.model.shard
        if shard.first and not shard.last:
            return
        tokens = self.steps.wait(ubatch)
        if shard.last:
            clock.tokens.append(tokens)
        clock.returned()

    def _input(self, step: int, ubatch: int, clock: Clocked) -> torch.Tensor:
        """Tokens on the first stage, hidden states elsewhere; starts the step's clock."""
        shard = self.model.shard
        if not shard.first:
            shape = (
                *self.prompts[ubatch].shape[: 1 if step else 2],
                *((1,) if step else ()),
                self.model.spec.hidden,
            )
            hidden = self.collectives.recv_hidden(shape, self.model.compute_dtype, ubatch)
            clock.submit()
            return hidden
        if step == 0:
            clock.submit()
            return self.prompts[ubatch]
        self._return_token(ubatch, clock)
        clock.submit()
        return clock.tokens[-1].unsqueeze(1)  # steps that run ahead have newer ones of their own

    def _return_token(self, ubatch: int, clock: Clocked) -> None:
        """On the first of several stages: the newest token comes back from the last one."""
        shard = self.model.shard
        if shard.first and not shard.last and clock.under_way:
            clock.tokens.append(
                self.collectives.recv_tokens(self.prompts[ubatch].shape[0], ubatch).cpu()
            )
            clock.returned()
