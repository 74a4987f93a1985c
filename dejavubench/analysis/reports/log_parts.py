"""The parts of the report of a text log."""

from __future__ import annotations

from dataclasses import dataclass

from dejavubench.analysis.notes.row_notes import (
    ARM_WITHOUT_NUMBERS,
    FEW_ROUNDS,
    note_empty_rows,
    note_few_rounds,
)
from dejavubench.analysis.numbers.averages import DROPPED_SAMPLE_COUNT
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import PartContent, ReportPart
from dejavubench.analysis.tables.row_blocks import make_block
from dejavubench.analysis.tables.text_cells import SPREAD_CELLS, STATISTIC_CELL, TIME_CELLS
from dejavubench.records import NoteKind
from dejavubench.records.text_log import TextLog

LOST_LINES = NoteKind("lost-lines", "warning")
"""Kind of the notes on lines of a text log that are missing or cannot be read."""

WARM_UP_DROPPED = NoteKind("warm-up-dropped", "info")
"""Kind of the note on the samples that are dropped, as the paper's scripts do."""


@dataclass(frozen=True)
class LogData:
    """A text log and its rows, one for each rank."""

    log: TextLog
    rows: list[Row]


def _make_times_content(log_data: LogData) -> PartContent:
    notes = [
        *map(LOST_LINES.note, log_data.log.notes()),
        WARM_UP_DROPPED.note(
            f"The first {DROPPED_SAMPLE_COUNT} samples are dropped as warm-up. Times are medians; "
            "the paper's scripts print means."
        ),
        *note_empty_rows(log_data.rows),
        *note_few_rounds(log_data.rows),
    ]
    table = make_block("times", log_data.rows, [STATISTIC_CELL], TIME_CELLS + SPREAD_CELLS)
    return PartContent(blocks=[table], notes=notes)


LOG_PARTS: tuple[ReportPart[LogData], ...] = (
    ReportPart(
        "times",
        "times of each rank",
        _make_times_content,
        (LOST_LINES, WARM_UP_DROPPED, *ARM_WITHOUT_NUMBERS.values(), FEW_ROUNDS),
    ),
)
"""Parts of a text log's report, in order."""
