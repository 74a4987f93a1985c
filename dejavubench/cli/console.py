"""Where tables for people go."""

from __future__ import annotations

import os
import re
from typing import IO

from rich.console import Console

NARROWEST = 20
"""Columns in which a table can still be read."""

WIDE = 160
"""Columns where nothing bounds them: mpirun's ranks and pipes see no terminal."""


def console(stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console on stdout, stderr or ``file``: as wide as the terminal, or ``COLUMNS``, or :data:`WIDE`."""
    columns = os.environ.get("COLUMNS", "")
    told = int(columns) if re.fullmatch("[0-9]{1,6}", columns) else 0
    made = Console(stderr=stderr, file=file, highlight=False, width=max(told, NARROWEST) if told else None)
    if not made.is_terminal and not told:
        made.width = WIDE
    return made
