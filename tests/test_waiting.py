"""Waking one thread from another: nothing is lost, whoever is first."""

from __future__ import annotations

import threading

from dejavubench.dejavulib.waiting import Wake


def test_what_was_set_before_the_wait_is_not_lost() -> None:
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
