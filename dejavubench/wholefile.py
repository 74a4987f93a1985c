"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there moves to ``path`` when the block ends.

    A block that raises, on a full disk for example, leaves ``path`` as it was and no temporary file. A device or a
    pipe is written to directly.

    Raises:
        FileExistsError: ``path`` exists and is not to be overwritten.
        OSError: it cannot be written.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path)) if overwrite else path  # a link goes on pointing at what is overwritten
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems notice only now that they are full
        _put(partial, target, overwrite)
    finally:
        partial.unlink(missing_ok=True)


def _put(partial: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        if target.exists():
            if not os.access(target, os.W_OK):
                raise PermissionError(13, "Permission denied", str(target))
            shutil.copymode(target, partial)
        partial.replace(target)
        return
    try:
        os.link(partial, target)  # unlike a rename it never replaces what somebody else has put there meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        partial.rename(target)
