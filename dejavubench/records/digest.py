"""Digests that show that the lines of a file are those that were written."""

from __future__ import annotations

import hashlib


class Digest:
    """A digest of lines that does not depend on their line ends."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: bytes) -> None:
        """Add one line or several."""
        for text_line in line.splitlines():
            # Copies between systems may change line ends and add an empty line: no record changes.
            if text_line.strip():
                self._hash.update(text_line + b"\n")

    def hex(self) -> str:
        """Return the digest so far, 32 hexadecimal digits."""
        return self._hash.hexdigest()


def digest_of(content: bytes) -> str:
    """Return the digest of a whole file, whatever its line ends are."""
    digest = Digest()
    digest.add(content)
    return digest.hex()
