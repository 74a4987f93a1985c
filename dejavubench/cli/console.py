"""The console that tables for people are printed on."""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

LEAST_COLUMNS = 20
"""Fewest columns in which a table can be read."""

DEFAULT_WIDTH = 80
"""Columns without a terminal: ranks under mpirun, whose terminal is not known, and pipes."""


def make_console(stderr: bool = False, file: IO[str] | None = None) -> Console:
    """Return a console on stdout, stderr or ``file``.

    It is as wide as the terminal, or ``COLUMNS``, or :data:`DEFAULT_WIDTH`.
    """
    screen = Console(stderr=stderr, file=file, highlight=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = DEFAULT_WIDTH
    screen.width = max(screen.width, LEAST_COLUMNS)
    return screen
