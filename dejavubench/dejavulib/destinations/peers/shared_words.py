"""Words of host memory that two processes of one host see: 64-bit integers.

A CPU stores them, or a CUDA stream does behind its copies; the other process's CPU reads them
without a call of CUDA or MPI.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..base import StreamingError

WORD_NBYTES = 8
"""Bytes of a word. An aligned word is stored and read whole."""


class PeerMemoryError(StreamingError):
    """Memory cannot be shared between two processes; the message says why."""


class WordsOffer(NamedTuple):
    """The place of shared words, for the process that opens them."""

    pid: int
    file: int
    length: int
    token: int


class SharedWords:
    """Words that two processes of this host share. Nothing stays behind when both have ended.

    Attributes:
        words: the words, as integers.
        address: address of the first one in this process.
        nbytes: bytes of the memory, whole pages.
    """

    def __init__(self, file: int, count: int) -> None:
        self.nbytes = _whole_pages(count)
        self._file = file
        memory = mmap.mmap(file, self.nbytes)
        content = np.frombuffer(memory, np.int64)
        # The last word tells the memory from any other.
        self.words = content.data[:-1]
        self._token = content.data[-1:]
        self.address = content.ctypes.data

    @classmethod
    def create(cls, count: int) -> SharedWords:
        """Make at least ``count`` words, all 0."""
        # A file without a name: no other program finds it, and it ends with its processes.
        file = os.memfd_create("dejavulib-words")
        os.ftruncate(file, _whole_pages(count))
        shared = cls(file, count)
        shared._token[0] = secrets.randbits(62)
        return shared

    def offer(self) -> WordsOffer:
        """Return the place of these words for another process. It is valid until :meth:`close`."""
        return WordsOffer(os.getpid(), self._file, len(self.words), self._token[0])

    @classmethod
    def open(cls, offer: WordsOffer) -> SharedWords:
        """Open the words of another process.

        Raises:
            PeerMemoryError: they cannot be reached from this process.
        """
        place = f"/proc/{offer.pid}/fd/{offer.file}"
        try:
            opened = cls(os.open(place, os.O_RDWR), offer.length)
            is_other = opened._token[0] != offer.token
        except (OSError, ValueError) as error:
            raise PeerMemoryError(
                f"{place} of the other process cannot be opened: {error}"
            ) from None
        if is_other:
            raise PeerMemoryError(
                f"{place} is not the other process's memory: the two see different processes "
                "(PID namespaces). Start both in one container"
            )
        return opened

    def close(self) -> None:
        """Let go of the file; the memory goes with the last object that reads it."""
        os.close(self._file)


def _whole_pages(count: int) -> int:
    """Return the bytes of the pages that hold so many words, and the token."""
    return -(-(count + 1) * WORD_NBYTES // mmap.PAGESIZE) * mmap.PAGESIZE


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, be its parent told so or not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    # The state comes behind the name, which may hold any character.
    return text.rpartition(")")[2].split()[0] in ("Z", "X")
