"""Ctrl-C while code runs that an exception in its middle would break."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Keep Ctrl-C back until the block is over, then let it act.

    LLVM calls Python back while it compiles. An exception there is printed and lost, and the
    compiler is left without its code. Elsewhere than on the main thread, where Python raises no
    KeyboardInterrupt, the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held_signals: list[tuple[int, FrameType | None]] = []
    previous_handler = signal.getsignal(signal.SIGINT)
    # Else it is ignored, or it ends the process at once, which breaks nothing.
    if not callable(previous_handler):
        yield
        return
    signal.signal(
        signal.SIGINT, lambda signal_number, frame: held_signals.append((signal_number, frame))
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        if held_signals:
            previous_handler(*held_signals[0])
