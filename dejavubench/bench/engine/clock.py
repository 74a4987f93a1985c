"""The clock: when a step of a microbatch begins, and when it is over.

A step is one pass of a microbatch through this worker's part of the model: the prompt, or one new
token. :class:`MicrobatchClock` holds the times. A *stage* decides when to read them, because a
step is over at different moments in three cases. :func:`make_stage` chooses the case.
"""

# In the drawings `s` is start_step() and `r` is stop_step(). `run` computes the step or launches it
# on a device. `stream` is step_ready(), which hands the step's keys and values to streaming, and
# below level 3 waits for them. `token` is the wait for the step's token. Time runs to the right.
#
# Case 1, WaitingStage: a single stage that waits for every token (a CPU).
#
#   host     s0 run stream token r0  s1 run stream token r1  s2 run stream token r2
#   step_ms  |------ PROMPT -----|   |----- TOKEN 1 -----|   |----- TOKEN 2 -----|
#
# Case 2, AheadStage: a single stage on a CUDA device. The device feeds its own token into the next
# step, so the host launches step n + 1 before it waits for step n. The device never idles.
#
#   device      [== prompt ==]      [====== step 1 ======][===== step 2 =====][== step 3 ==]
#   host     s0 run stream   r0  s1 run stream s2 run    r1 stream s3 run    r2 stream     r3
#   step_ms  |---- PROMPT ---|   |------- TOKEN 1 -------||---- TOKEN 2 -----||- TOKEN 3 --|
#
#   Step 2 is submitted while step 1 still runs. Its clock starts when step 1 returned, not when it
#   was submitted: phases never overlap, and the request waited for the step no longer than that.
#   The wait for a step's streaming falls between its run and its return, so it is in its own time.
#
# Case 3, FirstStage and LaterStage: several pipeline stages. The last stage chooses the token and
# sends it to the first one. The first stage clocks a step from submission to its token's return:
# that is what a request waits for. Each later stage clocks its own part, from hidden states in to
# its result on the host. Between its steps a stage serves the other microbatches in flight.
#
#   first    s0 run send stream    (other microbatches)    receive token r0  s1 run send ...
#   step_ms  |-------------------------- PROMPT -------------------------|   |- TOKEN 1 ...
#
#   later    receive hidden s0 run send stream wait r0  (others)  receive hidden s1 run ...
#   step_ms                 |-------- PROMPT -------|                            |- TOKEN 1 ...

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dejavubench.bench.engine.steps import Steps
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives


@dataclass
class MicrobatchClock:
    """The times of one microbatch on one source, in milliseconds, and its tokens.

    Attributes:
        now: the clock that is read, in seconds.
        step_ms: each step that has returned; the first one is the prompt.
        event_ms: each step by the CUDA device's own events; empty on a CPU.
        all_token_ms: from the beginning of step 1 to the return of the newest step.
        drain_ms: the wait for the last byte.
        tokens: new tokens [B] of each step; empty on stages that do not see them.
        compute_ended_s: when the newest computation ended, by ``now``.
        steps_began_s: when the clock of each step in ``step_ms`` started, by ``now``.
        drain_began_s: when the drain began, by ``now``.
    """

    now: Callable[[], float] = time.perf_counter
    step_ms: list[float] = field(default_factory=list)
    event_ms: list[float] = field(default_factory=list)
    all_token_ms: float = 0.0
    drain_ms: float = 0.0
    tokens: list[Tensor] = field(default_factory=list)
    compute_ended_s: float = 0.0
    steps_began_s: list[float] = field(default_factory=list)
    drain_began_s: float = 0.0
    _submitted_at_s: deque[float] = field(default_factory=deque)
    _returned_at_s: float = 0.0
    _tokens_began_s: float = 0.0

    def start_step(self) -> None:
        """Start the clock of the next step."""
        self._submitted_at_s.append(self.now())

    def stop_step(self) -> None:
        """Stop the clock of the oldest step under way."""
        now_s = self.now()
        # A step that was launched ahead waited behind the step before. That time is not its own.
        began_s = max(self._submitted_at_s.popleft(), self._returned_at_s)
        if len(self.step_ms) == 1:  # the prompt has returned, so this is step 1
            self._tokens_began_s = began_s
        self.steps_began_s.append(began_s)
        self.step_ms.append((now_s - began_s) * 1e3)
        if len(self.step_ms) > 1:
            self.all_token_ms = (now_s - self._tokens_began_s) * 1e3
        self._returned_at_s = now_s

    @property
    def returned_s(self) -> float:
        """When the newest step returned, by ``now``."""
        return self._returned_at_s

    @property
    def under_way(self) -> int:
        """Number of steps that were submitted and have not returned."""
        return len(self._submitted_at_s)

    @property
    def total_ms(self) -> float:
        """TOTAL: the sum of PROMPT, ALL-TOKEN and DRAIN."""
        return self.step_ms[0] + self.all_token_ms + self.drain_ms


class Stage(Protocol):
    """One pipeline stage's way to get a step's input, pass on its output, and see that it is over.

    The batch maker calls these methods for each step in this order, with the model's step between
    :meth:`begin_step` and :meth:`after_launch`.
    """

    def begin_step(self, step: int, microbatch: int, clock: MicrobatchClock) -> Tensor:
        """Wait for the step's tokens or hidden states, and start its clock."""

    def after_launch(self, microbatch: int, clock: MicrobatchClock, out: Tensor) -> None:
        """Pass on what the step computes."""

    def after_streaming(self, step: int, microbatch: int, clock: MicrobatchClock) -> None:
        """Stop the step's clock, now that its cache was handed to streaming, if it ends here."""

    def finish(self, microbatch: int, clock: MicrobatchClock) -> None:
        """Stop the clock of the last step, if it is still running."""


