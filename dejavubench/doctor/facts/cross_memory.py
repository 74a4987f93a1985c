"""Cross-memory attach (CMA): may one rank read another one's memory?

With CMA, MPI and UCX copy a large message within a host once instead of twice.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

OFFERED_BYTES = b"readable"
"""Bytes that each rank offers, to tell a rank's memory from a stranger's."""


class _IOVec(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@dataclass(frozen=True)
class ReadableMemory:
    """Some bytes of this process that others may try to read."""

    pid: int
    address: int


# Kept for the life of the process: another rank reads the bytes while this rank does other work.
_readable_bytes = ctypes.create_string_buffer(OFFERED_BYTES, len(OFFERED_BYTES))


def locate_readable_bytes() -> ReadableMemory:
    """Return the place of this process's readable bytes."""
    return ReadableMemory(os.getpid(), ctypes.addressof(_readable_bytes))


def find_read_problem(memory: ReadableMemory) -> str | None:
    """Read the bytes of another process; return why that fails, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    read_memory = getattr(libc, "process_vm_readv", None)
    if read_memory is None:
        return "this C library has no process_vm_readv"
    buffer = ctypes.create_string_buffer(len(OFFERED_BYTES))
    own_vector = _IOVec(ctypes.addressof(buffer), len(OFFERED_BYTES))
    peer_vector = _IOVec(memory.address, len(OFFERED_BYTES))
    read_memory.restype = ctypes.c_ssize_t
    read_nbytes = read_memory(
        ctypes.c_int(memory.pid), ctypes.byref(own_vector), 1, ctypes.byref(peer_vector), 1, 0
    )
    if read_nbytes < 0:
        return os.strerror(ctypes.get_errno())
    # Ranks in containers of their own have process numbers of their own: a stranger may answer.
    return None if buffer.raw == OFFERED_BYTES else "another process has this process number"
