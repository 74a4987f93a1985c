"""Threads that move bytes beside the model's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch


def start_helper(name: str, work: Callable[[], None]) -> threading.Thread:
    """Start a thread whose copies wake no pool of workers; the caller's own number of threads stays as it is."""
    started = threading.Event()

    def run() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # takes the setting over for good; without it a thread's first operation does
        started.set()
        work()

    threads = torch.get_num_threads()
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    started.wait()
    torch.set_num_threads(threads)  # the helper's own setting became the default of every new thread
    return thread


def cpu_seconds(thread: threading.Thread) -> float:
    """CPU time so far of a thread that runs; 0 of one that has ended."""
    if thread.ident is None or not thread.is_alive():
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
