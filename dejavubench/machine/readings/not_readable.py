"""The error of a reader that finds nothing to read, and reading a file under it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/")


class NotReadableError(Exception):
    """A counter that cannot be read. The message is the reason."""


def read_kernel_file(path: Path) -> str:
    """Return the text of a file of the kernel.

    Raises:
        NotReadableError: the file is missing, forbidden or broken.
    """
    try:
        return os.fsdecode(path.read_bytes())
    except OSError as error:
        raise NotReadableError(f"{path}: {error.strerror or error}") from None
