"""Part of a report: single extents that ``run --sample-extents`` timed, by point, arm and phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from dejavubench.analysis.breakdown.tails import FEWEST_TOKENS, P99, find_percentile
from dejavubench.analysis.number_texts import format_4_digits, format_count, format_nbytes
from dejavubench.analysis.tables.arm_groups import group_by_arm
from dejavubench.analysis.tables.process_columns import Row, SettingColumns, Sizes
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.row_blocks import make_varying_cells, sources_of
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import ExtentTimes, RecordError

TITLE = "single extents, sampled in an iteration of their own"
"""Title of the table."""

TIMED_EXTENTS = {
    "extents": ("timed_extents",),
    "bytes": ("extent_bytes",),
    "median µs": ("median_us",),
    "p99 µs": ("p99_us",),
    "max µs": ("max_us",),
}
"""Headings of the table for people after those that name a row, with their columns."""


@dataclass
class ExtentRow:
    """Single extents: one row for each point, diagnostic arm and phase of ``--sample-extents``.

    They are of one iteration after the rounds, all sources and microbatches together. Timing them
    slows the loop that moves them, so they are in no other column.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep, such as p000."]
    sizes: Sizes
    arm: Annotated[str, "Name of the diagnostic arm, such as mpi@0-sampled."]
    of_arm: Annotated[str, "Arm that it is like."]
    phase: Annotated[str, "prompt or tokens (all steps together)."]
    timed_extents: Annotated[int, "Extents that were timed."]
    extent_bytes: Annotated[float, "Their median size."]
    median_us: Annotated[float, "Median time: until complete at level 0, issued at 0-batched."]
    p99_us: Annotated[float | None, "Its 99th percentile; missing with fewer than 100 extents."]
    max_us: Annotated[float, "Time of the slowest one."]
    setting: SettingColumns = field(default_factory=SettingColumns)


def _make_rows(run_data: RunData) -> list[ExtentRow]:
    """Return the rows of a run; none of a run that sampled no extents.

    Raises:
        RecordError: a record names a point or an arm of no iteration.
    """
    run = run_data.run
    points = run_data.points
    records_by_arms: dict[tuple[str, str, str], list[ExtentTimes]] = {}
    for rank, record in run_data.chunk_files.extents:
        if record.point not in points or record.of not in points[record.point].arms:
            raise RecordError(
                f"{run.path}: times of extents of point {record.point}, arm {record.of}, on rank "
                f"{rank}: no such arm was measured"
            )
        records_by_arms.setdefault((record.point, record.of, record.arm), []).append(record)
    rows = []
    for (point_id, streaming_name, arm_name), records in records_by_arms.items():
        for phase in ("prompt", "tokens"):
            sizes_and_ns = np.array(
                [
                    (size, ns)
                    for record in records
                    for step, size, ns in zip(record.step, record.nbytes, record.ns, strict=True)
                    # Step 0 is the prompt.
                    if (step > 0) == (phase == "tokens")
                ]
            )
            if sizes_and_ns.size:
                sizes = Sizes.of_point(points[point_id].info)
                row = _make_row(
                    (run.path.name, point_id, sizes, arm_name, streaming_name, phase), sizes_and_ns
                )
                row.setting = SettingColumns.of_point(points[point_id].info)
                rows.append(row)
    return rows


def _make_row(
    identity: tuple[str, str, Sizes, str, str, str], sizes_and_ns: np.ndarray
) -> ExtentRow:
    times_us = np.sort(sizes_and_ns[:, 1]) / 1e3
    return ExtentRow(
        *identity,
        timed_extents=times_us.size,
        extent_bytes=float(np.median(sizes_and_ns[:, 0])),
        median_us=find_percentile(times_us, 0.5),
        p99_us=find_percentile(times_us, P99) if times_us.size >= FEWEST_TOKENS else None,
        max_us=float(times_us[-1]),
    )


def _make_blocks(rows: list[Row], extents: Sequence[ExtentRow]) -> list[Block]:
    """Return the table for people: a line for each diagnostic arm and phase."""
    if not extents:
        return []
    leading_cells = make_varying_cells(rows)
    headings = [*(cell.heading for cell in leading_cells), "arm", "phase"]
    sources = sources_of(leading_cells) | {"arm": ("arm",), "phase": ("phase",)} | TIMED_EXTENTS
    groups = group_by_arm(
        rows,
        leading_cells,
        (
            ((extent_row.point, extent_row.of_arm), _write_cells(extent_row))
            for extent_row in extents
        ),
    )
    return [Block(TITLE, [*headings, *TIMED_EXTENTS], len(headings), groups, sources=sources)]


def _write_cells(extent_row: ExtentRow) -> list[str]:
    return [
        extent_row.arm,
        extent_row.phase,
        format_count(extent_row.timed_extents),
        format_nbytes(extent_row.extent_bytes),
        *map(format_4_digits, (extent_row.median_us, extent_row.p99_us, extent_row.max_us)),
    ]


def _make_content(run_data: RunData) -> PartContent:
    rows = _make_rows(run_data)
    return PartContent(blocks=_make_blocks(run_data.reached_rows, rows), rows=rows)


EXTENTS = RunPart("extents", "single extents", _make_content, row=ExtentRow)
