"""The ``disk`` destination beside a raw loop of sequential writes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dejavubench.dejavulib.destinations.disk import DiskDestination
from dejavubench.dejavulib.destinations.disk.block_file import Durability, open_flags
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.packing import aligned_buffer
from dejavubench.transports.probe import (
    DISK_CHUNK_COUNT,
    MESSAGE_NBYTES,
    Probe,
    Sample,
    make_message_stream,
    time_call,
)

NAIVE_WRITE_COUNT = 4096
"""Writes of 16 bytes in one measurement of them."""

SYNCED_WRITE_COUNT = 32
"""The same if each write waits for the device."""


class DiskLoops:
    """Sequential writes of one size, each as durable as the option says: raw, and the destination.

    Both overwrite files whose blocks are there already, so that neither allocates.

    Raises:
        OSError, StorageError: the files cannot be made or written.
    """

    def __init__(self, directory: Path, name: str, durability: Durability) -> None:
        self.durability = durability
        # Page-aligned, as writes past the page cache need it.
        self._message = aligned_buffer(MESSAGE_NBYTES).fill_(1)
        self._destination = DiskDestination(
            directory=directory,
            name=f"{name}-ceiling",
            durability=self.durability,
            keep=False,
            identity={},
        )
        # The same flags as the destination's file: both go past the page cache, or neither does.
        self._raw_fd = os.open(directory / f"{name}-raw", open_flags(self.durability), 0o600)
        os.unlink(directory / f"{name}-raw")  # a killed process leaves nothing
        self._stream = make_message_stream(DISK_CHUNK_COUNT)
        try:
            self._write_raw()
        except OSError:
            self.close()
            raise

    def probes(self) -> list[Probe]:
        """Return the raw loop, the destination and the naive loop, of one durability option."""
        return [
            Probe(name, unit, measure, self.durability, may_fail=True)
            for name, unit, measure in (
                ("disk-write", "GB/s", self.time_write),
                ("disk-destination", "GB/s", self.time_destination),
                ("disk-run", "us", self.time_naive),
            )
        ]

    def _write_raw(self) -> None:
        for chunk_index in range(DISK_CHUNK_COUNT):
            written_nbytes = 0
            # A write may be cut short where the disk fills up.
            while written_nbytes < MESSAGE_NBYTES:
                written_nbytes += os.pwrite(
                    self._raw_fd,
                    self._message.numpy().data[written_nbytes:],
                    chunk_index * MESSAGE_NBYTES + written_nbytes,
                )
            if self.durability != "page-cache":
                os.fdatasync(self._raw_fd)

    def time_write(self) -> list[Sample]:
        """Run the raw loop, over a file that has just been written whole, as the destination's."""
        self._write_raw()
        # Dirty pages of this pass must not be written back in the timed one.
        os.fdatasync(self._raw_fd)
        return self._make_samples(time_call(self._write_raw))

    def time_destination(self) -> list[Sample]:
        """Run the destination's flush."""
        self._destination.begin(self._stream)
        for buffer in self._destination.buffers(self._stream):
            buffer.fill_(0)  # allocates the file's blocks
        # Level 2 issues one chunk per layer, of exactly one message.
        chunks = list(self._stream.schedule.all_chunks(LEVELS["2"]))
        began_s = time.perf_counter()
        for chunk in chunks:
            self._destination.flush(self._stream, chunk, self._message)
        return self._make_samples(time.perf_counter() - began_s)

    def time_naive(self) -> list[Sample]:
        """Time one 16-byte write of the naive loop, in microseconds."""
        write_count = SYNCED_WRITE_COUNT if self.durability == "fdatasync" else NAIVE_WRITE_COUNT
        message_bytes = self._message.numpy()
        if self.durability == "direct":  # the destination gathers them into pages of its own
            return []
        began_s = time.perf_counter()
        for offset in range(0, 16 * write_count, 16):
            os.pwrite(self._raw_fd, message_bytes[offset : offset + 16].data, offset)
            if self.durability == "fdatasync":
                os.fdatasync(self._raw_fd)
        return [((time.perf_counter() - began_s) / write_count * 1e6, f"16 B, {self.durability}")]

    def _make_samples(self, duration_s: float) -> list[Sample]:
        shape = f"{DISK_CHUNK_COUNT} × {MESSAGE_NBYTES >> 20} MiB, {self.durability}"
        return [(DISK_CHUNK_COUNT * MESSAGE_NBYTES / duration_s / 1e9, shape)]

    def close(self) -> None:
        """Close the raw file, which has no name any more, and the destination's."""
        os.close(self._raw_fd)
        self._destination.close()


def time_write_overhead() -> list[Sample]:
    """Time the naive loop's write to nowhere, in microseconds: Python and the system call alone."""
    small_buffer = aligned_buffer(16).numpy().data
    with open(os.devnull, "wb", buffering=0) as null_device:
        duration_s = time_call(
            lambda: [
                os.pwrite(null_device.fileno(), small_buffer, 0) for _ in range(NAIVE_WRITE_COUNT)
            ]
        )
    return [(duration_s / NAIVE_WRITE_COUNT * 1e6, "16 B to /dev/null")]
