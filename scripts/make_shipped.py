"""Make the table of measured machines that the package ships, from the runs under ``results/``.

``python scripts/make_shipped.py`` writes dejavubench/analysis/normal/shipped.json anew.
``python scripts/make_shipped.py FOLDER FILE`` makes a table of other runs, for ``process
--against FILE``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dejavubench.analysis.find_runs import find
from dejavubench.analysis.normal import machine_table
from dejavubench.analysis.tables.normal_tables import arms_of

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Folder of committed runs."""

SHIPPED = Path(machine_table.__file__).parent / machine_table.SHIPPED_FILE
"""File that is made of the committed runs, and that the package ships."""


def table_text(folder: Path) -> str:
    """Return the text of the table of all runs below a folder."""
    runs = find([folder]).runs
    return machine_table.format_arms(arms_of(sorted(runs, key=lambda run: str(run.path))))


if __name__ == "__main__":
    folder, file = (Path(word) for word in sys.argv[1:]) if sys.argv[1:] else (RESULTS, SHIPPED)
    file.write_text(table_text(folder), encoding="utf-8")
