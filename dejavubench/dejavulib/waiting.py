"""Ground floor: waiting without burning a core that somebody else computes on.

MPI libraries busy-poll in blocking calls. Whoever has nothing to compute tests and sleeps instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import dejavubench.dejavulib.pulse as pulse

NAP = 50e-6
"""Seconds of the first naps between two tests, when what is waited for may come at once."""

LONGEST_NAP = 500e-6
"""Naps grow to this, a fiftieth of the time waited so far: a long wait costs a few hundredths of a core."""

SPIN = 20e-6
"""Seconds of testing without sleep before the first nap: catches what is just arriving."""


class Wake:
    """One thread wakes another: a binary semaphore that costs the one who wakes a few microseconds.

    A condition variable costs several times as much. ``queue.SimpleQueue`` would do, but its ``get`` waits for ever if
    a short timeout has passed before it begins to wait (CPython 3.11), as happens where processes share a core.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the other thread's wait return, the one it is in or its next one. Called from one thread only."""
        if self._lock.locked():  # the other side only ever locks it
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set, within ``timeout`` seconds if given. Called from one thread only."""
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)


class DeadlineError(Exception):
    """What was waited for did not come in time."""


def wait_asleep(test: Callable[[], bool], what: str, timeout: float | None = None) -> None:
    """Call ``test`` until it is true, sleeping in between, the longer the longer it takes.

    Raises:
        DeadlineError: it was not true within ``timeout`` seconds; the message names ``what``.
    """
    began = time.monotonic()
    if test():
        return
    with pulse.during(pulse.WAITING):
        while not test():
            waited = time.monotonic() - began
            if timeout is not None and waited > timeout:
                raise DeadlineError(f"{what}: nothing came within {timeout:g} s")
            if waited > SPIN:
                time.sleep(min(max(NAP, waited / 50), LONGEST_NAP))


def wait_yielding(test: Callable[[], bool]) -> None:
    """Call ``test`` until it is true, giving the core to any other runnable process in between."""
    while not test():
        os.sched_yield()
