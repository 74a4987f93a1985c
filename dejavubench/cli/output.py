"""What commands that print tables have in common: where they go, and never over a file that is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click


class BadInput(click.ClickException):
    """Input that cannot be used: one message, exit 2."""

    exit_code = 2


def table_options(formats: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--format`` (explained by ``formats``), ``-o`` and ``--force``, as ``style``, ``output`` and ``force``."""
    options = [
        click.option(
            "--format",
            "style",
            type=click.Choice(["table", "csv", "json", "markdown"]),
            default="table",
            show_default=True,
            help=formats,
        ),
        click.option(
            "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to FILE, not to stdout."
        ),
        click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def write_to(output: Path | None, force: bool, write: Callable[[IO[str]], Any]) -> None:
    """Have ``write`` write to stdout, or to a new file.

    Raises:
        BadInput: the file exists and is not to be overwritten, or cannot be made.
    """
    if output is None:
        write(sys.stdout)
        return
    try:
        with output.open("w" if force else "x") as file:
            write(file)
    except FileExistsError:
        raise BadInput(f"{output} exists; --force overwrites it") from None
    except OSError as error:
        raise BadInput(f"{output}: {error.strerror}") from None
