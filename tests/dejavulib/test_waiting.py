"""Waking one thread from another loses nothing, and waits look no more often than they must."""

from __future__ import annotations

import threading
import time

import pytest

from dejavubench.dejavulib import waiting
from dejavubench.dejavulib.waiting import EAGER, LAZY, NAP, Naps, Wake


def test_a_wake_that_was_set_before_the_wait_is_not_lost() -> None:
    wake = Wake()
    assert not wake.wait(0.0)
    wake.set()
    wake.set()  # once more makes no difference
    assert wake.wait(0.0)
    assert not wake.wait(0.001)


def test_two_threads_in_turn_with_the_shortest_of_timeouts() -> None:
    """A timeout that has passed before the wait begins must not become an endless one."""
    there, back, turns, seen = Wake(), Wake(), 3000, 0

    def answer() -> None:
        nonlocal seen
        while seen < turns:
            if there.wait(1e-6):
                seen += 1
                back.set()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    for _ in range(turns):
        there.set()
        assert back.wait(30.0)
    thread.join(30.0)
    assert seen == turns


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
        now += 1e-6  # looking itself takes a moment
        return now

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", clock)
        waiting.wait_asleep(came, "something", naps=naps)
    return looks, now - wait_s


def test_a_wait_that_holds_nobody_up_looks_less_than_half_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager, _ = _looks_and_lateness(EAGER, 20e-3, monkeypatch)
    lazy, late = _looks_and_lateness(LAZY, 20e-3, monkeypatch)
    assert lazy < eager / 2
    assert late <= LAZY.longest + 10e-6


def test_a_wait_that_the_model_waits_for_ends_at_most_2_percent_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wait_s in (5e-3, 20e-3, 60e-3):
        _, late = _looks_and_lateness(EAGER, wait_s, monkeypatch)
        assert late <= max(EAGER.share * wait_s, NAP) + 10e-6
