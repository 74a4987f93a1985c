"""The clock's three cases, in made-up time: which moments a step's clock starts and stops at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dejavubench.bench.engine.batch_maker import BatchMaker
from dejavubench.bench.engine.clock import (
    AheadStage,
    FirstStage,
    LaterStage,
    MicrobatchClock,
    WaitingStage,
    make_stage,
)
from dejavubench.bench.engine.microbatch_stream import NoStreaming
from dejavubench.models.gpt import GPT
from dejavubench.parallel.collectives import Collectives
from helpers.fake_steps import EmptySteps

PROMPT, TOKEN = 100.0, 10.0
"""Seconds that the model computes."""

STREAM, DRAIN, IDLE = 2.0, 5.0, 50.0
"""Seconds of handing a step to streaming, of the drain, and between two microbatches' messages."""

NEW_TOKENS = 4


class Time:
    """A clock that stands still until somebody takes time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def take(self, seconds: float) -> None:
        self.seconds += seconds

    def until(self, then: float) -> None:
        self.seconds = max(self.seconds, then)


class SlowStreaming(NoStreaming):
    """Streaming whose every step takes time, and the step of ``waits`` much more."""

    def __init__(self, time: Time, waits: dict[int, float] | None = None) -> None:
        super().__init__()
        self._time, self._waits = time, waits or {}

    def step_ready(self, step: int, tokens: Any = None) -> None:
        self._time.take(STREAM + self._waits.get(step, 0.0))

    def drain(self) -> None:
        self._time.take(DRAIN)


class Steps(EmptySteps):
    """A model that only takes time: on the host, or on a device that works through a queue."""

    def __init__(self, time: Time, on_device: bool = False) -> None:
        self.runs_ahead = on_device
        self._time = time
        self._device_free = 0.0
        self._ends: deque[float] = deque()

    def run(
        self,
        microbatch: int,
        x: torch.Tensor,
        position: int,
        on_layer: Callable[[int], None] | None,
    ) -> torch.Tensor:
        duration_s = TOKEN if position else PROMPT
        if self.runs_ahead:
            self._device_free = max(self._device_free, self._time.now()) + duration_s
            self._ends.append(self._device_free)
        else:
            self._time.take(duration_s)
        return torch.zeros(1, dtype=torch.long)

    def wait(self, microbatch: int) -> torch.Tensor:
        if self.runs_ahead:
            self._time.until(self._ends.popleft())
        return torch.zeros(1, dtype=torch.long)


class Messages:
    """The other stages: whatever is received takes the time that they need."""

    def __init__(self, time: Time) -> None:
        self._time = time
        self.sent: list[str] = []

    def send_hidden(self, hidden: torch.Tensor, microbatch: int) -> None:
        self.sent.append("hidden")

    def send_tokens(self, tokens: torch.Tensor, microbatch: int) -> None:
        self.sent.append("tokens")

    def recv_hidden(
        self, shape: Sequence[int], dtype: torch.dtype, microbatch: int
    ) -> torch.Tensor:
        self._time.take(IDLE)
        return torch.zeros(*shape, dtype=dtype)

    def recv_tokens(self, ubatch_size: int, microbatch: int) -> torch.Tensor:
        self._time.take(IDLE)
        return torch.zeros(ubatch_size, dtype=torch.long)

    def finish(self) -> None:
        return


def make_model(first: bool, last: bool) -> GPT:
    stand_in = SimpleNamespace(
        is_first_stage=first,
        is_last_stage=last,
        spec=SimpleNamespace(hidden=8),
        dtype=torch.float16,
        compute_dtype=torch.float16,
    )
    return cast(GPT, stand_in)


def run_microbatches(
    first: bool = True,
    last: bool = True,
    on_device: bool = False,
    microbatches: int = 1,
    waits: dict[int, float] | None = None,
) -> tuple[list[MicrobatchClock], float, Messages]:
    time = Time()
    messages = Messages(time)
    maker = BatchMaker(
        make_model(first, last),
        Steps(time, on_device),
        cast(Collectives, messages),
        [torch.zeros(1, 7, dtype=torch.long) for _ in range(microbatches)],
        NEW_TOKENS,
        now=time.now,
    )
    streams = [SlowStreaming(time, waits) for _ in range(microbatches)]
    clocks, makespan = maker.run(list(streams), lambda phase: None)
    return clocks, makespan, messages


def step_seconds(clock: MicrobatchClock) -> list[float]:
    return [ms / 1e3 for ms in clock.step_ms]


@pytest.mark.parametrize(
    ("first", "last", "on_device", "kind"),
    [
        (True, True, False, WaitingStage),
        (True, True, True, AheadStage),
        (True, False, False, FirstStage),
        (False, False, False, LaterStage),
        (False, True, False, LaterStage),
    ],
)
def test_the_place_in_the_pipeline_chooses_the_case(
    first: bool, last: bool, on_device: bool, kind: type
) -> None:
    time = Time()
    messages = cast(Collectives, Messages(time))
    stage = make_stage(make_model(first, last), Steps(time, on_device), messages, [])
    assert type(stage) is kind


def test_a_stage_that_waits_counts_model_and_streaming_of_every_step() -> None:
    (clock,), makespan, _ = run_microbatches()
    assert step_seconds(clock) == [PROMPT + STREAM] + [TOKEN + STREAM] * (NEW_TOKENS - 1)
    assert clock.all_token_ms == (TOKEN + STREAM) * (NEW_TOKENS - 1) * 1e3
    assert clock.drain_ms == DRAIN * 1e3
    assert clock.total_ms == makespan == sum(clock.step_ms) + DRAIN * 1e3


def test_a_step_ahead_is_clocked_from_the_return_of_the_step_before() -> None:
    """Streaming beside the device's work costs nothing; phases follow one another without a gap."""
    (clock,), makespan, _ = run_microbatches(on_device=True)
    assert step_seconds(clock) == pytest.approx([PROMPT] + [TOKEN] * (NEW_TOKENS - 1))
    assert clock.all_token_ms == pytest.approx(sum(clock.step_ms[1:]))
    assert makespan == pytest.approx(clock.total_ms)


