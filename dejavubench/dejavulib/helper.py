"""Threads that move bytes beside the model's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from dejavubench.dejavulib.destinations.base import StreamingError


def start_helper(
    name: str,
    work: Callable[[], None],
    failed: Callable[[StreamingError], None],
    under_way: Callable[[], str],
) -> threading.Thread:
    """Start a thread whose copies wake no pool of workers; the caller's own number of threads stays as it is.

    Args:
        failed: told, in the thread, what ended ``work``: whoever waits for it is to raise that.
        under_way: what an error that is no StreamingError has interrupted, in words.
    """
    started = threading.Event()

    def run() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # takes the setting over for good; without it a thread's first operation does
        started.set()
        try:
            work()
        except StreamingError as error:
            failed(error)
        except BaseException as error:  # noqa: BLE001 - handed to the model's thread, which raises it
            failure = StreamingError(f"{type(error).__name__}: {error}; {under_way()}")
            failure.__cause__ = error
            failed(failure)

    threads = torch.get_num_threads()
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the limit of processes of this user, or of this container
        raise StreamingError(f"the thread {name!r} cannot be started: {error}") from None
    started.wait()
    torch.set_num_threads(
        threads
    )  # the helper's own setting became the default of every new thread
    return thread


def cpu_seconds(thread: threading.Thread) -> float:
    """CPU time so far of a thread that runs; 0 of one that has ended."""
    if thread.ident is None or not thread.is_alive():
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
