"""UCX as the MPI library of this process uses it, read from UCX's own log.

UCX writes one line for each kind of connection that it makes, with the transports that it has
chosen. A rank asks for these lines before MPI starts, in a file of its own.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LEVEL_VARIABLE = "UCX_LOG_LEVEL"
"""Environment variable that makes UCX write its choice of transports to its log."""

FILE_VARIABLE = "UCX_LOG_FILE"
"""Environment variable that names the file of UCX's log."""

_VERSION = re.compile(r"Version (\S+) \(loaded from")
_CONNECTION = re.compile(r"\b(self|intra-node|inter-node) cfg#\d+ (.*)")
_LANES = re.compile(r"\b(?:tag|am)\(([^)]*)\)")

MAPS = Path("/proc/self/maps")
"""Files that this process has mapped, libraries among them."""


@dataclass(frozen=True)
class UCXFacts:
    """UCX in this process.

    Attributes:
        loaded: the MPI library has loaded UCX.
        version: empty if UCX has not said it.
        paths: transports by the kind of connection, ``intra-node`` or ``inter-node``, such as
            ``sysv, cma``.
        unread: why UCX was not asked.
    """

    loaded: bool
    version: str = ""
    paths: tuple[tuple[str, str], ...] = ()
    unread: str | None = None


class UCXLog:
    """UCX's log of this process. Make it before MPI starts.

    Attributes:
        unread: why UCX is not asked: the user has set one of its variables.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        user_variables = [name for name in (LEVEL_VARIABLE, FILE_VARIABLE) if name in environment]
        self.unread = f"{user_variables[0]} is set" if user_variables else None
        self._environment = environment
        self._folder: Path | None = None
        self._file: IO[str] | None = None
        if not user_variables:
            self._folder = Path(tempfile.mkdtemp(prefix="dejavubench-doctor-"))
            environment.update({LEVEL_VARIABLE: "info", FILE_VARIABLE: str(self._folder / "log")})

    def unlink(self) -> None:
        """Take the file out of its folder, once MPI runs: a killed process leaves nothing."""
        if self._folder is not None:
            files = list(self._folder.iterdir())  # UCX has opened it, if it is there at all
            self._file = files[0].open(errors="replace") if files else None
            shutil.rmtree(self._folder)
            # Else the UCX of a child process has no folder for its log.
            for name in (LEVEL_VARIABLE, FILE_VARIABLE):
                del self._environment[name]

    def read(self) -> UCXFacts:
        """Return the lines that UCX has written so far."""
        is_loaded = _is_loaded("libucp.so")
        if self.unread is not None:
            return UCXFacts(is_loaded, unread=self.unread)
        ctypes.CDLL(None).fflush(None)  # UCX keeps its lines in the C library's buffer
        return read_log([] if self._file is None else self._file, is_loaded)


def read_log(lines: Iterable[str], is_loaded: bool) -> UCXFacts:
    """Return version and transports from the lines of a log."""
    version = ""
    paths: dict[str, str] = {}
    for line in lines:
        if (match := _VERSION.search(line)) is not None:
            version = match[1]
        if (match := _CONNECTION.search(line)) is not None and match[1] != "self":
            lanes = [lane for group in _LANES.findall(match[2]) for lane in group.split()]
            # A lane is transport/device. The device says nothing where it is memory.
            transports = dict.fromkeys(lane.removesuffix("/memory") for lane in lanes)
            paths[match[1]] = ", ".join(transports)
    return UCXFacts(is_loaded, version, tuple(sorted(paths.items())))


def _is_loaded(library: str) -> bool:
    """Return whether this process has loaded a library."""
    # Names of files may hold any bytes, so they are not decoded as UTF-8.
    text = os.fsdecode(MAPS.read_bytes()) if MAPS.exists() else ""
    return any(line.rpartition("/")[2].startswith(library) for line in text.splitlines())
