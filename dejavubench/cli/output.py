"""What commands that print tables have in common: where they go, and never over a file that is there."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click

from dejavubench.cli.params import PATH
from dejavubench.wholefile import whole_file

STYLES = ("table", "csv", "json", "markdown")
BY_SUFFIX = {".csv": "csv", ".json": "json", ".md": "markdown", ".markdown": "markdown"}
"""The format of a file that is named so; of any other it is a table."""


class BadInput(click.ClickException):
    """Input that cannot be used: one message, exit 2."""

    exit_code = 2


def table_options(formats: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--format`` (explained by ``formats``), ``-o`` and ``--force``, as ``style``, ``output`` and ``force``."""
    options = [
        click.option(
            "--format",
            "style",
            type=click.Choice(STYLES),
            help=f"{formats}  [default: by FILE's suffix (.csv, .json, .md), else table]",
        ),
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            type=PATH,
            help="Write to FILE, not to stdout.",
        ),
        click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_style(*args: Any, style: str | None, output: Path | None, **others: Any) -> None:
            by_name = (
                BY_SUFFIX.get(output.suffix.lower(), "table") if output is not None else "table"
            )
            command(*args, style=style or by_name, output=output, **others)

        wrapped: Callable[..., None] = with_style
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def write_to(output: Path | None, force: bool, write: Callable[[IO[str]], Any]) -> None:
    """Have ``write`` write to stdout, or to a new file, which is there whole or not at all.

    Raises:
        BadInput: the file exists and is not to be overwritten, or cannot be made.
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
        raise BadInput(f"{output} exists; --force overwrites it") from None
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}") from None


def name_left_out(bad: Sequence[str]) -> None:
    """Say on stderr what could not be shown beside what was, and exit with status 1 if there is any."""
    for message in bad:
        click.echo(f"left out: {message}", err=True)
    if bad:
        sys.exit(1)
