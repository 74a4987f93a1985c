"""Ground floor: waiting without burning a core that somebody else computes on.

MPI libraries busy-poll in blocking calls. Whoever has nothing to compute tests and sleeps instead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

NAP = 100e-6
"""Seconds between two tests of a sleeping wait: about 3 % of a core, and 0.1 ms of latency at most."""

SPIN = 20e-6
"""Seconds of testing without sleep before the first nap: catches what is just arriving."""


class DeadlineError(Exception):
    """What was waited for did not come in time."""


def wait_asleep(test: Callable[[], bool], what: str, timeout: float | None = None, nap: float = NAP) -> None:
    """Call ``test`` until it is true, sleeping in between.

    Raises:
        DeadlineError: it was not true within ``timeout`` seconds; the message names ``what``.
    """
    began = time.monotonic()
    while not test():
        waited = time.monotonic() - began
        if timeout is not None and waited > timeout:
            raise DeadlineError(f"{what}: nothing came within {timeout:g} s")
        if waited > SPIN:
            time.sleep(nap)


def wait_yielding(test: Callable[[], bool]) -> None:
    """Call ``test`` until it is true, giving the core to any other runnable process in between."""
    while not test():
        os.sched_yield()
