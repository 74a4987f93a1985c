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

WORKING, WAITING, PATIENT = range(3)
"""States of the main thread.

WORKING: it must make progress. WAITING: it waits for other ranks. PATIENT: it loads, compiles, or
waits with a deadline of its own, which may take long.
"""

HEARTBEATS, PROGRESS, STATE, PHASE_LENGTH = range(4)
"""Places of the counters in the page. PHASE_LENGTH is that of the phase's text behind them."""

COUNTERS_IN_PAGE = 8
LIVENESS_PAGE_NBYTES = 512
"""Counters of the page, and its bytes: text fills the rest."""


class LivenessPage:
    """The memory that this process and the watchdog share.

    Attributes:
        counters: heartbeats, progress, state and length of the text, 64-bit integers.
    """

    def __init__(self, memory: bytearray | mmap.mmap) -> None:
        view = memoryview(memory)
        self.counters = view[: COUNTERS_IN_PAGE * 8].cast("Q")
        self._text = view[COUNTERS_IN_PAGE * 8 :]

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
