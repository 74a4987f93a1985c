"""The liveness of a rank: heartbeats, progress, state and phase, in a page that the watchdog reads.

Each report is a store of one integer in a page of memory. The watchdog process reads the page once
:mod:`dejavubench.watchdog.heartbeat` shares it; before that nobody reads it. From then on
this module is also the library's :class:`~dejavubench.dejavulib.progress.ProgressListener`.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from types import TracebackType

# The main thread's states rise with the time that they may last: within one another, the greater
# one holds.
WORKING = 0
"""State of the main thread: it must make progress."""

WAITING = 1
"""State of the main thread: it waits for other ranks."""

PATIENT = 2
"""State of the main thread: it loads, compiles, or waits with a deadline of its own.

That may take long.
"""

# Plain integers: looking a member up in its enumeration takes longer than storing a counter, and a
# layer's sum over ranks stores several.
HEARTBEATS = 0
"""Place in the page of the count of heartbeats."""

PROGRESS = 1
"""Place in the page of the count of things done."""

STATE = 2
"""Place in the page of the main thread's state."""

PHASE_LENGTH = 3
"""Place in the page of the length of the phase's text, in bytes."""

COUNTERS_IN_PAGE = 8
"""Counters that the page has room for; the others are not used."""

COUNTER_NBYTES = 8
"""Bytes of a counter. An aligned one is stored and read whole."""

LIVENESS_PAGE_NBYTES = 512
"""Bytes of the page. The phase's text fills what the counters leave."""


class LivenessPage:
    """The memory that this process and the watchdog share.

    Attributes:
        counters: heartbeats, progress, state and length of the text, 64-bit integers.
    """

    def __init__(self, memory: bytearray | mmap.mmap) -> None:
        view = memoryview(memory)
        counters_nbytes = COUNTERS_IN_PAGE * COUNTER_NBYTES
        self.counters = view[:counters_nbytes].cast("Q")
        self._text = view[counters_nbytes:]

    @property
    def phase(self) -> str:
        """The phase that began last, in words."""
        text = bytes(self._text[: min(self.counters[PHASE_LENGTH], len(self._text))])
        return text.decode(errors="replace")

    @phase.setter
    def phase(self, phase: str) -> None:
        text = phase.encode()[: len(self._text)]
        # 0 while the text is rewritten, so the watchdog never reads half a phase.
        self.counters[PHASE_LENGTH] = 0
        self._text[: len(text)] = text
        self.counters[PHASE_LENGTH] = len(text)


page = LivenessPage(bytearray(LIVENESS_PAGE_NBYTES))
"""The page of this process."""


def count_progress() -> None:
    """Count one more thing done."""
    page.counters[PROGRESS] += 1


def begin_phase(phase: str) -> None:
    """Name the phase that begins now."""
    page.phase = phase
    page.counters[STATE] = WORKING
    page.counters[PROGRESS] += 1


def waiting(patient: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context that shows a wait of the library."""
    return show_state(PATIENT if patient else WAITING)


def show_state(state: int) -> contextlib.AbstractContextManager[None]:
    """Show the main thread's state meanwhile; the end is progress. No effect in other threads."""
    return _ShownState(state)


class _ShownState:
    """The context of :func:`show_state`.

    A class, because a layer's sum over ranks enters one: a generator costs twice as much.
    """

    __slots__ = ("_previous_state", "_state")

    def __init__(self, state: int) -> None:
        self._state = state
        self._previous_state: int | None = None

    def __enter__(self) -> None:
        # A helper's wait says nothing about the rank: the main thread alone owns the state.
        # Asked each time, since a fork makes its own thread the main one.
        if threading.get_ident() == threading.main_thread().ident:
            counters = page.counters
            self._previous_state = counters[STATE]
            # A wait within something that may take long may take long as well.
            counters[STATE] = max(self._previous_state, self._state)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous_state is not None:
            counters = page.counters
            counters[STATE] = self._previous_state
            counters[PROGRESS] += 1
