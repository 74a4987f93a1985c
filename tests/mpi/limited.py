"""Causes that limit an arm: a slow disk or memory, a late link, a polling sink; for faulty.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from injection import RANK, CurrentPhase, fault, replace_call

from dejavubench.bench.probes.cpu_probes import CPUMemory
from dejavubench.dejavulib.destinations.disk.block_file import BlockFile
from dejavubench.dejavulib.destinations.host import HostDestination
from dejavubench.dejavulib.destinations.mpi import MPIDestination, _PackedReceive
from dejavubench.dejavulib.packing import Packing

DELAY_S = 5e-3
"""Added to each chunk, however large, or to each block of extents."""

DISK_BYTES_PER_S = 4e6
"""Rate of the slow disk: a chunk of one token takes some 4 ms, the page of its watermark 1 ms."""

MEMORY_BYTES_PER_S = 1e6
"""Rate of the slow memory."""


def _in(arm: str) -> bool:
    return CurrentPhase.arm == arm


@fault
def limited() -> None:
    """Limit each arm by one cause: late extents, a slow disk, a late link, slow posts."""
    replace_call(HostDestination, "cut_and_count", _late_extents)
    replace_call(BlockFile, "write", _slow_write)
    replace_call(_PackedReceive, "done", _late_message)
    replace_call(MPIDestination, "flush", _slow_post)


def _late_extents(original: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any) -> Iterator[Any]:
        for block in original(*args):
            if _in("host@0"):
                time.sleep(DELAY_S)
            yield block

    return counted


def _slow_write(original: Callable[..., Any]) -> Callable[..., Any]:
    def write(file: BlockFile, offset: int, data: Any) -> None:
        if _in("disk@1"):
            time.sleep(data.nbytes / DISK_BYTES_PER_S)
        original(file, offset, data)

    return write


def _late_message(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let a message be seen some time after it has come."""
    seen: dict[_PackedReceive, float] = {}

    def done(receive: _PackedReceive) -> bool:
        if _in("mpi@1"):
            if receive not in seen:
                if not receive._request.Test():
                    return False
                seen[receive] = time.monotonic() + DELAY_S
            if time.monotonic() < seen[receive]:
                return False
            del seen[receive]
        return bool(original(receive))

    return done


def _slow_post(original: Callable[..., Any]) -> Callable[..., Any]:
    def flush(*args: Any) -> None:
        if _in("mpi@2"):
            time.sleep(DELAY_S)
        original(*args)

    return flush


@fault
def slow_memory() -> None:
    """Memory that copies slowly, for the library's packing and for the probe alike."""

    def gather(original: Callable[..., Any]) -> Callable[..., Any]:
        def work(packing: Packing, packed: Any) -> None:
            time.sleep(packed.nbytes / MEMORY_BYTES_PER_S)
            original(packing, packed)

        return work

    def copy(original: Callable[..., Any]) -> Callable[..., Any]:
        def samples(memory: CPUMemory) -> list[tuple[float, str]]:
            slow = MEMORY_BYTES_PER_S / 1e9
            # As if the copy's own time came on top of the slow memory's.
            return [(1 / (1 / rate + 1 / slow), shape) for rate, shape in original(memory)]

        return samples

    replace_call(Packing, "gather", gather)
    replace_call(CPUMemory, "copy", copy)


@fault
def polling_sink() -> None:
    """Both ranks have one core, and the sink looks for chunks again and again without sleeping."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if RANK == 0:
        return

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def sleep(seconds: float) -> None:
            if (
                CurrentPhase.phase != "receive"
                or CurrentPhase.arm is None
                or not CurrentPhase.arm.startswith("mpi")
            ):
                original(seconds)

        return sleep

    replace_call(time, "sleep", make)
