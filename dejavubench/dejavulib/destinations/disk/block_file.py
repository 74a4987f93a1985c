"""A preallocated file, written in order, as durable as a named option says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from ... import progress
from ...packing import PAGE_NBYTES, aligned_buffer
from ..base import StorageError, WrongBytesError

Durability = Literal["fdatasync", "direct", "page-cache"]
"""When a write counts as complete: synced, past the page cache and synced, or in the page cache."""

FILL_NBYTES = 4 << 20
"""Bytes of one write while a file is overwritten."""


def parse_durability(name: str | None) -> Durability:
    """Return the durability of a name. Raises ValueError: there is none."""
    options: tuple[Durability, ...] = get_args(Durability)
    for durability in options:
        if durability == name:
            return durability
    raise ValueError(f"there is no durability {name!r}: there are {', '.join(options)}")


def open_flags(durability: Durability) -> int:
    """Return the flags of a file that is created now and must not exist."""
    return os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if durability == "direct" else 0)


class BlockFile:
    """A file of a fixed size.

    Args:
        path: no such file may exist.
        nbytes: size of the file, whole pages. Allocated now, so that later writes find room.
        durability: ``fdatasync`` writes through the page cache, ``direct`` past it by O_DIRECT.
            With both, :meth:`sync` returns when the bytes are on the device. ``page-cache``: the
            bytes survive the process, not a loss of power.
        keep: leave the file. Off: it loses its name now, so even a killed process leaves nothing.

    Raises:
        StorageError: it cannot be created, or the device has no room for it. The methods raise it
            if the file cannot be written or read.
    """

    def __init__(self, path: Path, nbytes: int, durability: Durability, keep: bool) -> None:
        self.path = path
        self.nbytes = nbytes
        self._durability = durability
        # With direct: the bytes of an incomplete page at the end of the last write. They are
        # written again with the next bytes, because the device takes whole pages only.
        self._tail = np.empty(0, np.uint8)
        self._joined_buffer = aligned_buffer(PAGE_NBYTES)
        try:
            self._fd = os.open(path, open_flags(durability), 0o644)
        except OSError as error:
            raise StorageError(
                f"cannot create {path} for {durability} streaming: {error.strerror}"
            ) from None
        if not keep:
            os.unlink(path)  # the open descriptor keeps the file until the process ends
        try:
            os.posix_fallocate(self._fd, 0, nbytes)
        except OSError as error:
            os.close(self._fd)
            if keep:
                os.unlink(path)
            raise StorageError(
                f"no room for {nbytes} bytes in {path.parent}: {error.strerror}"
            ) from None

    def write(self, offset: int, data: np.ndarray) -> None:
        """Write bytes; they are durable after :meth:`sync`.

        Args:
            offset: beginning of a page, or the end of the last write.
            data: uint8.
        """
        if self._durability != "direct":
            self._pwrite(offset, data)
            return
        # The device takes whole pages from aligned memory. A write that begins within a page
        # writes the page again from its beginning; one that ends within a page pads it with zeros.
        head = offset % PAGE_NBYTES
        is_aligned = not head and data.ctypes.data % PAGE_NBYTES == 0
        aligned_data = data if is_aligned else self._align(self._tail[:head], data)
        whole_nbytes = len(aligned_data) // PAGE_NBYTES * PAGE_NBYTES
        self._pwrite(offset - head, aligned_data[:whole_nbytes])
        self._tail = aligned_data[whole_nbytes:].copy()
        if len(self._tail):
            padding = np.zeros(PAGE_NBYTES - len(self._tail), np.uint8)
            self._pwrite(offset - head + whole_nbytes, self._align(self._tail, padding))

    def sync(self) -> None:
        """Return when everything written is as durable as the option says."""
        if self._durability != "page-cache":
            self.flush_to_device()

    def flush_to_device(self) -> None:
        """Return when everything written is on the device, whatever the option says."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path} to its device: {error.strerror}"
            ) from None

    def read(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return bytes [offset, offset + nbytes) as uint8.

        Raises:
            WrongBytesError: the file ends before.
            StorageError: it cannot be read.
        """
        progress.listener.count_progress()
        page_offset = offset // PAGE_NBYTES * PAGE_NBYTES
        pages = aligned_buffer(-(-(offset + nbytes - page_offset) // PAGE_NBYTES) * PAGE_NBYTES)
        read_nbytes = 0
        while read_nbytes < offset + nbytes - page_offset:
            try:
                piece_nbytes = os.preadv(
                    self._fd, [pages.numpy().data[read_nbytes:]], page_offset + read_nbytes
                )
            except OSError as error:
                raise StorageError(f"cannot read {self.path}: {error.strerror}") from None
            if piece_nbytes == 0:
                raise WrongBytesError(
                    f"{self.path.name} ends at byte {page_offset + read_nbytes}, "
                    f"before {offset + nbytes}"
                )
            read_nbytes += piece_nbytes
        return pages[offset - page_offset : offset - page_offset + nbytes]

    def forget_cached(self) -> None:
        """Let the next read ask the device, unless the page cache is all that was promised."""
        if self._durability != "page-cache":
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: the device has no room; network file systems may report that only now.
        """
        try:
            os.close(self._fd)
        except OSError as error:
            raise StorageError(f"cannot close {self.path}: {error.strerror}") from None

    def _align(self, *arrays: np.ndarray) -> np.ndarray:
        """Return the arrays one behind the other in aligned memory."""
        nbytes = sum(map(len, arrays))
        if self._joined_buffer.numel() < nbytes:
            self._joined_buffer = aligned_buffer(nbytes)
        return np.concatenate(arrays, out=self._joined_buffer.numpy()[:nbytes])

    def _pwrite(self, offset: int, data: np.ndarray) -> None:
        written_nbytes = 0
        try:
            while written_nbytes < len(data):
                written_nbytes += os.pwrite(
                    self._fd, data.data[written_nbytes:], offset + written_nbytes
                )
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from None


class FilePart:
    """The bytes of a :class:`BlockFile` from ``start``, the beginning of a page, to its end."""

    def __init__(self, file: BlockFile, start: int) -> None:
        self._file = file
        self._start = start

    def fill_(self, value: int, /) -> None:
        """Set every byte to ``value``; return when they are on the device.

        Raises:
            StorageError: the file cannot be written.
        """
        filling = aligned_buffer(FILL_NBYTES).fill_(value).numpy()
        for offset in range(self._start, self._file.nbytes, FILL_NBYTES):
            self._file.write(offset, filling[: min(FILL_NBYTES, self._file.nbytes - offset)])
            progress.listener.count_progress()
        self._file.flush_to_device()
