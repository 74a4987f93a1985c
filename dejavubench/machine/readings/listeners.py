"""The processes that listen on a TCP port of this network namespace, from ``/proc``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from dejavubench.machine.readings.not_readable import ROOT, NotReadableError, read_kernel_file

_LISTENING = "0A"


def find_listening_pids(ports: Collection[int], root: Path = ROOT) -> set[int]:
    """Return the processes that listen on one of the ports and that this user may look into."""
    sockets = set[str]()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(NotReadableError):  # a kernel without IPv6 has no tcp6
            sockets |= _find_sockets(read_kernel_file(root / "proc/net" / name), ports)
    if not sockets:
        return set()
    pids = set[int]()
    for process in (root / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            if any(
                os.readlink(descriptor.path) in sockets for descriptor in os.scandir(process / "fd")
            ):
                pids.add(int(process.name))
    return pids


def _find_sockets(table: str, ports: Collection[int]) -> set[str]:
    inodes = set[str]()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTENING:
            continue
        if int(fields[1].rpartition(":")[2], 16) in ports:
            inodes.add(f"socket:[{fields[9]}]")
    return inodes
