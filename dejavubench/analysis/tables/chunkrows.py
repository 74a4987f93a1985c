"""Table of the bill of chunks: one row for each point, arm, phase and part of the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.chunkbill import FEWEST_CHUNKS, LATENCY, Bill, PartTime, bills
from dejavubench.analysis.numbertexts import counted, four_digits, ms, nbytes, value_or_dash
from dejavubench.analysis.samples import PointSamples
from dejavubench.analysis.tables.layout import Block
from dejavubench.analysis.tables.rows import Row, Sizes
from dejavubench.analysis.tables.textcells import ARM_CELL, varying_cells
from dejavubench.records import Run, read_chunk_times

CHUNKS_TITLE = "chunks, per iteration"
PARTS_TITLE = "where a chunk's time goes"


@dataclass
class ChunkRow:
    """Parts of a chunk's time: one row for each point, streaming arm, phase and part.

    The part `latency` is the whole time of a chunk from ready to complete; the other parts sum to
    it. Sums are over all sources and microbatches of an iteration, median over rounds.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep, such as p000."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    mode: Annotated[str, "Destination."]
    level: Annotated[str | None, "Level of DéjàVuLib's optimisations."]
    durability: Annotated[str | None, "Condition on which a chunk counts as written."]
    phase: Annotated[str, "prompt or tokens (all steps together)."]
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


def chunk_rows(run: Run, points: Mapping[str, PointSamples]) -> list[ChunkRow]:
    """Return the rows of a run; none of a run that recorded no times of chunks.

    Raises:
        RecordError: a file of chunks' times cannot be read, or does not belong to the run.
    """
    return [
        _row(run, points[bill.point], bill, part)
        for bill in bills(read_chunk_times(run.path), points)
        for part in bill.parts
    ]


def _row(run: Run, point: PointSamples, bill: Bill, part: PartTime) -> ChunkRow:
    arm = point.arms[bill.arm].arm
    return ChunkRow(
        run=run.path.name,
        point=bill.point,
        sizes=Sizes.of(point.point),
        arm=bill.arm,
        mode=arm.mode,
        level=arm.level,
        durability=arm.durability,
        phase=bill.phase,
        part=part.name,
        samples=bill.rounds,
        chunks=bill.chunks,
        extents=bill.extents,
        extent_bytes=bill.extent_nbytes,
        extent_us=bill.extent_us,
        summed_ms=part.sum_ms,
        median_us=part.median_us,
        p99_us=part.p99_us,
        share_pct=100 * part.share,
        beyond_chunks=bill.beyond,
    )


def chunk_blocks(rows: list[Row], parts: Sequence[ChunkRow]) -> list[Block]:
    """Return the tables for people: chunks of each arm and phase, and the parts of their time."""
    if not parts:
        return []
    leading = [*varying_cells(rows), ARM_CELL]
    headings = [*(cell.heading for cell in leading), "phase"]
    sized = ["chunks", "extents", "bytes per extent", "latency median µs", "µs per extent"]
    chunks = Block(CHUNKS_TITLE, [*headings, *sized], len(headings))
    timed = ["sum ms", "median µs", "p99 µs", "share %"]
    bill = Block(PARTS_TITLE, [*headings, "part", *timed], len(headings) + 1)
    for row in rows:
        of_arm = [each for each in parts if (each.point, each.arm) == (row.point, row.arm)]
        names = [cell.write(row) for cell in leading]
        if of_arm:
            whole = [each for each in of_arm if each.part == LATENCY]
            chunks.groups.append([[*names, each.phase, *_sized(each)] for each in whole])
            bill.groups.append(
                [
                    [*names, each.phase, each.part, *_timed(each)]
                    for each in of_arm
                    if each.part != LATENCY
                ]
            )
    return [chunks, bill]


def _sized(row: ChunkRow) -> list[str]:
    return [
        counted(row.chunks),
        counted(row.extents),
        nbytes(row.extent_bytes),
        four_digits(row.median_us),
        four_digits(row.extent_us),
    ]


def _timed(row: ChunkRow) -> list[str]:
    return [
        ms(row.summed_ms),
        four_digits(row.median_us),
        four_digits(row.p99_us),
        value_or_dash(row.share_pct, ".1f"),
    ]


LATENCY_NOTE = (
    "A chunk's latency is the time from its keys and values in place until it is complete. Its "
    "parts sum to it. Chunks are under way together, so their sum may exceed the request's time."
)


def chunk_notes(run: Run, parts: Sequence[ChunkRow]) -> list[str]:
    """Say how the parts of a chunk's time are made, and which of them are missing."""
    if not parts:
        return []
    notes = [LATENCY_NOTE]
    if any(row.p99_us is None for row in parts):
        notes.append(f"A p99 of chunks needs {FEWEST_CHUNKS} chunks of all rounds together.")
    if any(row.beyond_chunks for row in parts):
        notes.append("Chunks beyond 65,536 of a microbatch are in the sums alone.")
    return notes
