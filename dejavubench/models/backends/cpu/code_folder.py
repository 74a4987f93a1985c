"""The folder of compiled kernels on the user's disk. Files of other users are never read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from dejavubench.models.backends.cpu.code_file import UntrustedError
from dejavubench.models.backends.protocol import Say

FOLDER_VARIABLE = "DEJAVUBENCH_KERNEL_CACHE"
"""Environment variable with the cache's folder; empty: no cache."""


def find_cache_folder() -> Path | None:
    """Return the folder of compiled kernels; None: none are kept."""
    folder_text = os.environ.get(FOLDER_VARIABLE)
    if folder_text is not None:
        return Path(folder_text).absolute() if folder_text else None
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (
        (
            Path(user_cache)
            if user_cache and Path(user_cache).is_absolute()
            else Path.home() / ".cache"
        )
        / "dejavubench"
        / "kernels"
    )


def open_folder(say: Say) -> Path | None:
    """Return the folder, made if need be; None, after a line to ``say``, if it must not be used."""
    try:
        folder = find_cache_folder()
        if folder is None:
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_owned(folder.lstat(), stat.S_ISDIR, 0o077, "be a folder")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home is known
        say(f"compiled kernels are not kept: {error}")
    except UntrustedError as error:
        say(f"compiled kernels are neither read from {folder} nor kept there: {error}")
    else:
        return folder
    return None


def _check_owned(
    status: os.stat_result, is_kind: Callable[[int], bool], closed_bits: int, requirement: str
) -> None:
    """Raise UntrustedError unless it is this user's, of that kind, and closed to others."""
    if not is_kind(status.st_mode):
        raise UntrustedError(f"it must {requirement}")
    if status.st_uid != os.geteuid():
        raise UntrustedError(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & closed_bits:
        raise UntrustedError(
            f"others have access to it (mode {stat.S_IMODE(status.st_mode):04o}); "
            "close it with chmod go="
        )


def read_file(file: Path) -> bytes | None:
    """Return the content of a file of this user's; None if there is no such file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as opened_file:
        _check_owned(os.fstat(descriptor), stat.S_ISREG, 0o022, "be a regular file")
        return opened_file.read()
