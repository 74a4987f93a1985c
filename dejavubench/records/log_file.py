"""Lines of text files in any Unicode encoding, compressed or not, without terminal codes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""Openers of compressed files, by the bytes that these begin with."""

_UNREADABLE_FORMATS = {
    b"\x28\xb5\x2f\xfd": "is compressed with zstd",
    b"PK\x03\x04": "is a zip archive",
    b"7z\xbc\xaf": "is a 7z archive",
    b"\x89PNG": "is a picture",
    b"%PDF": "is a PDF",
    b"\x7fELF": "is a program",
}

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Encodings by byte order mark; a mark that begins with another one comes before it."""

_TERMINAL_CODES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]|\x00"
)
"""Colours, cursor movements, titles, and zero bytes.

A crash leaves zero bytes, and so does UTF-16 that is appended to ASCII.
"""


class LogFileError(Exception):
    """A file that cannot be read as text; the message names it."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file.

    Raises:
        LogFileError: the file is missing, unreadable, cut off within a compressed block, or holds
            no lines.
    """
    try:
        with path.open("rb") as file:
            # Peeked, not read: the opener needs these bytes as well.
            head = file.peek(8)[:8]
            for magic, file_type in _UNREADABLE_FORMATS.items():
                if head.startswith(magic):
                    raise LogFileError(f"{path} {file_type} and no text log")
            unpack = next(
                (opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None
            )
            yield from _decode_lines(file if unpack is None else unpack(file, "rb"))
    except EOFError:
        raise LogFileError(f"{path} is cut off: its compressed data end early") from None
    except (zlib.error, lzma.LZMAError) as error:
        raise LogFileError(f"{path} is damaged: {error}") from None
    except (OSError, ValueError) as error:
        raise LogFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _decode_lines(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a file block by block: a log may be larger than memory."""
    start = file.read(4096)
    # The order of _BYTE_ORDER_MARKS matters: UTF-32's mark begins with UTF-16's.
    mark = next((mark for mark in _BYTE_ORDER_MARKS if start.startswith(mark)), b"")
    encoding = _BYTE_ORDER_MARKS[mark] if mark else _guess_encoding(start)
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    block = start[len(mark) :]
    unfinished_line = ""
    while block:
        text = unfinished_line + decoder.decode(block)
        # The last piece may go on in the next block.
        *lines, unfinished_line = text.split("\n")
        yield from map(_strip_terminal_codes, lines) if "\x1b" in text or "\x00" in text else lines
        block = file.read(1 << 20)
    unfinished_line += decoder.decode(b"", final=True)
    if unfinished_line:
        yield _strip_terminal_codes(unfinished_line)


def _guess_encoding(start: bytes) -> str:
    """Guess the encoding: UTF-16 of Latin text has every other byte zero, the rest is UTF-8."""
    even_bytes, odd_bytes = start[0::2], start[1::2]
    for zeros, letters, name in (
        (odd_bytes, even_bytes, "utf-16-le"),
        (even_bytes, odd_bytes, "utf-16-be"),
    ):
        if zeros and zeros.count(0) > 0.9 * len(zeros) and letters.count(0) < 0.1 * len(letters):
            return name
    return "utf-8"


def _strip_terminal_codes(line: str) -> str:
    return _TERMINAL_CODES.sub("", line)
