"""CPU time of processes and of all that they have started, from ``/proc`` (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dejavubench.machine.readings.cpu_time import TICKS_PER_S
from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file


def read_pid_namespace(root: Path = ROOT) -> str:
    """Return the identity of the namespace in which this process's numbers of processes hold.

    Raises:
        NotReadableError: the kernel does not tell.
    """
    try:
        return os.readlink(root / "proc/self/ns/pid")
    except OSError as error:
        raise NotReadableError(f"{error.filename}: {error.strerror}") from None


def read_cpu_seconds(pids: Iterable[int], root: Path = ROOT) -> float:
    """Return the CPU seconds of processes and their descendants, ended ones included.

    Raises:
        NotReadableError: a process has ended, or the kernel does not list children.
    """
    visited_pids: set[int] = set()
    tick_count = 0
    pids_to_visit = [(pid, False) for pid in pids]
    while pids_to_visit:
        pid, is_child = pids_to_visit.pop()
        if pid in visited_pids:
            continue
        visited_pids.add(pid)
        try:
            own_tick_count = _read_ticks(root / f"proc/{pid}")
            children = _read_children(root / f"proc/{pid}")
        except NotReadableError:
            if is_child:  # it has just ended; its parent has its time
                continue
            raise
        tick_count += own_tick_count
        pids_to_visit += [(child, True) for child in children]
    return tick_count / TICKS_PER_S


def _read_ticks(folder: Path) -> int:
    """Return a process's ticks, with those of children that it has waited for."""
    text = read_kernel_file(folder / "stat")
    # The name is in brackets and may hold brackets and blanks, so the fields follow the last one.
    fields = text.rpartition(")")[2].split()
    tick_texts = fields[11:15]
    if len(tick_texts) < 4 or not all(count.isdecimal() for count in tick_texts):
        raise NotReadableError(f"{folder / 'stat'}: {text.strip()!r}")
    return sum(map(int, tick_texts))


def _read_children(folder: Path) -> list[int]:
    """Return the children of all threads of a process."""
    children: list[int] = []
    try:
        threads = [entry.name for entry in os.scandir(folder / "task")]
    except OSError as error:
        raise NotReadableError(f"{error.filename}: {error.strerror}") from None
    for thread in threads:
        path = folder / "task" / thread / "children"
        try:
            children += map(int, path.read_bytes().split())
        except OSError as error:
            if (folder / "task" / thread).exists():  # else the thread has just ended
                raise NotReadableError(f"{path}: {error.strerror}") from None
    return children
