"""Tables of measured machines from the command line's word: shipped, a file, or folders of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dejavubench.analysis.find_runs import find
from dejavubench.analysis.normal.machine_table import (
    SHIPPED_TABLE,
    MachineTable,
    MeasuredArm,
    read_shipped_table,
    read_table,
)
from dejavubench.analysis.tables.normal_part import list_measured_arms
from dejavubench.analysis.tables.run_rows import run_rows
from dejavubench.records import RecordError, Run
from dejavubench.records.archives import unpack_advice


def load_named_table(table_source: str) -> MachineTable:
    """Return the table that ``--against`` names.

    Raises:
        RecordError: there is none, or it cannot be read.
    """
    if table_source == SHIPPED_TABLE:
        return read_shipped_table()
    if not table_source:  # Path("") is the current folder, which nobody has named
        raise RecordError(f"it is empty. Give {SHIPPED_TABLE}, a folder of runs, or a table's file")
    path = Path(table_source)
    if path.is_file():
        if (advice := unpack_advice(path)) is not None:
            raise RecordError(advice)
        return read_table(path)
    found_runs = find([path])
    if found_runs.bad:
        raise RecordError("; ".join(found_runs.bad))
    if not found_runs.runs:  # a device or a pipe, which is no file of a table
        raise RecordError(f"{table_source} is neither a folder of runs nor a table's file")
    return MachineTable(table_source, arms_of(found_runs.runs))


def arms_of(runs: Iterable[Run]) -> list[MeasuredArm]:
    """Return the arms of runs that a table can hold: those with a share of a measured ceiling."""
    arms = [arm for run in runs for _, arm in list_measured_arms(run, run_rows(run))]
    return [arm for arm in arms if arm.share_pct is not None]
