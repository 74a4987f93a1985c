"""The registry of the parts of a run's report, in the order in which they are shown.

To add a part, write a file that makes a :data:`~dejavubench.analysis.tables.reportpart.RunPart`,
and name it here.
"""

from __future__ import annotations

from typing import Any

from dejavubench.analysis import health
from dejavubench.analysis.normal.machinetable import MachineTable
from dejavubench.analysis.tables import (
    answerpart,
    armtables,
    chunkrows,
    conditionnotes,
    extentrows,
    grantnotes,
    machinenotes,
    normalpart,
    partrows,
    pathnotes,
    precision,
    rownotes,
    sessionnotes,
    tailcells,
)
from dejavubench.analysis.tables.reportpart import RunPart

REPORT_PARTS: tuple[RunPart, ...] = (
    # The answers in words, above all tables.
    answerpart.ANSWER,
    normalpart.NORMAL,
    # What qualifies the numbers comes before the numbers.
    health.ENDING,
    sessionnotes.SESSIONS,
    rownotes.LABEL,
    rownotes.EMPTY_ARMS,
    precision.PRECISION,
    rownotes.NOISE,
    conditionnotes.DISTURBANCES,
    pathnotes.PATHS,
    rownotes.FEW_SAMPLES,
    rownotes.FIT,
    rownotes.CEILING_SHARES,
    rownotes.RESTART_CHECKS,
    # The numbers, and how they are made.
    armtables.TIMES,
    armtables.HANDOVER,
    armtables.SWAP,
    armtables.STREAMING,
    armtables.MODEL,
    partrows.OVERHEAD,
    chunkrows.CHUNKS,
    extentrows.EXTENTS,
    tailcells.TAILS,
    # Facts of the machine.
    machinenotes.MACHINE,
    grantnotes.GRANTS,
    conditionnotes.HOST_CONDITIONS,
    machinenotes.DEVICE,
)

ROW_CLASSES: dict[str, type[Any]] = {
    part.name: part.row for part in REPORT_PARTS if part.row is not None
}
"""The dataclass of rows of each part that has rows of its own in csv and json, by its name."""


def parts_against(table: MachineTable) -> tuple[RunPart, ...]:
    """Return the parts of a report that also compares with a table of measured machines."""
    compared = normalpart.normal_part(table)
    return tuple(compared if part is normalpart.NORMAL else part for part in REPORT_PARTS)
