"""Causes that limit an arm: a slow disk or memory, a late link, polling; for faulty.py."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from injection import RANK, CurrentPhase, fault, inject

from dejavubench.bench.probes.cpu_probes import CPUMemory
from dejavubench.dejavulib.destinations.disk.block_file import BlockFile
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.mpi import MPIDestination, _PackedReceive
from dejavubench.dejavulib.packing import Packing
from dejavubench.dejavulib.waiting import Wake
from dejavubench.models.gpt import GPT

DELAY_S = 5e-3
"""Added to each chunk, however large, or to each block of extents."""

DISK_BYTES_PER_S = 4e6
"""Rate of the slow disk: a chunk of one token takes some 4 ms, the page of its watermark 1 ms."""

MEMORY_BYTES_PER_S = 1e6
"""Rate of the slow memory."""


def _is_in(arm: str) -> bool:
    return CurrentPhase.arm == arm


@fault
def limited() -> None:
    """Limit each arm by one cause: late extents, a slow disk, a late link, slow posts."""
    inject(HostDestination, "cut_and_count", around=_cut_slowly)
    inject(BlockFile, "write", before=_write_slowly)
    inject(_PackedReceive, "poll", around=_LateMessages().poll)
    inject(MPIDestination, "flush", before=_post_slowly)


def _cut_slowly(cut_and_count: Callable[..., Any], *args: Any) -> Iterator[Any]:
    for block in cut_and_count(*args):
        if _is_in("host@0"):
            time.sleep(DELAY_S)
        yield block


def _write_slowly(_: BlockFile, offset: int, data: Any) -> None:
    if _is_in("disk@1"):
        time.sleep(data.nbytes / DISK_BYTES_PER_S)


class _LateMessages:
    """Messages that a sink notices some time after they have come."""

    def __init__(self) -> None:
        self._due: dict[_PackedReceive, float] = {}

    def poll(self, original: Callable[[_PackedReceive], bool], receive: _PackedReceive) -> bool:
        if _is_in("mpi@1"):
            if receive not in self._due:
                if not receive._request.Test():
                    return False
                self._due[receive] = time.monotonic() + DELAY_S
            if time.monotonic() < self._due[receive]:
                return False
            del self._due[receive]
        return bool(original(receive))


def _post_slowly(*_: object) -> None:
    if _is_in("mpi@2"):
        time.sleep(DELAY_S)


@fault
def slow_memory() -> None:
    """Slow down the memory, for the library's packing and for the probe alike."""

    def gather_slowly(_: Packing, packed: Any) -> None:
        time.sleep(packed.nbytes / MEMORY_BYTES_PER_S)

    def copy_slowly(copy: Callable[..., Any], memory: CPUMemory) -> list[tuple[float, str]]:
        slow = MEMORY_BYTES_PER_S / 1e9
        # As if the copy's own time came on top of the slow memory's.
        return [(1 / (1 / rate + 1 / slow), shape) for rate, shape in copy(memory)]

    inject(Packing, "gather", before=gather_slowly)
    inject(CPUMemory, "copy", around=copy_slowly)


READ_S = 20e-3
"""Time in which each step of the model reads the slow memory that it shares with copies."""

HIDDEN_SHARE = 0.5
"""Share of a copy's time in that memory that the model's own work hides."""


@fault
def shared_memory(step_nbytes: str) -> None:
    """Let model and copies share a memory that moves ``step_nbytes`` in :data:`READ_S`.

    A copy of the library takes the memory from the model's next step, which is so much longer. The
    probes of the memory report its rate.
    """
    bytes_per_s = int(step_nbytes) / READ_S
    taken_s = 0.0

    def note_copy(_: Packing, packed: Any) -> None:
        nonlocal taken_s
        # Beside the model alone: the stream is also measured without it.
        if CurrentPhase.phase in BESIDE_MODEL:
            taken_s += (1 - HIDDEN_SHARE) * packed.nbytes / bytes_per_s

    def read_weights(*_: object, **__: object) -> None:
        nonlocal taken_s
        contention_s = taken_s
        taken_s = 0.0
        time.sleep(READ_S + contention_s)

    def report_rate(*_: object) -> list[tuple[float, str]]:
        return [(bytes_per_s / 1e9, "a slow memory")]

    inject(Packing, "gather", after=note_copy)
    inject(GPT, "forward", before=read_weights)
    inject(CPUMemory, "read", around=report_rate)
    inject(CPUMemory, "copy", around=report_rate)


BESIDE_MODEL = ("prompt", "tokens")
"""Phases in which the model computes."""

LOOKS_S = 1e-3
"""Time for which a helper that polls looks for work before it gives Python's lock away."""


@fault
def polling_helper() -> None:
    """Let the helper thread look for work on the model's only core without sleeping."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def poll(wait: Callable[..., bool], wake: Wake, timeout: float | None = None) -> bool:
        if threading.current_thread().name != "streamer":
            return wait(wake, timeout)
        began = yielded = time.monotonic()
        while CurrentPhase.phase in BESIDE_MODEL and (CurrentPhase.arm or "none") != "none":
            if wait(wake, 0):
                return True
            now = time.monotonic()
            if timeout is not None and now - began > timeout:
                return False
            if now - yielded > LOOKS_S:
                time.sleep(0)  # else the model's thread would wait 5 ms for Python's lock
                yielded = time.monotonic()
        return wait(wake, timeout)

    inject(Wake, "wait", around=poll)


@fault
def polling_sink() -> None:
    """Give both ranks one core, on which the sink looks for chunks without sleeping."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if RANK == 0:
        return

    def sleep_unless_receiving(sleep: Callable[[float], None], seconds: float) -> None:
        is_mpi = CurrentPhase.arm is not None and CurrentPhase.arm.startswith("mpi")
        if CurrentPhase.phase != "receive" or not is_mpi:
            sleep(seconds)

    inject(time, "sleep", around=sleep_unless_receiving)
