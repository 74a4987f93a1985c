"""``python -m dejavubench.doctor.facts.disk_probe FOLDER SECONDS``: probe of a file system.

It prints JSON: the fields of :class:`~dejavubench.doctor.facts.folders.DiskSpeed`, or ``problem``.
The file has no name, so that a killed probe leaves nothing.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from typing import Any

LARGE_WRITE_NBYTES = 4 << 20
"""Bytes of a large write, as of a prompt's chunk."""

SMALL_WRITE_NBYTES = 4 << 10
"""Bytes of a small write: what a token's chunk of a small model takes, and a page."""

FILE_NBYTES = 128 << 20
"""Bytes of the file, over which the large writes go in circles."""


def measure(folder: str, seconds: float) -> dict[str, Any]:
    """Write for half the time in large pieces, for the other half in small ones."""
    status = os.statvfs(folder)
    # A quarter of the room at most: the probe must not fill a disk that others use.
    file_nbytes = min(FILE_NBYTES, status.f_bavail * status.f_frsize // 4)
    file_nbytes -= file_nbytes % LARGE_WRITE_NBYTES
    if not file_nbytes:
        return {"problem": f"less than {4 * LARGE_WRITE_NBYTES >> 20} MiB are free"}
    descriptor, path = tempfile.mkstemp(prefix=".dejavubench-doctor-", dir=folder)
    os.unlink(path)
    try:
        memory = mmap.mmap(-1, LARGE_WRITE_NBYTES)  # begins at a page, as direct writes would need
        # Random: a file system that compresses would write less than this.
        memory.write(os.urandom(LARGE_WRITE_NBYTES))
        large_block = memoryview(memory)
        large_times_s = _time_writes(descriptor, large_block, file_nbytes, seconds / 2)
        small_times_s = _time_writes(
            descriptor, large_block[:SMALL_WRITE_NBYTES], file_nbytes, seconds / 2
        )
    finally:
        os.close(descriptor)
    small_ms = sorted(1e3 * write_s for write_s in small_times_s)
    return {
        "write_gb_s": LARGE_WRITE_NBYTES * len(large_times_s) / sum(large_times_s) / 1e9,
        "write_nbytes": LARGE_WRITE_NBYTES,
        "sync_ms": statistics.median(small_ms),
        "sync_p99_ms": small_ms[min(len(small_ms) - 1, int(0.99 * len(small_ms)))],
        "syncs": len(small_ms),
    }


def _time_writes(
    descriptor: int, block: memoryview, file_nbytes: int, seconds: float
) -> list[float]:
    """Return the seconds of each write with its fdatasync."""
    write_times_s: list[float] = []
    deadline_s = time.perf_counter() + seconds
    while True:
        offset = len(write_times_s) * len(block) % file_nbytes
        began_s = time.perf_counter()
        written_nbytes = 0
        while written_nbytes < len(block):
            written_nbytes += os.pwrite(descriptor, block[written_nbytes:], offset + written_nbytes)
        os.fdatasync(descriptor)
        now_s = time.perf_counter()
        write_times_s.append(now_s - began_s)
        if now_s >= deadline_s:
            return write_times_s


def main() -> None:
    """Print the speeds of a folder's file system as JSON, or the problem as ``{"problem": …}``."""
    folder, seconds = sys.argv[1:]
    try:
        speeds = measure(folder, float(seconds))
    except OSError as error:
        speeds = {"problem": f"cannot be written: {error.strerror}"}
    print(json.dumps(speeds))


if __name__ == "__main__":
    main()
