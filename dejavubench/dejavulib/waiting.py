"""Waiting without burning a core that somebody else computes on.

MPI libraries busy-poll in blocking calls. A side that has nothing to compute tests and sleeps.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import progress

FIRST_NAP_S = 50e-6
"""Seconds of the first naps between two tests, while the answer may come at once."""


@dataclass(frozen=True)
class Naps:
    """Seconds between two tests of a long wait.

    Attributes:
        share: of the time waited so far; a nap lasts that long.
        longest_s: most seconds of a nap.
    """

    share: float
    longest_s: float


EAGER_NAPS = Naps(1 / 50, 500e-6)
"""For waits that somebody else waits for: they end at most 2 % late."""

LAZY_NAPS = Naps(1 / 8, 1e-3)
"""For waits that hold nobody up. Waking costs some 25 µs of CPU time in a virtual machine, so that
eager naps take an eighth of a core, and the model's own core may share caches with that one.
"""

SPIN_S = 20e-6
"""Seconds of testing without sleep before the first nap, for what is just arriving."""


class Wake:
    """A binary semaphore by which one thread wakes another, for a few microseconds.

    A condition variable costs several times as much. ``queue.SimpleQueue`` is no replacement: its
    ``get`` waits for ever if a short timeout has passed before it begins to wait (CPython 3.11),
    as happens where processes share a core.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the other thread's current or next wait return. Called from one thread only."""
        if self._lock.locked():  # no race: the other side only ever locks it
            self._lock.release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether it was set within ``timeout_s``. Called from one thread only."""
        return self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)


class DeadlineError(Exception):
    """A wait took longer than it may."""


def wait_asleep(
    test: Callable[[], bool],
    awaited: str,
    timeout_s: float | None = None,
    naps: Naps = EAGER_NAPS,
    first_nap_s: float = 0.0,
) -> None:
    """Call ``test`` until it is true. Sleep in between, the longer the longer it takes.

    Args:
        awaited: name of the awaited thing, for the message.
        timeout_s: None waits for ever.
        naps: how long the sleeps become.
        first_nap_s: seconds before the second test, of a wait that is known to take longer.

    Raises:
        DeadlineError: ``test`` was not true within ``timeout_s``.
    """
    began_s = time.monotonic()
    if test():
        return
    with progress.listener.waiting(patient=False):
        if first_nap_s:
            time.sleep(first_nap_s)
        while not test():
            waited_s = time.monotonic() - began_s
            if timeout_s is not None and waited_s > timeout_s:
                raise DeadlineError(f"{awaited}: nothing came within {timeout_s:g} s")
            if waited_s > SPIN_S:
                time.sleep(min(max(FIRST_NAP_S, waited_s * naps.share), naps.longest_s))


def wait_yielding(test: Callable[[], bool]) -> None:
    """Call ``test`` until it is true. Offer the core to any other process in between."""
    while not test():
        os.sched_yield()
