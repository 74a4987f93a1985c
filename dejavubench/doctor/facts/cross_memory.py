"""Cross-memory attach (CMA): may one rank read another one's memory?

MPI and UCX copy large messages within a host so, once instead of twice.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

SECRET = b"readable"
"""Bytes that each rank offers, to tell a rank's memory from a stranger's."""


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@dataclass(frozen=True)
class ReadableMemory:
    """Some bytes of this process that others may try to read."""

    pid: int
    address: int


# Kept for the life of the process: another rank reads it while this one does something else.
_shown = ctypes.create_string_buffer(SECRET, len(SECRET))


def shown() -> ReadableMemory:
    """Return the place of this process's readable bytes."""
    return ReadableMemory(os.getpid(), ctypes.addressof(_shown))


def read_problem(place: ReadableMemory) -> str | None:
    """Read the bytes of another process; return why that fails, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "process_vm_readv", None)
    if call is None:
        return "this C library has no process_vm_readv"
    into = ctypes.create_string_buffer(len(SECRET))
    mine = _Piece(ctypes.addressof(into), len(SECRET))
    theirs = _Piece(place.address, len(SECRET))
    call.restype = ctypes.c_ssize_t
    count = call(ctypes.c_int(place.pid), ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    if count < 0:
        return os.strerror(ctypes.get_errno())
    # Ranks in containers of their own have process numbers of their own: a stranger may answer.
    return None if into.raw == SECRET else "another process has this process number"
