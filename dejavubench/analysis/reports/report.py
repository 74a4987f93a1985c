"""Reports: rows, tables and notes of a run or a text log, ready to be written.

Public names: :func:`make_report`, :func:`make_log_report`, :class:`RunReport`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dejavubench.analysis.facts import source_ranks
from dejavubench.analysis.reports.log_parts import LOG_PARTS, LogData
from dejavubench.analysis.reports.report_order import REPORT_PARTS
from dejavubench.analysis.tables.log_rows import make_log_rows
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import (
    NoteLine,
    PartContent,
    ReportPart,
    RunData,
    RunPart,
)
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import Note, Run
from dejavubench.records.text_log import read_log


@dataclass
class RunReport:
    """Rows, tables and notes of one run or text log.

    Attributes:
        parts: each part with its content, in order.
        settings: options that differ from their defaults and are stated nowhere else, as flags.
        more_text: names the tables that a short report leaves out, and the command that prints
            them.
    """

    title: str
    rows: list[Row]
    parts: list[tuple[ReportPart[Any], PartContent]]
    header: dict[str, Any] | None = None
    settings: str = ""
    more_text: str = ""

    def without_long_tables(self) -> RunReport:
        """Return the report without long tables. Warnings and errors of their parts remain."""
        left_out = [part.heading for part, content in self.parts if part.is_long and content.blocks]
        more_text = ""
        if left_out and self.header is not None:
            command = f"dejavubench process {shlex.quote(str(self.header['path']))} --long"
            more_text = f"more tables ({', '.join(left_out)}):\n  {command}"
        parts = [(part, part.short_content(content)) for part, content in self.parts]
        return replace(self, parts=parts, more_text=more_text)

    @property
    def blocks(self) -> list[Block]:
        """All tables of all parts, in order."""
        return [table for _, content in self.parts for table in content.blocks]

    @property
    def notes(self) -> list[Note]:
        """All notes of all parts, in order."""
        return [note for _, content in self.parts for note in content.notes]

    @property
    def note_lines(self) -> list[NoteLine]:
        """The notes as people read them: those of one subject share a line."""
        return [line for part, content in self.parts for line in part.note_lines(content)]

    @property
    def note_texts(self) -> list[str]:
        """The texts of all notes, in order."""
        return [note.text for note in self.notes]

    @property
    def rows_of_parts(self) -> dict[str, list[Any]]:
        """Rows of each part that has rows of its own, by its name; empty for a text log."""
        return {part.name: content.rows for part, content in self.parts if part.row is not None}


def make_report(run: Run, parts: Sequence[RunPart] = REPORT_PARTS) -> RunReport:
    """Make the report of a run.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    run_data = RunData(run)
    # The json repeats run.json: a key that an older record lacks must not appear with a default.
    excluded_keys = set() if run.header.destinations else {"destinations"}
    excluded_keys |= set() if run.header.settings is not None else {"settings"}
    header = run.header.model_dump(mode="json", exclude=excluded_keys)
    return RunReport(
        title=f"{run.header.name} · {run.path.name} · {_describe_machine(run)}",
        rows=run_data.rows,
        parts=[(part, run_data.content(part)) for part in parts],
        header={"path": str(run.path), **header},
        settings=" ".join(run.header.settings or []),
    )


def make_log_report(path: Path) -> RunReport:
    """Make the report of a text log.

    Raises:
        TextLogError: the log cannot be read, or is too short.
    """
    log = read_log(path)
    log_data = LogData(log, make_log_rows(log))
    return RunReport(
        str(path), log_data.rows, [(part, part.content(log_data)) for part in LOG_PARTS]
    )


def _describe_machine(run: Run) -> str:
    cores = run.header.facts.cores
    cores_noun = "CPU cores" if source_ranks.ran_on_gpu(run) else "cores"
    facts = [
        source_ranks.name_processor(run),
        f"{cores} {cores_noun}" if cores else None,
        run.header.started_utc,
    ]
    return ", ".join(fact for fact in facts if fact)
