"""Standard output and error of every command: no traceback if they are full, closed or broken.

- A character that the stream's encoding lacks is replaced by a plain one: ``×`` by ``x``.
- Standard error carries messages. A message that cannot be written is dropped; the command goes on.
- Standard output carries results. If its reader goes away (``| head -1``), the command ends
  silently with status 141, as other tools do. Any other failure ends it with one line and status 1.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

from dejavubench.errors import ExitStatus, OutputError

ASCII_TEXTS = {
    "×": "x",
    "·": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "µ": "u",  # the micro sign
    "μ": "u",  # the Greek letter
    "→": "->",
    "…": "...",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "─": "-",
    "│": "|",
    "σ": "sigma",
}
"""Replacements for characters that an encoding lacks."""

ERROR_HANDLER = "dejavubench.plain"
"""Name of the error handler that replaces characters the encoding lacks."""


def _replace_missing(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing_characters = error.object[error.start : error.end]
    return "".join(map(_replace_controls, missing_characters)), error.end


def _replace_controls(character: str) -> str:
    if character in ASCII_TEXTS:
        return ASCII_TEXTS[character]
    letters = "".join(
        letter for letter in unicodedata.normalize("NFKD", character) if letter.isascii()
    )
    return letters or "?"


class GuardedStream:
    """A text stream that raises OutputError at every call after a failure.

    One error is not enough, since click swallows the first. The stream has no ``buffer``, so that
    nothing writes past it. All other attributes are those of the guarded stream.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._error: Exception | None = None

    def write(self, text: str) -> int:
        """Write text, with characters that the encoding lacks replaced; return its length.

        Raises:
            OutputError: this write failed, or an earlier one did.
        """
        if not isinstance(text, str):
            # Click writes bytes to find out whether a stream is binary, and expects this error.
            raise TypeError(f"{self._name} takes text, not {type(text).__name__}")
        if not text:
            return 0
        encodable_text = self._make_encodable(text)
        self._guard(lambda: self._stream.write(encodable_text))
        return len(text)

    def _make_encodable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.encode(encoding, ERROR_HANDLER).decode(encoding)
        return text

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text by :meth:`write`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream.

        Raises:
            OutputError: this flush failed, or an earlier call did.
        """
        self._guard(self._stream.flush)

    def _guard(self, work: Callable[[], object]) -> None:
        if self._error is None:
            try:
                work()
            except (OSError, ValueError) as error:  # ValueError: another has closed the stream
                self._error = error
                # The rest of the old stream's buffer would fail again when Python exits.
                self._stream = _open_null()
        if self._error is not None:
            self._report_failure(self._error)

    def _report_failure(self, error: Exception) -> None:
        raise OutputError(f"{self._name}: {getattr(error, 'strerror', None) or error}") from error

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)


class MessageStream(GuardedStream):
    """Standard error: what it does not take is dropped."""

    def _report_failure(self, error: Exception) -> None:
        """Do nothing: nobody is left to read it."""


class ClosedStream(GuardedStream):
    """Standard output that was closed before this program began: an error once it is written to."""

    def write(self, text: str) -> int:
        """Raise OutputError, unless the text is empty."""
        if text:
            self._error = ValueError("it is closed")
        return super().write(text)


def run_guarded(work: Callable[[], int]) -> int:
    """Run a script with its standard streams guarded; return its exit status."""
    guard()
    try:
        status = work()
        sys.stdout.flush()
    except OutputError as error:
        return status_of(error)
    return status


def _open_null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def guard() -> None:
    """Replace this process's standard streams by guarded ones; once is enough."""
    if isinstance(sys.stdout, GuardedStream):
        return
    codecs.register_error(ERROR_HANDLER, _replace_missing)
    # Rich and others convert these to int unchecked, and would end with a traceback.
    for name in ("COLUMNS", "LINES"):
        if name in os.environ and not re.fullmatch("[1-9][0-9]{0,4}", os.environ[name]):
            del os.environ[name]
    _fill_closed_descriptors()
    streams: list[GuardedStream] = []
    for stream, name, mode in (
        (sys.stdout, "standard output", GuardedStream),
        (sys.stderr, "standard error", MessageStream),
    ):
        if stream is None:
            closed_class = ClosedStream if mode is GuardedStream else mode
            streams.append(closed_class(_open_null(), name))
            continue
        streams.append(mode(stream, name))
    sys.stdout, sys.stderr = cast(TextIO, streams[0]), cast(TextIO, streams[1])


def _fill_closed_descriptors() -> None:
    """Let no file or socket of ours become descriptor 0, 1 or 2, which libraries write to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def status_of(error: OutputError) -> int:
    """Print why standard output failed, unless its reader is gone; return the exit status."""
    # Python flushes standard output when it exits, which would fail again.
    sys.stdout = _open_null()
    if isinstance(error.__cause__, BrokenPipeError):
        return ExitStatus.BROKEN_PIPE
    print(f"Error: cannot write to {error}", file=sys.stderr, flush=True)
    return ExitStatus.FAILED
