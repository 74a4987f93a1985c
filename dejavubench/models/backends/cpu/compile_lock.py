"""The lock that lets one of several processes compile a kernel, while the others wait for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dejavubench.models.backends.protocol import Say

PATIENCE_S = 120.0
"""Seconds to wait for another process that compiles the same kernel; then this one does, too."""

NOTE_AFTER_S = 5.0
"""Seconds of waiting until a line says so."""

POLL_S = 0.02
"""Seconds between two looks for the other process's file."""


@contextmanager
def lock_kernel(folder: Path | None, kernel_file: str, say: Say) -> Iterator[bool]:
    """Yield whether this process alone compiles the kernel of a file now.

    It does not after too long a wait, or if files cannot be locked. The operating system frees the
    lock of a process that dies.
    """
    if folder is None:
        yield False
        return
    path = folder / f"{kernel_file}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # nothing can be written here, which storing the kernel will say
        yield False
        return
    try:
        is_alone = _try_lock(descriptor, say)
        yield is_alone
        if is_alone:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, say: Say) -> bool:
    """Return whether the lock was got, after at most ``PATIENCE_S`` of waiting."""
    began_s = time.monotonic()
    has_noted = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - began_s
            if waited_s > PATIENCE_S:
                return False
            if waited_s > NOTE_AFTER_S and not has_noted:
                say(f"another process compiles this kernel; waiting up to {PATIENCE_S:g} s for it")
                has_noted = True
            time.sleep(POLL_S)
        except OSError:  # a file system without locks
            return False
        else:
            return True
