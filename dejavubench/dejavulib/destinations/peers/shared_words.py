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
    """The place of shared words, for the process that opens them.

    Attributes:
        pid, file_descriptor: process that made the words, and its descriptor of their file.
        token: content of the last word, which tells this memory from any other.
    """

    pid: int
    file_descriptor: int
    word_count: int
    token: int


class SharedWords:
    """Words that two processes of this host share. Nothing stays behind when both have ended.

    Attributes:
        words: the words, as integers.
        address: address of the first one in this process.
        nbytes: bytes of the memory, whole pages.
    """

    def __init__(self, file_descriptor: int, word_count: int) -> None:
        self.nbytes = _count_page_nbytes(word_count)
        self._file_descriptor = file_descriptor
        memory = mmap.mmap(file_descriptor, self.nbytes)
        all_words = np.frombuffer(memory, np.int64)
        self.words = all_words.data[:-1]
        self._token = all_words.data[-1:]
        self.address = all_words.ctypes.data

    @classmethod
    def create(cls, word_count: int) -> SharedWords:
        """Make at least ``word_count`` words, all 0."""
        # A file without a name: no other program finds it, and it ends with its processes.
        file_descriptor = os.memfd_create("dejavulib-words")
        os.ftruncate(file_descriptor, _count_page_nbytes(word_count))
        shared = cls(file_descriptor, word_count)
        shared._token[0] = secrets.randbits(62)
        return shared

    def offer(self) -> WordsOffer:
        """Return the place of these words for another process. It is valid until :meth:`close`."""
        return WordsOffer(os.getpid(), self._file_descriptor, len(self.words), self._token[0])

    @classmethod
    def open(cls, offer: WordsOffer) -> SharedWords:
        """Open the words of another process.

        Raises:
            PeerMemoryError: they cannot be reached from this process.
        """
        path = f"/proc/{offer.pid}/fd/{offer.file_descriptor}"
        try:
            opened = cls(os.open(path, os.O_RDWR), offer.word_count)
            is_other = opened._token[0] != offer.token
        except (OSError, ValueError) as error:
            raise PeerMemoryError(
                f"{path} of the other process cannot be opened: {error}"
            ) from None
        if is_other:
            raise PeerMemoryError(
                f"{path} is not the other process's memory: the two see different processes "
                "(PID namespaces). Start both in one container"
            )
        return opened

    def close(self) -> None:
        """Close the file. The memory is freed with the last object that reads it."""
        os.close(self._file_descriptor)


def _count_page_nbytes(word_count: int) -> int:
    """Return the bytes of the pages that hold ``word_count`` words and the token."""
    return -(-(word_count + 1) * WORD_NBYTES // mmap.PAGESIZE) * mmap.PAGESIZE


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it yet."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    # The state comes behind the name, which may hold any character.
    return text.rpartition(")")[2].split()[0] in ("Z", "X")
