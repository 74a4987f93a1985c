"""Part of a report: the bill of chunks, by point, arm, phase and part of the latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.breakdown.chunk_bill import FEWEST_CHUNKS, LATENCY, Bill, PartTime
from dejavubench.analysis.facts.samples import ArmSamples
from dejavubench.analysis.number_texts import (
    format_4_digits,
    format_count,
    format_ms,
    format_nbytes,
    format_or_dash,
)
from dejavubench.analysis.tables.arm_columns import ArmPhase
from dejavubench.analysis.tables.arm_groups import group_by_arm
from dejavubench.analysis.tables.process_columns import Row, SettingColumns
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.row_blocks import make_varying_cells, sources_of
from dejavubench.analysis.tables.text_cells import ARM_CELL
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import Note, NoteKind, Run

CHUNK_LATENCY = NoteKind("chunk-latency", "info")
"""Kind of the note on what a chunk's latency is."""

FEW_CHUNKS = NoteKind("few-chunks", "info")
"""Kind of the note on a p99 that is missing."""

CHUNKS_IN_SUMS = NoteKind("chunks-in-sums", "info")
"""Kind of the note on chunks without times of their own."""

CHUNKS_TITLE = "chunks, per iteration"
"""Title of the table of sizes, one line for each arm and phase."""

PARTS_TITLE = "where a chunk's time goes"
"""Title of the table of times, one line for each part. The advice of ``--against`` names it."""

SIZE_COLUMNS = {
    "chunks": ("chunks",),
    "extents": ("extents",),
    "bytes per extent": ("extent_bytes",),
    "latency median µs": ("median_us",),
    "µs per extent": ("extent_us",),
}
"""Headings of the chunks of an arm and phase, with their columns."""

PART_COLUMNS = {
    "part": ("part",),
    "sum ms": ("summed_ms",),
    "median µs": ("median_us",),
    "p99 µs": ("p99_us",),
    "share %": ("share_pct",),
}
"""Headings of the parts of a chunk's time, with their columns."""


@dataclass
class ChunkRow:
    """Parts of a chunk's time: one row for each point, streaming arm, phase and part.

    The part `latency` is the whole time of a chunk from ready to complete; the other parts sum to
    it. Sums are over all sources and microbatches of an iteration, median over rounds.
    """

    arm_phase: ArmPhase
    part: Annotated[str, "latency, or the name of one of its parts."]
    samples: Annotated[int, "Measured rounds."]
    chunks: Annotated[int, "Chunks of one iteration."]
    extents: Annotated[int, "Contiguous pieces of the cache in these chunks."]
    extent_bytes: Annotated[float, "Mean size of an extent."]
    extent_us: Annotated[
        float | None,
        "Chunk's time without queue over its extents, median over chunks; naive levels alone.",
    ]
    summed_ms: Annotated[float, "The part, summed over the chunks of one iteration."]
    median_us: Annotated[float | None, "Median of the part over the chunks of all rounds."]
    p99_us: Annotated[float | None, "Its 99th percentile; missing with fewer than 100 chunks."]
    share_pct: Annotated[float, "The part as a share of the latency, over all rounds."]
    beyond_chunks: Annotated[int, "Chunks of which only sums are known: those beyond 65,536."]
    setting: SettingColumns


def make_chunk_rows(run_data: RunData) -> list[ChunkRow]:
    """Return the rows of a run; none of a run that recorded no times of chunks."""
    return [
        _make_row(run_data.run, run_data.points[bill.point_id].arms[bill.arm_name], bill, part)
        for bill in run_data.chunk_files.bills
        for part in bill.parts
    ]


