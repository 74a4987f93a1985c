"""The batch maker: the order in which a step is begun, streamed and waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dejavubench.bench.engine.batch_maker import BatchMaker
from dejavubench.bench.engine.logits import LogitsError
from dejavubench.bench.engine.microbatch_stream import NoStreaming
from helpers.fake_steps import EmptySteps, collectives_of_one_rank, model_of_one_stage

PROMPT, NEW_TOKENS = 5, 4
WAIT, TICK = 0.5, 0.001
"""Seconds that a step's streaming takes in one test, and between two looks at the clock."""


class Journal(NoStreaming, EmptySteps):
    """Steps that do nothing, and the calls of their streaming. A step's token is its number."""

    def __init__(self, runs_ahead: bool, wait_at: int | None) -> None:
        super().__init__()
        self.wait_at = wait_at
        self.runs_ahead = runs_ahead
        self.check = 1.0
        self.calls: list[str] = []
        self.positions: list[int] = []
        self.seconds = 0.0
        self.known: list[Any] = []
        self._waited = 0

    def run(
        self,
        microbatch: int,
        x: torch.Tensor,
        position: int,
        on_layer: Callable[[int], None] | None,
    ) -> torch.Tensor:
        self.calls.append(f"run {len(self.positions)}")
        self.positions.append(position)
        return torch.empty(0)

    def wait(self, microbatch: int) -> torch.Tensor:
        self.calls.append(f"token {self._waited}")
        self._waited += 1
        return torch.tensor([self._waited - 1])

    def take_checks(self, microbatch: int) -> list[tuple[int, torch.Tensor]]:
        token_logits = [1.0, self.check, 1.0, 1.0]  # of the new token 1 of request 0
        return [
            (PROMPT + step, torch.tensor([token_logits[step]]))
            for step in range(len(self.positions))
        ]

    def step_ready(self, step: int, tokens: np.ndarray | None = None) -> None:
        self.calls.append(f"stream {step}")
        if step == self.wait_at:
            self.seconds += WAIT
        self.known.append(None if tokens is None else tokens.tolist())

    def drain(self) -> None:
        self.calls.append("drain")

    def now(self) -> float:
        self.seconds += TICK
        return self.seconds


def run_journal(
    runs_ahead: bool, new_tokens: int = NEW_TOKENS, wait_at: int | None = None, check: float = 1.0
) -> tuple[Journal, Any]:
    journal = Journal(runs_ahead, wait_at)
    journal.check = check
    model, alone = model_of_one_stage(), collectives_of_one_rank()
    prompt = torch.zeros(1, PROMPT, dtype=torch.long)
    maker = BatchMaker(model, journal, alone, [prompt], new_tokens, now=journal.now)
    (clock,), _ = maker.run([journal], journal.calls.append)
    return journal, clock


def test_a_step_that_needs_its_tokens_waits_for_them() -> None:
    journal, _ = run_journal(runs_ahead=False)
    steps = [
        call
        for step in range(1, NEW_TOKENS)
        for call in (f"run {step}", f"stream {step}", f"token {step}")
    ]
    assert journal.calls == [
        "prompt",
        "run 0",
        "stream 0",
        "token 0",
        "tokens",
        *steps,
        "drain",
        "drain",
    ]


def test_a_step_that_feeds_itself_begins_before_the_last_token_is_known() -> None:
    """But phases do not overlap: the prompt's token is waited for first."""
    journal, _ = run_journal(runs_ahead=True)
    assert journal.calls == [
        *("prompt", "run 0", "stream 0", "token 0"),
        *(
            "tokens",
            "run 1",
            "stream 1",
            "run 2",
            "token 1",
            "stream 2",
            "run 3",
            "token 2",
            "stream 3",
            "token 3",
        ),
        *("drain", "drain"),
    ]


def test_streaming_gets_the_tokens_of_each_step_and_the_clock_has_all_of_them() -> None:
    for runs_ahead in (False, True):
        journal, clock = run_journal(runs_ahead)
        assert journal.known == [None, [0], [1], [2]]
        assert journal.positions == [0, PROMPT, PROMPT + 1, PROMPT + 2]
        assert torch.equal(torch.cat(clock.tokens), torch.arange(NEW_TOKENS))
        assert len(clock.step_ms) == NEW_TOKENS
        assert sum(clock.step_ms[1:]) <= clock.all_token_ms + 1e-6


def test_steps_that_run_ahead_are_clocked_one_behind_the_other() -> None:
    _, clock = run_journal(runs_ahead=True)
    assert abs(sum(clock.step_ms[2:]) - (clock.all_token_ms - clock.step_ms[1])) < 1e-6


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_waiting_for_a_steps_streaming_is_in_its_own_time(runs_ahead: bool) -> None:
    """As at the levels that do not overlap."""
    _, clock = run_journal(runs_ahead, wait_at=2)
    assert clock.step_ms[2] >= WAIT * 1e3
    assert max(clock.step_ms[:2] + clock.step_ms[3:]) < WAIT * 1e3


def test_the_clock_of_one_token_has_no_steps() -> None:
    for runs_ahead in (False, True):
        journal, clock = run_journal(runs_ahead, new_tokens=1)
        assert journal.calls == ["prompt", "run 0", "stream 0", "token 0", "drain", "drain"]
        assert clock.all_token_ms == 0.0


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("check", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_end_the_iteration_and_are_located(
    runs_ahead: bool, check: float
) -> None:
    words = (
        rf"new token 1 of request 0 in microbatch 0 are NaN or infinite \({check}\).*range of fp16"
    )
    with pytest.raises(LogitsError, match=words):
        run_journal(runs_ahead, check=check)