def test_a_wait_for_streaming_counts_for_its_own_step_even_if_the_next_runs_ahead() -> None:
    """At the levels that do not overlap the device idles while step 2 is waited for."""
    (clock,), _, _ = run_microbatches(on_device=True, waits={2: 500.0})
    steps = step_seconds(clock)
    assert steps[2] > 500.0
    assert max(steps[1], steps[3]) < 2 * (TOKEN + STREAM)


def test_the_first_of_several_stages_counts_until_its_token_is_back() -> None:
    (clock,), makespan, messages = run_microbatches(last=False)
    rest = STREAM + IDLE
    assert step_seconds(clock) == [PROMPT + rest] + [TOKEN + rest] * (NEW_TOKENS - 1)
    assert len(clock.tokens) == NEW_TOKENS
    assert messages.sent == ["hidden"] * NEW_TOKENS
    assert makespan == pytest.approx(clock.total_ms)


@pytest.mark.parametrize("last", [False, True])
def test_a_later_stage_counts_its_own_part_alone(last: bool) -> None:
    """Waiting for hidden states is the time of other stages, and of no step here."""
    (clock,), makespan, messages = run_microbatches(first=False, last=last)
    assert step_seconds(clock) == [PROMPT + STREAM] + [TOKEN + STREAM] * (NEW_TOKENS - 1)
    assert len(clock.tokens) == (NEW_TOKENS if last else 0)
    assert messages.sent == ["tokens" if last else "hidden"] * NEW_TOKENS
    assert makespan > clock.total_ms


def test_microbatches_in_flight_take_turns_and_each_waits_for_the_others() -> None:
    clocks, makespan, _ = run_microbatches(last=False, microbatches=2)
    first_step_s, second_step_s = (step_seconds(clock) for clock in clocks)
    # The first token of the one comes back only after the other one's prompt was begun.
    assert first_step_s[0] == 2 * (PROMPT + STREAM) + IDLE
    assert second_step_s[0] == PROMPT + STREAM + IDLE + TOKEN + STREAM + IDLE
    assert makespan < sum(clock.total_ms for clock in clocks)
