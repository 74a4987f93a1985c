"""Reports: rows, tables and notes of a run or a text log, ready to be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dejavubench.analysis import health, sourceranks
from dejavubench.analysis.averages import DROPPED
from dejavubench.analysis.samples import collect
from dejavubench.analysis.tables import (
    conditionnotes,
    grantnotes,
    machinenotes,
    notes,
    pathnotes,
    precision,
    runrows,
    tailcells,
)
from dejavubench.analysis.tables.layout import Block
from dejavubench.analysis.tables.logrows import log_rows
from dejavubench.analysis.tables.longtables import LONG_TABLES
from dejavubench.analysis.tables.rows import Row
from dejavubench.analysis.tables.textcells import (
    SPREAD_CELLS,
    STATISTIC_CELL,
    TIME_CELLS,
    block,
    blocks,
)
from dejavubench.records import Restart, Run
from dejavubench.records.textlog import read_log

MORE_BLOCKS: tuple[Callable[[Run, list[Row]], list[Block]], ...] = (tailcells.blocks,)
"""Makers of the tables that follow those of :mod:`.textcells`, in order, each in its own file."""


@dataclass
class RunReport:
    """Rows, tables and notes of one run or text log.

    Attributes:
        long: rows of each of the :data:`~dejavubench.analysis.tables.longtables.LONG_TABLES` by its
            name; empty for a text log.
        settings: options that differ from their defaults and are stated nowhere else, as flags.
    """

    title: str
    rows: list[Row]
    blocks: list[Block]
    notes: list[str]
    header: dict[str, Any] | None = None
    settings: str = ""
    long: dict[str, list[Any]] = field(default_factory=dict)


def report(run: Run) -> RunReport:
    """Make the report of a run.

    Raises:
        RecordError: a record names a point or an arm that the header does not have.
    """
    points = collect(run)
    rows = runrows.run_rows(run, points)
    long = {table.name: table.rows(run, points) for table in LONG_TABLES}
    texts = [
        *health.notes(run),
        *([f"note: {run.header.note}"] if run.header.note else []),
        *notes.why_rows_are_empty(rows),
        *precision.notes(run),
        *notes.noise_notes(rows, conditionnotes.cause_of_noise(run)),
        *conditionnotes.marks(run),
        *pathnotes.notes(run, points),
        *notes.too_few_rounds(rows),
        *tailcells.too_few_tokens(rows),
        *notes.streams_that_hardly_fit(rows),
        *notes.ceiling_not_measured_everywhere(rows),
        *(wrong for _, restart in run.of(Restart) for wrong in restart.wrong),
        notes.how_times_are_made(rows),
        *(note for table in LONG_TABLES for note in table.notes(run, long[table.name])),
        # Facts of the machine follow the notes that qualify the numbers.
        *machinenotes.ceilings(run),
        *machinenotes.against_raw(run),
        *machinenotes.own_shares(run),
        *machinenotes.staging(run),
        *machinenotes.hosts(run),
        *grantnotes.notes(run),
        *conditionnotes.facts(run),
        *machinenotes.gpu(run),
        *machinenotes.loopback(run),
    ]
    unset = set() if run.header.destinations else {"destinations"}  # absent in older records
    unset |= set() if run.header.settings is not None else {"settings"}
    header = run.header.model_dump(mode="json", exclude=unset)
    title = f"{run.header.name} · {run.path.name} · {_machine(run)}"
    reached = notes.without_unmeasured_points(rows)
    shown = [
        *(blocks(reached) if reached else ()),
        *(each for table in LONG_TABLES for each in table.blocks(reached, long[table.name])),
        *(each for make in MORE_BLOCKS for each in make(run, reached)),
    ]
    return RunReport(
        title=title,
        rows=rows,
        blocks=shown,
        notes=texts,
        header={"path": str(run.path), **header},
        settings=" ".join(run.header.settings or []),
        long=long,
    )


def log_report(path: Path) -> RunReport:
    """Make the report of a text log.

    Raises:
        TextLogError: the log cannot be read, or is too short.
    """
    log = read_log(path)
    rows = log_rows(log)
    texts = [
        *log.notes(),
        f"The first {DROPPED} samples are dropped as warm-up. Times are medians; the paper's "
        "scripts print means.",
        *notes.why_rows_are_empty(rows),
        *notes.too_few_rounds(rows),
    ]
    table = block("times", rows, [STATISTIC_CELL], TIME_CELLS + SPREAD_CELLS)
    return RunReport(str(path), rows, [table], texts)


def _machine(run: Run) -> str:
    cores = run.header.where.cores
    what = "CPU cores" if sourceranks.on_gpu(run) else "cores"
    words = [
        sourceranks.processor(run),
        f"{cores} {what}" if cores else None,
        run.header.started_utc,
    ]
    return ", ".join(word for word in words if word)
