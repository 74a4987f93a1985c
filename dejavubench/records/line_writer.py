"""Writing a file of records line by line, so that the lines survive whatever comes next."""

from __future__ import annotations

from pathlib import Path

from dejavubench.records.digest import Digest


class LineWriter:
    """A new file of a run's folder.

    Raises:
        FileExistsError: there is a file of this name. No run alters the records of another one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "x", encoding="utf-8")  # noqa: SIM115 - open for the run
        self._digest = Digest()

    def write(self, line: str) -> None:
        """Append a line and hand it to the kernel, which keeps it if this process dies."""
        # Digested here and not read back: what anybody else writes into the file then shows.
        self._digest.add(line.encode())
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            # The kernel's error names no file.
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    @property
    def digest(self) -> str:
        """The digest of all lines so far."""
        return self._digest.hex()

    @property
    def seal(self) -> dict[str, str]:
        """The digest by the file's name, as an End record keeps it."""
        return {self.path.name: self.digest}

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def close(self) -> None:
        """Close the file. The kernel has every line already."""
        self._file.close()
