"""Where tables for people go."""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

NARROWEST = 20
"""Columns in which a table can still be read."""

WIDE = 160
"""Columns where nothing bounds them: mpirun's ranks and pipes see no terminal."""


def console(stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console on stdout, stderr or ``file``: as wide as the terminal, or ``COLUMNS``, or :data:`WIDE`."""
    made = Console(stderr=stderr, file=file, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDE
    made.width = max(made.width, NARROWEST)
    return made
