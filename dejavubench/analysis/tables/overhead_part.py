"""Part of a report: the parts of each overhead, by point, arm, phase and part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dejavubench.analysis.breakdown.overhead_parts import (
    MEASURED_PARTS,
    PARTS,
    PHASES,
    OverheadPart,
    compute_overhead_parts,
)
from dejavubench.analysis.facts.samples import ArmSamples
from dejavubench.analysis.facts.source_ranks import ran_on_gpu
from dejavubench.analysis.number_texts import format_percent_with_interval
from dejavubench.analysis.tables.arm_columns import ArmPhase
from dejavubench.analysis.tables.process_columns import Row, SettingColumns
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.row_blocks import make_varying_cells, sources_of
from dejavubench.analysis.tables.spreads import scale_estimate
from dejavubench.analysis.tables.text_cells import ARM_CELL
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import Note, NoteKind, Run

OVERHEAD_PARTS = NoteKind("overhead-parts", "info")
"""Kind of the note on how the parts of an overhead are made."""

STALL_BESIDE_GPU = NoteKind("stall-beside-gpu", "info")
"""Kind of the note that a stall beside a GPU is not lost as such."""

TITLE = "where the overhead comes from, % of the total without streaming"
"""Title of the table."""

SHARE_COLUMNS = ("part_pct", "part_low_pct", "part_high_pct")
"""Columns that the cells of the table are made from."""


@dataclass
class PartRow:
    """Parts of an overhead: one row for each point, streaming arm, phase and part.

    A part is compared with the same round's baselines and is the median over rounds. So parts need
    not add up to the overhead.
    """

    arm_phase: ArmPhase
    part: Annotated[str, "overhead, stall, drain, or rest (overhead less stall and drain)."]
    samples: Annotated[int, "Rounds that the arm and its baselines have in common."]
    part_ms: Annotated[float, "The part in one request."]
    part_low_ms: Annotated[float | None, "Lower end of its 95 % interval."]
    part_high_ms: Annotated[float | None, "Upper end of its 95 % interval."]
    part_pct: Annotated[float, "The part as a share of total_ms of the same round's baselines."]
    part_low_pct: Annotated[float | None, "Lower end of its 95 % interval."]
    part_high_pct: Annotated[float | None, "Upper end of its 95 % interval."]
    setting: SettingColumns


def make_part_rows(run_data: RunData) -> list[PartRow]:
    """Return the rows of a run; an arm that failed or has no baseline has none."""
    return [
        _make_row(run_data.run, samples, part)
        for point in run_data.points.values()
        for samples in point.arms.values()
        if samples.why_failed is None
        for part in compute_overhead_parts(point, samples)
    ]


def _make_row(run: Run, samples: ArmSamples, part: OverheadPart) -> PartRow:
    """Return the row of one part, with its intervals in ms and in percent of TOTAL."""
    in_ms, in_pct = scale_estimate(part.ms), scale_estimate(part.share, 100)
    return PartRow(
        arm_phase=ArmPhase.of_samples(run, samples, part.phase),
        part=part.part,
        samples=part.ms.sample_count,
        part_ms=part.ms.median,
        part_low_ms=in_ms.low,
        part_high_ms=in_ms.high,
        part_pct=100 * part.share.median,
        part_low_pct=in_pct.low,
        part_high_pct=in_pct.high,
        setting=SettingColumns.of_point(samples.point_info),
    )


def _make_blocks(rows: list[Row], rows_of_parts: Sequence[PartRow]) -> list[Block]:
    """Return the table for people: a line for each arm and phase, a column for each part.

    Stall and drain are measured by themselves, so the table has room for the other intervals alone.
    """
    by_arm: dict[tuple[str | None, str, str], dict[str, PartRow]] = {}
    for row in rows_of_parts:
        by_arm.setdefault((row.arm_phase.point, row.arm_phase.arm, row.arm_phase.phase), {})[
            row.part
        ] = row
    if not by_arm:
        return []
    leading_cells = [*make_varying_cells(rows), ARM_CELL]
    headings = [
        *(cell.heading for cell in leading_cells),
        "phase",
        *(f"{part} %" for part in PARTS),
    ]
    sources = sources_of(leading_cells) | {"phase": ("phase",)}
    sources |= {f"{part} %": ("part", *SHARE_COLUMNS) for part in PARTS}
    block = Block(TITLE, headings, len(leading_cells) + 1, sources=sources)
    for arm_row in rows:
        names = [cell.write(arm_row) for cell in leading_cells]
        lines = [
            [*names, phase, *_format_parts(by_arm[arm_row.point, arm_row.arm, phase])]
            for phase in PHASES
            if (arm_row.point, arm_row.arm, phase) in by_arm
        ]
        if lines:
            block.groups.append(lines)
    return [block]


PARTS_TEXT = (
    "An overhead is stall + drain + rest, each the median over rounds, so they need not add up. "
    "Stall is the model's time in the library, rest is how much slower the model itself ran."
)
GPU_STALL_TEXT = (
    "On a GPU the model's thread is in the library while the device computes. So stall is not lost "
    "time as such, and rest can be negative. ANSWER counts stall + rest of level 3 as the model "
    "itself running slower, and each phase in percent of that phase."
)


def _make_notes(run: Run, rows_of_parts: Sequence[PartRow]) -> list[Note]:
    """Note how the parts of an overhead are made."""
    if not rows_of_parts:
        return []
    notes = [OVERHEAD_PARTS.note(PARTS_TEXT)]
    return [*notes, STALL_BESIDE_GPU.note(GPU_STALL_TEXT)] if ran_on_gpu(run) else notes


def _format_parts(rows_by_part: Mapping[str, PartRow]) -> list[str]:
    texts = []
    for part in PARTS:
        row = rows_by_part.get(part)
        if row is None:
            texts.append("–")
        # Stall and drain need no interval of their own: a clock measured them.
        elif part in MEASURED_PARTS:
            texts.append(f"{row.part_pct:.2f}")
        else:
            texts.append(
                format_percent_with_interval(row.part_pct, row.part_low_pct, row.part_high_pct)
            )
    return texts


def _make_content(run_data: RunData) -> PartContent:
    rows = make_part_rows(run_data)
    notes = _make_notes(run_data.run, rows)
    return PartContent(blocks=_make_blocks(run_data.reached_rows, rows), notes=notes, rows=rows)


OVERHEAD = RunPart(
    "overhead",
    "where the overhead comes from",
    _make_content,
    (OVERHEAD_PARTS, STALL_BESIDE_GPU),
    row=PartRow,
    is_long=True,
)
