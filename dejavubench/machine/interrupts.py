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
    arrived: list[tuple[int, FrameType | None]] = []
    previous_handler = signal.getsignal(signal.SIGINT)
    if not callable(
        previous_handler
    ):  # ignored, or it ends the process at once, which breaks nothing
        yield
        return
    signal.signal(
        signal.SIGINT, lambda signal_number, frame: arrived.append((signal_number, frame))
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        if arrived:
            previous_handler(*arrived[0])
