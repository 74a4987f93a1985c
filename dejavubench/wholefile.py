"""Ground floor: writing files whole or not at all. Needs the standard library alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file of this program's own; one that is there is replaced. A reader sees all of it or nothing.

    The device is not waited for, so that a file system that hangs holds up as little as possible.

    Args:
        mode: permissions of the file, less those that the umask takes away.

    Raises:
        OSError: it cannot be written; its filename is ``path``, and no other file is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb"
        ) as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, for a file that a user names; it becomes ``path`` when the block ends.

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
    target = (
        Path(os.path.realpath(path)) if overwrite else path
    )  # a link goes on pointing at what is overwritten
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
        os.link(
            partial, target
        )  # unlike a rename it never replaces what somebody else has put there meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        partial.rename(target)