class WaitingStage:
    """Case 1: the only stage waits for each token before it begins the next step."""

    def __init__(self, steps: Steps, prompts: Sequence[Tensor]) -> None:
        self._steps = steps
        self._prompts = prompts

    def begin_step(self, step: int, microbatch: int, clock: MicrobatchClock) -> Tensor:
        """Start the clock; return the prompt [B, P] or the newest tokens [B, 1]. Never waits."""
        clock.start_step()
        return clock.tokens[-1].unsqueeze(1) if step else self._prompts[microbatch]

    def after_launch(self, microbatch: int, clock: MicrobatchClock, out: Tensor) -> None:
        """Pass nothing on: no other stage needs the output."""

    def after_streaming(self, step: int, microbatch: int, clock: MicrobatchClock) -> None:
        """Wait for the step's tokens, and stop its clock."""
        self._end_step(microbatch, clock)

    def finish(self, microbatch: int, clock: MicrobatchClock) -> None:
        """Do nothing: each step has ended in :meth:`after_streaming`."""

    def _end_step(self, microbatch: int, clock: MicrobatchClock) -> None:
        clock.tokens.append(self._steps.wait(microbatch))
        clock.stop_step()


class AheadStage(WaitingStage):
    """Case 2: the only stage begins each token step before it waits for the step before."""

    def after_launch(self, microbatch: int, clock: MicrobatchClock, out: Tensor) -> None:
        """Wait for the step before and stop its clock, now that the device has the next one."""
        if clock.under_way > 1:  # two steps are on the device: wait for the older one
            self._end_step(microbatch, clock)

    def after_streaming(self, step: int, microbatch: int, clock: MicrobatchClock) -> None:
        """Wait for the prompt's token and stop its clock; decode steps stay under way."""
        if step == 0:  # PROMPT ends with the first token; nothing runs ahead of it
            self._end_step(microbatch, clock)

    def finish(self, microbatch: int, clock: MicrobatchClock) -> None:
        """Wait for the last step, behind which no other was launched."""
        if clock.under_way:
            self._end_step(microbatch, clock)


class FirstStage:
    """Case 3: the first of several stages, whose tokens come back from the last one."""

    def __init__(self, collectives: Collectives, prompts: Sequence[Tensor]) -> None:
        self._collectives = collectives
        self._prompts = prompts

    def begin_step(self, step: int, microbatch: int, clock: MicrobatchClock) -> Tensor:
        """End the step before, and start the clock; return the prompt [B, P] or tokens [B, 1]."""
        self.finish(microbatch, clock)  # this step's input is the token of the step before
        clock.start_step()
        return clock.tokens[-1].unsqueeze(1) if step else self._prompts[microbatch]

    def after_launch(self, microbatch: int, clock: MicrobatchClock, out: Tensor) -> None:
        """Send the hidden states [B, n, hidden] to the next stage."""
        self._collectives.send_hidden(out, microbatch)

    def after_streaming(self, step: int, microbatch: int, clock: MicrobatchClock) -> None:
        """Leave the clock running: the step ends when its tokens come back."""

    def finish(self, microbatch: int, clock: MicrobatchClock) -> None:
        """Wait for the tokens of the step under way, if there is one, and stop its clock."""
        if clock.under_way:
            request_count = self._prompts[microbatch].shape[0]
            clock.tokens.append(self._collectives.recv_tokens(request_count, microbatch).cpu())
            clock.stop_step()


class LaterStage:
    """Case 3: a middle stage, or the last one, which clocks its own part of each step."""

    def __init__(
        self, model: GPT, steps: Steps, collectives: Collectives, prompts: Sequence[Tensor]
    ) -> None:
        self._is_last_stage = model.is_last_stage
        self._hidden_size = model.spec.hidden
        self._dtype = model.compute_dtype
        self._steps = steps
        self._collectives = collectives
        self._prompts = prompts

    def begin_step(self, step: int, microbatch: int, clock: MicrobatchClock) -> Tensor:
        """Wait for hidden states [B, n, hidden], and start the clock once they are here."""
        request_count, position_count = self._prompts[microbatch].shape
        shape = (request_count, 1 if step else position_count, self._hidden_size)
        hidden = self._collectives.recv_hidden(shape, self._dtype, microbatch)
        clock.start_step()
        return hidden

    def after_launch(self, microbatch: int, clock: MicrobatchClock, out: Tensor) -> None:
        """Send hidden states to the next stage, or new tokens [B] to the first one."""
        if self._is_last_stage:
            self._collectives.send_tokens(out, microbatch)
        else:
            self._collectives.send_hidden(out, microbatch)

    def after_streaming(self, step: int, microbatch: int, clock: MicrobatchClock) -> None:
        """Wait for this stage's own result, and stop the step's clock."""
        # The wait counts as this stage's time: on a device the step was only launched so far.
        tokens = self._steps.wait(microbatch)
        if self._is_last_stage:
            clock.tokens.append(tokens)
        clock.stop_step()

    def finish(self, microbatch: int, clock: MicrobatchClock) -> None:
        """Do nothing: each step has ended in :meth:`after_streaming`."""


def make_stage(
    model: GPT, steps: Steps, collectives: Collectives, prompts: Sequence[Tensor]
) -> Stage:
    """Return the case of this worker; ``prompts``: token ids [B, P] of each microbatch."""
    if model.is_first_stage and model.is_last_stage:
        return AheadStage(steps, prompts) if steps.runs_ahead else WaitingStage(steps, prompts)
    if model.is_first_stage:
        return FirstStage(collectives, prompts)
    return LaterStage(model, steps, collectives, prompts)
