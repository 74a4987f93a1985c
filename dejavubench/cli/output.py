"""Options of commands that print tables: format and file, which is never overwritten unasked."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click

from dejavubench.cli.params import PATH
from dejavubench.errors import ExitStatus
from dejavubench.whole_file import is_stream, write_whole_file

TABLE_STYLES = ("table", "csv", "json", "markdown")
"""Values of ``--format``."""

SUFFIX_STYLES = {
    ".csv": "csv",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "table",
}
"""Formats by the file's suffix."""

STDOUT = Path("/dev/stdout")
"""The file that stands for standard output."""


class BadInput(click.ClickException):
    """Input that cannot be used: one message, exit status 2."""

    exit_code = ExitStatus.USAGE


class _Style(click.Choice[str]):
    """The name of a format; ``md`` is short for ``markdown``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert("markdown" if value == "md" else value, param, ctx)


def add_table_options(formats: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add ``--format``, ``-o`` and ``--force``, as arguments ``style``, ``output`` and ``force``.

    Args:
        formats: the help of ``--format``.
    """
    options = [
        click.option(
            "--format",
            "style",
            type=_Style(TABLE_STYLES),
            help=f"{formats} [default: by FILE's suffix ({', '.join(SUFFIX_STYLES)}), else table]",
        ),
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            type=PATH,
            help="Write to FILE instead of stdout.",
        ),
        click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_style(*args: Any, style: str | None, output: Path | None, **rest: Any) -> None:
            # First, since a folder needs another name, not a suffix.
            if output is not None:
                check_output(output, rest["force"])
            if style is None:
                style = "table" if output is None else style_of(output, " Or give --format.")
            command(*args, style=style, output=output, **rest)

        command_with_options: Callable[..., None] = with_style
        for option in reversed(options):
            command_with_options = option(command_with_options)
        return command_with_options

    return add


def style_of(output: Path, default_style: str = "") -> str:
    """Return the format that a file's suffix asks for.

    Args:
        default_style: what else a user can do where the suffix is unknown, as a sentence.

    Raises:
        BadInput: the suffix is unknown.
    """
    if is_stream(output):
        return "table"
    style = SUFFIX_STYLES.get(output.suffix.lower())
    if style is None:
        *first_suffixes, last_suffix = SUFFIX_STYLES
        problem = f"{output.suffix!r} is unknown" if output.suffix else "there is none"
        raise BadInput(
            f"--output {output}: the suffix chooses the format, and {problem}. Use "
            f"{', '.join(first_suffixes)} or {last_suffix}.{default_style}"
        )
    return style


def check_output(path: Path, force: bool) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        BadInput: it exists and ``force`` is off, or it is a folder, or it is in none.
    """
    if is_stream(path):
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise BadInput(f"{path} is a folder, not a file. Name a file in it")
    if os.path.lexists(path) and not force:
        raise _exists(path)
    if not folder.is_dir():
        raise BadInput(f"{path}: the folder {folder} does not exist. Make it first")
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{path}: the folder {folder} cannot be written. Choose another one")


def _exists(path: Path) -> BadInput:
    return BadInput(f"{path} exists. Use --force to overwrite it")


def write_to(output: Path | None, force: bool, write: Callable[[IO[str]], Any]) -> None:
    """Call ``write`` with stdout or a new file. The file appears whole or not at all.

    Raises:
        BadInput: the file exists and ``force`` is off, or it cannot be made.
    """
    # /dev/stdout is not opened anew: a second position in a redirected file overwrites the first.
    if output is None or output == STDOUT:
        write(sys.stdout)
        return
    check_output(output, force)
    try:
        with (
            write_whole_file(output, force) as path,
            path.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            write(file)
    except FileExistsError:  # another program has made it since the check
        raise _exists(output) from None
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}") from None


def name_left_out(problems: Sequence[str]) -> None:
    """Print on stderr what could not be shown, and exit with status 1 if there is any."""
    for message in problems:
        click.echo(f"left out: {message}", err=True)
    if problems:
        sys.exit(ExitStatus.FAILED)
