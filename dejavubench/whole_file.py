"""Writing a file as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STREAM_FOLDERS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
"""Folders whose entries are devices and open streams, never files of their own."""


def is_stream(path: Path) -> bool:
    """Return whether a path is a device, a pipe or an open stream, which cannot be replaced."""
    if not path.exists() or path.is_dir():
        return False
    # /dev/stdout looks like a regular file if the shell has redirected standard output to one.
    return not path.is_file() or path.parent in STREAM_FOLDERS


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write or replace a file of this program. A reader sees all of the content or none of it.

    There is no fsync: a file system that hangs should hold up as little as possible.

    Args:
        mode: permissions of the file, less those that the umask takes away.

    Raises:
        OSError: the file cannot be written. Its filename is ``path``, and no other file is left.
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
def write_whole_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block ends.

    If the block raises, on a full disk for example, ``path`` stays as it was and the temporary
    file is removed. For a device, a pipe or an open stream, ``path`` itself is yielded.

    Raises:
        FileExistsError: ``path`` is a file that exists, and ``overwrite`` is False.
        OSError: the file cannot be written.
    """
    if is_stream(path):
        yield path
        return
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    # A link keeps pointing at the file that is overwritten.
    target = Path(os.path.realpath(path)) if overwrite else path
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems report only now that they are full
        _move_into_place(partial, target, overwrite)
    finally:
        partial.unlink(missing_ok=True)


def _move_into_place(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename ``partial`` to ``target``; without ``overwrite`` fail if that exists by now."""
    if overwrite:
        if target.exists():
            if not os.access(target, os.W_OK):
                raise PermissionError(13, "Permission denied", str(target))
            shutil.copymode(target, partial)
        partial.replace(target)
        return
    try:
        # Unlike a rename, a link never replaces a file that appeared in the meantime.
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        partial.rename(target)
