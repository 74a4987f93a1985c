"""Cross-memory attach (CMA): may one rank read another one's memory?

With CMA, MPI and UCX copy a large message within a host once instead of twice.
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


# Kept for the life of the process: another rank reads the bytes while this rank does other work.
_readable_bytes = ctypes.create_string_buffer(SECRET, len(SECRET))


def own_memory() -> ReadableMemory:
    """Return the place of this process's readable bytes."""
    return ReadableMemory(os.getpid(), ctypes.addressof(_readable_bytes))


def read_problem(place: ReadableMemory) -> str | None:
    """Read the bytes of another process; return why that fails, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    read_memory = getattr(libc, "process_vm_readv", None)
    if read_memory is None:
        return "this C library has no process_vm_readv"
    buffer = ctypes.create_string_buffer(len(SECRET))
    own_piece = _Piece(ctypes.addressof(buffer), len(SECRET))
    peer_piece = _Piece(place.address, len(SECRET))
    read_memory.restype = ctypes.c_ssize_t
    count = read_memory(
        ctypes.c_int(place.pid), ctypes.byref(own_piece), 1, ctypes.byref(peer_piece), 1, 0
    )
    if count < 0:
        return os.strerror(ctypes.get_errno())
    # Ranks in containers of their own have process numbers of their own: a stranger may answer.
    return None if buffer.raw == SECRET else "another process has this process number"
