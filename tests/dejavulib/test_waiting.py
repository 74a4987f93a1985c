"""Waking one thread from another loses nothing, and waits look no more often than they must."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import accumulate
from typing import cast

import pytest

from dejavubench.dejavulib import waiting
from dejavubench.dejavulib.receiver import (
    LONGEST_FIRST_NAP_S,
    LONGEST_NAP_S,
    NAP_SHARE,
    CacheReceiver,
    receive_all,
)
from dejavubench.dejavulib.waiting import EAGER_NAPS, FIRST_NAP_S, LAZY_NAPS, Naps, Wake


def test_a_wake_that_was_set_before_the_wait_is_not_lost() -> None:
    wake = Wake()
    assert not wake.wait(0.0)
    wake.set()
    wake.set()  # once more makes no difference
    assert wake.wait(0.0)
    assert not wake.wait(0.001)


def test_two_threads_take_turns_with_the_shortest_of_timeouts() -> None:
    """A timeout that has passed before the wait begins must not become an endless one."""
    question, reply, turns, answers = Wake(), Wake(), 3000, 0

    def answer() -> None:
        nonlocal answers
        while answers < turns:
            if question.wait(1e-6):
                answers += 1
                reply.set()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    for _ in range(turns):
        question.set()
        assert reply.wait(30.0)
    thread.join(30.0)
    assert answers == turns


CLOCK_STEP_S = 1e-6
"""Made-up time that passes whenever somebody reads the clock."""


def _looks_and_lateness(
    naps: Naps, wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, float]:
    """Return how often a wait of ``wait_s`` looks, and how late it ends, in made-up time."""
    now, looks = 0.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def came() -> bool:
        nonlocal looks
        looks += 1
        return now >= wait_s

    def clock() -> float:
        nonlocal now
        now += CLOCK_STEP_S  # looking itself takes a moment
        return now

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", clock)
        waiting.wait_asleep(came, "something", naps=naps)
    return looks, now - wait_s


def test_a_wait_that_delays_no_rank_polls_less_than_half_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager_looks, _ = _looks_and_lateness(EAGER_NAPS, 20e-3, monkeypatch)
    lazy_looks, late_s = _looks_and_lateness(LAZY_NAPS, 20e-3, monkeypatch)
    assert lazy_looks < eager_looks / 2
    assert late_s <= LAZY_NAPS.longest_s + 10 * CLOCK_STEP_S


def test_a_wait_that_the_model_waits_for_ends_at_most_2_percent_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wait_s in (5e-3, 20e-3, 60e-3):
        _, late_s = _looks_and_lateness(EAGER_NAPS, wait_s, monkeypatch)
        assert late_s <= max(EAGER_NAPS.share * wait_s, FIRST_NAP_S) + 10 * CLOCK_STEP_S


class Chunks:
    """Receives chunks that come one after the other, each a delay after the one before."""

    def __init__(self, gaps: list[float], clock: Callable[[], float], waited_for: bool) -> None:
        self._due = list(accumulate(gaps))
        self._clock = clock
        self.is_waited_for = waited_for
        self.looks, self.late = 0, list[float]()

    @property
    def missing_count(self) -> int:
        return len(self._due) - len(self.late)

    @property
    def done(self) -> bool:
        return self.missing_count == 0

    def poll(self) -> bool:
        self.looks += 1
        if self.done or self._clock() < self._due[len(self.late)]:
            return False
        self.late.append(self._clock() - self._due[len(self.late)])
        return True


def _receive_chunks(
    gaps: list[float],
    monkeypatch: pytest.MonkeyPatch,
    waited_for: bool = False,
    beside_model: bool = True,
) -> Chunks:
    """Return chunks that were all received in made-up time."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def clock() -> float:
        nonlocal now
        now += CLOCK_STEP_S
        return now

    chunks = Chunks(gaps, lambda: now, waited_for)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", clock)
        receive_all([cast("CacheReceiver", chunks)], beside_model)
    return chunks


def test_a_sink_sleeps_through_half_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for gap in (17e-3, 90e-3):
        chunks = _receive_chunks([gap], monkeypatch)
        steady = _receive_chunks([gap] * 21, monkeypatch)
        assert steady.looks < 21 * chunks.looks / 2
        assert max(steady.late) <= max(gap * NAP_SHARE, LAZY_NAPS.longest_s) + 20 * CLOCK_STEP_S
        assert (
            steady.late[-1] <= LAZY_NAPS.longest_s + 20 * CLOCK_STEP_S
        )  # the drain waits for this one


def test_a_sink_is_late_by_a_bounded_time_when_steps_become_shorter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A drain waits for the last chunk, which can be as late as the chunk before it.
    chunks = _receive_chunks([90e-3] * 3 + [1e-3], monkeypatch)
    assert chunks.late[-1] <= LONGEST_NAP_S
    chunks = _receive_chunks([90e-3] * 3 + [1e-3] * 30, monkeypatch)
    assert LAZY_NAPS.longest_s < max(chunks.late) <= LONGEST_FIRST_NAP_S
    # What has come meanwhile is taken at once, so it is late no longer.
    assert max(chunks.late[-15:]) <= LAZY_NAPS.longest_s


def test_a_sink_that_the_model_waits_for_sleeps_through_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks = _receive_chunks([90e-3] * 3 + [1e-3] * 30, monkeypatch, waited_for=True)
    for gap_s, late_s in zip([90e-3] * 3 + [1e-3] * 30, chunks.late, strict=True):
        assert late_s <= max(EAGER_NAPS.share * gap_s, FIRST_NAP_S) + 20 * CLOCK_STEP_S


def test_chunks_between_hosts_and_at_full_rate_are_looked_for_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A link that is the bottleneck gets on only while the sink looks.
    remote = _receive_chunks([17e-3] * 21, monkeypatch, beside_model=False)
    assert remote.looks > 0.9 * 21 * _receive_chunks([17e-3], monkeypatch).looks
    assert max(remote.late) <= LAZY_NAPS.longest_s
    beside_model, without_model = (
        _receive_chunks([1e-3] * 21, monkeypatch, beside_model=beside) for beside in (True, False)
    )
    assert (beside_model.looks, beside_model.late) == (without_model.looks, without_model.late)
