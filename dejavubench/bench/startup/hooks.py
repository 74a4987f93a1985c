"""The functions that a caller of a run hands in, because they need the analysis of records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dejavubench import records

MeasureHalfWidth = Callable[[list[records.Iteration], set[str]], float | None]
"""Returns how exactly a point's overheads are known, as a fraction, without failed arms."""

MakeTables = Callable[[Path], str]
"""Returns the tables of a run's folder, as text for stderr."""


@dataclass(frozen=True)
class RunHooks:
    """The functions that rank 0 calls while it measures a plan; other ranks call none of them.

    Attributes:
        measure_half_width: called after each round of a point with the point's iterations so far.
            Its answer ends the rounds of a run that asks for a precision. None: rounds are counted.
        on_end: called once with the run's folder, when all ranks' records are in it. An error or
            Ctrl-C ends a run before; wrong bytes do not.
        make_tables: called with the run's folder after Ctrl-C, in a thread that has 2 seconds.
            None: a command that shows the tables is printed in their place.
    """

    measure_half_width: MeasureHalfWidth | None = None
    on_end: Callable[[Path], None] | None = None
    make_tables: MakeTables | None = None