def _make_row(run: Run, samples: ArmSamples, bill: Bill, part: PartTime) -> ChunkRow:
    """Return the row of one part; what the bill says of all chunks is repeated in each."""
    return ChunkRow(
        arm_phase=ArmPhase.of_samples(run, samples, bill.phase),
        part=part.name,
        samples=bill.round_count,
        chunks=bill.chunk_count,
        extents=bill.extent_count,
        extent_bytes=bill.extent_nbytes,
        extent_us=bill.extent_us,
        summed_ms=part.sum_ms,
        median_us=part.median_us,
        p99_us=part.p99_us,
        share_pct=100 * part.share,
        beyond_chunks=bill.chunks_beyond,
        setting=SettingColumns.of_point(samples.point_info),
    )


def _make_blocks(rows: list[Row], rows_of_run: Sequence[ChunkRow]) -> list[Block]:
    """Return the tables for people: chunks of each arm and phase, and the parts of their time."""
    if not rows_of_run:
        return []
    # Two tables of one set of rows: sizes stand once per arm and phase, times once per part.
    leading_cells = [*make_varying_cells(rows), ARM_CELL]
    headings = [*(cell.heading for cell in leading_cells), "phase"]
    sources = sources_of(leading_cells) | {"phase": ("phase",)}
    chunk_groups = group_by_arm(
        rows,
        leading_cells,
        (
            (_arm_of(row), [row.arm_phase.phase, *_format_sizes(row)])
            for row in rows_of_run
            if row.part == LATENCY
        ),
    )
    bill_groups = group_by_arm(
        rows,
        leading_cells,
        (
            (_arm_of(row), [row.arm_phase.phase, row.part, *_format_times(row)])
            for row in rows_of_run
            # The whole latency stands in the first table.
            if row.part != LATENCY
        ),
    )
    return [
        Block(
            CHUNKS_TITLE,
            [*headings, *SIZE_COLUMNS],
            len(headings),
            chunk_groups,
            sources=sources | SIZE_COLUMNS,
        ),
        Block(
            PARTS_TITLE,
            [*headings, *PART_COLUMNS],
            len(headings) + 1,
            bill_groups,
            sources=sources | PART_COLUMNS,
        ),
    ]


def _arm_of(row: ChunkRow) -> tuple[str, str]:
    return row.arm_phase.point, row.arm_phase.arm


def _format_sizes(row: ChunkRow) -> list[str]:
    return [
        format_count(row.chunks),
        format_count(row.extents),
        format_nbytes(row.extent_bytes),
        format_4_digits(row.median_us),
        format_4_digits(row.extent_us),
    ]


def _format_times(row: ChunkRow) -> list[str]:
    return [
        format_ms(row.summed_ms),
        format_4_digits(row.median_us),
        format_4_digits(row.p99_us),
        format_or_dash(row.share_pct, ".1f"),
    ]


LATENCY_NOTE = (
    "A chunk's latency is the time from its keys and values in place until it is complete. Its "
    "parts sum to it. Chunks are under way together, so their sum may exceed the request's time."
)


def _make_notes(rows_of_run: Sequence[ChunkRow]) -> list[Note]:
    """Note how the parts of a chunk's time are made, and which of them are missing."""
    if not rows_of_run:
        return []
    notes = [CHUNK_LATENCY.note(LATENCY_NOTE)]
    if any(row.p99_us is None for row in rows_of_run):
        note_text = f"A p99 of chunks needs {FEWEST_CHUNKS} chunks of all rounds together."
        notes.append(FEW_CHUNKS.note(note_text))
    if any(row.beyond_chunks for row in rows_of_run):
        notes.append(
            CHUNKS_IN_SUMS.note("Chunks beyond 65,536 of a microbatch are in the sums alone.")
        )
    return notes


def _make_content(run_data: RunData) -> PartContent:
    rows = make_chunk_rows(run_data)
    return PartContent(
        blocks=_make_blocks(run_data.reached_rows, rows), notes=_make_notes(rows), rows=rows
    )


CHUNKS = RunPart(
    "chunks",
    PARTS_TITLE,
    _make_content,
    (CHUNK_LATENCY, FEW_CHUNKS, CHUNKS_IN_SUMS),
    row=ChunkRow,
    is_long=True,
)
