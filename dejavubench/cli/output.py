"""Options of commands that print tables: format and file, which is never overwritten unasked."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click

from dejavubench.cli.params import PATH
from dejavubench.errors import ExitStatus
from dejavubench.whole_file import whole_file

STYLES = ("table", "csv", "json", "markdown")
BY_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "table",
}
"""Formats by the file's suffix."""


class BadInput(click.ClickException):
    """Input that cannot be used: one message, exit status 2."""

    exit_code = ExitStatus.USAGE


class _Style(click.Choice[str]):
    """The name of a format; ``md`` is short for ``markdown``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert("markdown" if value == "md" else value, param, ctx)


def table_options(formats: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add ``--format``, ``-o`` and ``--force``, as arguments ``style``, ``output`` and ``force``.

    Args:
        formats: the help of ``--format``.
    """
    options = [
        click.option(
            "--format",
            "style",
            type=_Style(STYLES),
            help=f"{formats} [default: by FILE's suffix ({', '.join(BY_SUFFIX)}), else table]",
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
        def with_style(*args: Any, style: str | None, output: Path | None, **others: Any) -> None:
            if style is None:
                style = "table" if output is None else style_of(output, " Or give --format.")
            command(*args, style=style, output=output, **others)

        wrapped: Callable[..., None] = with_style
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def style_of(output: Path, otherwise: str = "") -> str:
    """Return the format that a file's suffix asks for.

    Args:
        otherwise: what else a user can do where the suffix is unknown, as a sentence.

    Raises:
        BadInput: the suffix is unknown.
    """
    if output.exists() and not output.is_file() and not output.is_dir():
        return "table"  # a device or a pipe
    style = BY_SUFFIX.get(output.suffix.lower())
    if style is None:
        *first, last = BY_SUFFIX
        problem = f"{output.suffix!r} is unknown" if output.suffix else "there is none"
        raise BadInput(
            f"--output {output}: the suffix chooses the format, and {problem}. Use "
            f"{', '.join(first)} or {last}.{otherwise}"
        )
    return style


def write_to(output: Path | None, force: bool, write: Callable[[IO[str]], Any]) -> None:
    """Call ``write`` with stdout or a new file. The file appears whole or not at all.

    Raises:
        BadInput: the file exists and ``force`` is off, or it cannot be made.
    """
    if output is None:
        write(sys.stdout)
        return
    try:
        with (
            whole_file(output, force) as path,
            path.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            write(file)
    except FileExistsError:
        raise BadInput(f"{output} exists. Use --force to overwrite it") from None
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}") from None


def name_left_out(bad: Sequence[str]) -> None:
    """Print on stderr what could not be shown, and exit with status 1 if there is any."""
    for message in bad:
        click.echo(f"left out: {message}", err=True)
    if bad:
        sys.exit(ExitStatus.FAILED)
