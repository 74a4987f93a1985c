"""Ground floor: what the main thread of this process shows of itself: its phase, its progress, whether it waits.

Each is a store of one integer in a page of memory. :mod:`~dejavubench.bench.watching.heart` shares
the page with a process that watches this one; without it nobody reads the page.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

WORKING, WAITING, PATIENT = range(3)
"""What the main thread does: work that must get on, a wait for other ranks, something that may take long (loading,
compiling, a wait with a deadline of its own)."""

BEATS, PROGRESS, STATE, LENGTH = range(4)
"""Numbers of the words in the page; LENGTH is that of the phase's text, which follows the words."""

WORDS = 8
NBYTES = 512


class Page:
    """The memory that this process and the watchdog share; ``words`` are of 64 bits."""

    def __init__(self, memory: bytearray | mmap.mmap) -> None:
        view = memoryview(memory)
        self.words = view[: WORDS * 8].cast("Q")
        self._text = view[WORDS * 8 :]

    @property
    def phase(self) -> str:
        """The phase that was last marked, in words."""
        return bytes(self._text[: min(self.words[LENGTH], len(self._text))]).decode(
            errors="replace"
        )

    @phase.setter
    def phase(self, phase: str) -> None:
        text = phase.encode()[: len(self._text)]
        self.words[LENGTH] = 0
        self._text[: len(text)] = text
        self.words[LENGTH] = len(text)


page = Page(bytearray(NBYTES))
"""The page of this process."""


def progress() -> None:
    """Count one more thing that the main thread has done."""
    page.words[PROGRESS] += 1


def mark(phase: str) -> None:
    """A phase begins."""
    page.phase = phase
    page.words[STATE] = WORKING
    page.words[PROGRESS] += 1


@contextlib.contextmanager
def during(state: int) -> Iterator[None]:
    """Show what the main thread does meanwhile; its end is progress. In other threads nothing changes."""
    if threading.get_ident() != threading.main_thread().ident:
        yield
        return
    words = page.words
    before = words[STATE]
    words[STATE] = max(before, state)  # a wait of what may take long may take long
    try:
        yield
    finally:
        words[STATE] = before
        words[PROGRESS] += 1
