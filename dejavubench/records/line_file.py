"""Reading a file of records line by line: what every such file of a run's folder has in common."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dejavubench.records.field_types import RecordError

RecordT = TypeVar("RecordT")


def check_regular(path: Path) -> None:
    """Raise RecordError for a pipe or a device: reading it might never end.

    Raises:
        OSError: nothing is known of the file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise RecordError(f"{path} is not a regular file")


def number_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, counted from 1. Only the last one can lack its end.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None


def parse_record(
    path: Path, line_number: int, line: bytes, adapter: TypeAdapter[RecordT]
) -> RecordT | None:
    """Read a line as a record; None if a crash cut the file's last write short.

    Raises:
        RecordError: it is no such record. The message names file, line and key.
    """
    try:
        # Strict: the program wrote the file, so a number in quotes is damage.
        return adapter.validate_json(line, strict=True)
    except ValidationError as error:
        # A whole line that is no JSON was damaged; one without its end was cut off.
        if not line.endswith(b"\n") and error.errors()[0]["type"] == "json_invalid":
            return None
        raise RecordError(f"{path}:{line_number}: {find_first_reason(error)}") from None


def find_first_reason(error: ValidationError) -> str:
    """Return the first reason of an error, behind the key that it is about."""
    complaint = error.errors(include_input=False, include_url=False)[0]
    key = ".".join(map(str, complaint["loc"]))
    return f"{key}: {complaint['msg']}" if key else complaint["msg"]
