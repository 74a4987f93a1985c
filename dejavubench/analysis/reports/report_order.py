"""The registry of the parts of a run's report, in the order in which they are shown.

To add a part, write a file that makes a :data:`~dejavubench.analysis.tables.report_part.RunPart`,
and name it here.
"""

from __future__ import annotations

from typing import Any

from dejavubench.analysis.normal.machine_table import MachineTable
from dejavubench.analysis.notes import (
    condition_notes,
    grant_notes,
    machine_notes,
    noise_notes,
    path_notes,
    row_notes,
    session_notes,
)
from dejavubench.analysis.tables import (
    answer_part,
    arms_part,
    chunks_part,
    ending_part,
    extents_part,
    normal_part,
    overhead_part,
    precision_part,
    sources_part,
    tails_part,
)
from dejavubench.analysis.tables.report_part import RunPart

REPORT_PARTS: tuple[RunPart, ...] = (
    # The answers in words, above all tables.
    answer_part.ANSWER,
    normal_part.NORMAL,
    # What qualifies the numbers comes before the numbers.
    ending_part.ENDING,
    session_notes.SESSIONS,
    row_notes.LABEL,
    row_notes.EMPTY_ARMS,
    precision_part.PRECISION,
    noise_notes.NOISE,
    path_notes.PATHS,
    row_notes.FEW_SAMPLES,
    row_notes.FIT,
    row_notes.CEILING_SHARES,
    row_notes.RESTART_CHECKS,
    # The numbers, and how they are made.
    arms_part.TIMES,
    arms_part.HANDOVER,
    arms_part.SWAP,
    arms_part.STREAMING,
    sources_part.SOURCES,
    arms_part.MODEL,
    overhead_part.OVERHEAD,
    chunks_part.CHUNKS,
    extents_part.EXTENTS,
    tails_part.TAILS,
    # Facts of the machine.
    machine_notes.MACHINE,
    grant_notes.GRANTS,
    condition_notes.HOST_CONDITIONS,
    machine_notes.DEVICE,
)

ROW_CLASSES: dict[str, type[Any]] = {
    part.name: part.row for part in REPORT_PARTS if part.row is not None
}
"""The dataclass of rows of each part that has rows of its own in csv and json, by its name."""


def list_parts_against(table: MachineTable) -> tuple[RunPart, ...]:
    """Return the parts of a report that also compares with a table of measured machines."""
    comparing_part = normal_part.make_normal_part(table)
    return tuple(comparing_part if part is normal_part.NORMAL else part for part in REPORT_PARTS)
