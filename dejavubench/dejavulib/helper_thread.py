"""Threads that move bytes beside the model's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from .destinations.base import StreamingError


def start_helper(
    name: str,
    work: Callable[[], None],
    on_failure: Callable[[StreamingError], None],
    describe_work: Callable[[], str],
) -> threading.Thread:
    """Start a thread whose copies run on that thread alone, not on torch's pool of workers.

    The caller's own number of threads stays as it is.

    Args:
        on_failure: called in the thread with the error that ended ``work``; the thread that waits
            for the helper is to raise it.
        describe_work: says what an error that is no StreamingError has interrupted.

    Raises:
        StreamingError: the limit of threads of this user or container is reached.
    """
    has_started = threading.Event()

    def run() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # applies the setting now, not in the thread's first operation
        has_started.set()
        try:
            work()
        except StreamingError as error:
            on_failure(error)
        except BaseException as error:  # noqa: BLE001 - handed to the model's thread, which raises it
            failure = StreamingError(f"{type(error).__name__}: {error}; {describe_work()}")
            failure.__cause__ = error
            on_failure(failure)

    threads = torch.get_num_threads()
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise StreamingError(f"the thread {name!r} cannot be started: {error}") from None
    has_started.wait()
    # The helper's setting has become the default of every new thread: take that back.
    torch.set_num_threads(threads)
    return thread


def read_cpu_seconds(thread: threading.Thread) -> float:
    """Return the CPU time so far of a thread; 0 if it has ended."""
    if thread.ident is None or not thread.is_alive():
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
