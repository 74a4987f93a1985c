"""The heartbeat thread of a rank, which also ends the rank where nothing else can.

Its page of memory is shared with :mod:`~dejavubench.watchdog.process`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from dejavubench.dejavulib import progress
from dejavubench.errors import ExitStatus
from dejavubench.machine import liveness
from dejavubench.machine.launcher import PASS_ON_S
from dejavubench.machine.liveness import (
    HEARTBEATS,
    LIVENESS_PAGE_NBYTES,
    PATIENT,
    STATE,
    LivenessPage,
)

HEARTBEAT_S = 1.0
"""The longest time between two heartbeats."""

NO_PROGRESS_FACTOR = 1.5
"""Timeouts without progress after which a rank with a heartbeat is at fault. A rank without one
is at fault after one timeout, so it is named before the ranks that wait for it."""

MAIN_THREAD_TURN_S = 1.0
"""Seconds that the main thread has to begin with its last words after Ctrl-C. It cannot while a
call of MPI blocks; then this thread says them."""

GRACE_S = 8.0
"""Seconds after Ctrl-C until this process ends, whatever the main thread does."""


class Heartbeat:
    """The heartbeat thread of this process, and its page of memory.

    Args:
        name: names this process in messages.

    Attributes:
        fd: the page's file, for the watchdog to open; −1 where none can be shared.
        interval_s: seconds between two heartbeats.
        make_last_words: after Ctrl-C, returns what follows this rank's message; None if the main
            thread has begun to say it.
    """

    def __init__(self, name: str) -> None:
        self.fd = -1
        self._name = name
        memory: bytearray | mmap.mmap = bytearray(LIVENESS_PAGE_NBYTES)
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("dejavubench-liveness")
            os.ftruncate(self.fd, LIVENESS_PAGE_NBYTES)
            memory = mmap.mmap(self.fd, LIVENESS_PAGE_NBYTES)
        self.page = LivenessPage(memory)
        self.page.counters[STATE] = PATIENT
        self.page.phase = "start"
        self.interval_s = HEARTBEAT_S
        self.make_last_words: Callable[[], str | None] | None = None
        self._deadline: tuple[float, str] | None = None
        self._interrupted_at_s: float | None = None
        # Non-blocking: a signal that comes while the pipe is full is dropped, and nobody waits.
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        try:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
        except RuntimeError:  # this user may start no more threads
            self.fd = -1  # without a thread there is no heartbeat that the watchdog could judge

    def give_up_at(self, deadline_s: float | None, reason: str = "") -> None:
        """End this process at ``deadline_s`` of time.monotonic and say ``reason``; None cancels."""
        self._deadline = None if deadline_s is None else (deadline_s, reason)

    def _run(self) -> None:
        signals = select.poll()
        signals.register(self._read_fd, select.POLLIN)
        while True:
            self.page.counters[HEARTBEATS] += 1
            # Python writes each signal to the pipe, even while the main thread is inside MPI.
            interval_s = (
                self.interval_s if self._interrupted_at_s is None else MAIN_THREAD_TURN_S / 4
            )
            if signals.poll(interval_s * 1e3) and signal.SIGINT in os.read(self._read_fd, 64):
                self._interrupted_at_s = self._interrupted_at_s or time.monotonic()
                time.sleep(0.1)  # the main thread's turn
            self._end_if_due(time.monotonic())

    def _end_if_due(self, now_s: float) -> None:
        """End this process if the main thread does not act on Ctrl-C, or at the deadline."""
        # Taken away first, so that the words are said once, however long that takes.
        make_last_words = self.make_last_words
        self.make_last_words = None
        is_due = self._interrupted_at_s and now_s - self._interrupted_at_s > MAIN_THREAD_TURN_S
        if make_last_words is not None and is_due:
            last_words = make_last_words()
            if last_words is not None:
                self._end_interrupted(f"\n{last_words}")
        elif make_last_words is not None:
            self.make_last_words = make_last_words
        if self._interrupted_at_s is not None and now_s - self._interrupted_at_s > GRACE_S:
            self._end_interrupted("")
        if self._deadline is not None and now_s > self._deadline[0]:
            self._end(self._deadline[1], 1)

    def _end_interrupted(self, added_text: str) -> None:
        self._end(
            f"interrupted in phase {self.page.phase}, in a call that did not return{added_text}",
            ExitStatus.INTERRUPTED,
        )

    def _end(self, reason: str, status: int) -> None:
        """End this process without MPI, which this thread may not call.

        The launcher then ends the other ranks.
        """
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, f"dejavubench: {self._name} {reason}\n".encode())
        time.sleep(PASS_ON_S)
        os._exit(status)


_heartbeat: Heartbeat | None = None


def start_heartbeat(name: str) -> Heartbeat:
    """Start the heartbeat, once per process; called from its main thread."""
    global _heartbeat
    if _heartbeat is None:
        _heartbeat = Heartbeat(name)
        liveness.page = _heartbeat.page
        progress.listener = liveness
    return _heartbeat


def set_last_words(make_last_words: Callable[[], str | None]) -> None:
    """Have ``make_last_words`` follow the message of a rank that Ctrl-C ends within a call."""
    if _heartbeat is not None:
        _heartbeat.make_last_words = make_last_words


@contextlib.contextmanager
def end_at_interrupt(most_s: float) -> Iterator[None]:
    """Let Ctrl-C end the process at once, during a call that blocks every Python thread.

    So does the alarm signal after ``most_s`` seconds; 0: never.
    """
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGINT, previous_handler)
