"""Reading UTF-8, JSON and TOML files. Each error names file, line and column."""

from __future__ import annotations

import codecs
import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

FOREIGN_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
GZIP_MAGIC = b"\x1f\x8b"
LFS_POINTER = "version https://git-lfs.github.com/spec/"
"""First words of the small file that Git LFS leaves in place of a large one."""

PYTHON_WORDS = {"True": "true", "False": "false", "None": "null", "'": '"'}
"""Python's spellings, and those of JSON."""


class TextFileError(ValueError):
    """A file is not the text that it should be. The message is one line and names the file."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, without its byte order mark if it has one.

    Raises:
        TextFileError: the file cannot be read, or is not UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            # Reading a device might never end.
            raise TextFileError(f"{_format_path(path)}: is a device, not a file")
        content = path.read_bytes()
    except OSError as error:
        raise TextFileError(f"{_format_path(path)}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise TextFileError(f"{_format_path(path)}: no file can have this name: {error}") from None
    for mark, encoding in FOREIGN_BYTE_ORDER_MARKS:
        if content.startswith(mark):
            raise TextFileError(f"{path}: the file is {encoding} text; save it as UTF-8")
    if content.startswith(GZIP_MAGIC):
        raise TextFileError(f"{path}: the file is compressed by gzip; unpack it (gunzip)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        valid_bytes = content[: error.start]
        line, column = (
            valid_bytes.count(b"\n") + 1,
            error.start - (valid_bytes.rfind(b"\n") + 1) + 1,
        )
        byte = content[error.start]
        raise TextFileError(
            f"{path}: line {line}, byte {column}: can't decode 0x{byte:02x} as UTF-8; "
            f"save the file as UTF-8 text"
        ) from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        TextFileError: the file cannot be read, or is not JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, location: str) -> Any:
    """Return the value of ``text``.

    Args:
        location: the file, or the file and the line; an error message begins with it.

    Raises:
        TextFileError: the text is not JSON. The message has line and column.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise TextFileError(
            f"{location}: "
            f"{_explain_json_mistake(text, error) or f'{position}: not JSON: {error.msg}'}"
        ) from None
    except RecursionError:
        raise TextFileError(
            f"{location}: not usable JSON: its brackets are nested too deeply"
        ) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise TextFileError(f"{location}: not usable JSON: a number has too many digits") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        TextFileError: the file cannot be read, or is not TOML. The message has line and column.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TextFileError(f"{path}{_describe_toml_error(str(error))}") from None
    except RecursionError:
        raise TextFileError(
            f"{path}: not usable TOML: its brackets are nested too deeply"
        ) from None
    except ValueError:
        raise TextFileError(f"{path}: not usable TOML: a number has too many digits") from None


def _describe_toml_error(error: str) -> str:
    """Return a TOML error with its line first, and with a hint at the usual mistake."""
    problem, _, position_text = error.removesuffix(")").partition(" (at ")
    hint = ': a text needs quotes, as in model = "gpt2"' if problem == "Invalid value" else ""
    position = re.fullmatch(r"(line \d+), (column \d+)", position_text)
    if position is None:  # at the end of the document
        return f": not valid TOML: {error}"
    return f", {position[1]}: not valid TOML: {problem} at {position[2]}{hint}"


def _explain_json_mistake(text: str, error: json.JSONDecodeError) -> str | None:
    """Return a message that names a well-known mistake; None for other mistakes."""
    position, rest = f"line {error.lineno}, column {error.colno}", text[error.pos :]
    if not text.strip():
        return "the file is empty"
    if text.startswith(LFS_POINTER):
        return "this is a Git LFS pointer, not the file itself: run 'git lfs pull' in its folder"
    if text.lstrip()[:1] == "<":
        return f"{position}: this is an HTML page, perhaps a server's error message, not JSON"
    if text[: error.pos].rstrip().endswith(",") and rest.lstrip()[:1] in ("}", "]"):
        return f"{position}: not JSON: remove the comma before {rest.lstrip()[0]!r}"
    for word, json_word in PYTHON_WORDS.items():
        if rest.startswith(word):
            return f"{position}: not JSON: {word} is Python's spelling; write {json_word}"
    return None


def escape(text: str) -> str:
    """Escape characters that are not printable: file names may hold any of them."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def _format_path(path: Path) -> str:
    """Return a path's text, shortened if it is long."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:80]}…{text[-80:]}"
