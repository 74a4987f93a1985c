"""Part of a report: the stream of each source alone, by itself and with all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from dejavubench.analysis.facts.samples import ArmSamples, SourceAloneTimes
from dejavubench.analysis.facts.source_ranks import list_sources
from dejavubench.analysis.number_texts import format_4_digits, format_nbytes
from dejavubench.analysis.tables.arm_groups import group_by_arm
from dejavubench.analysis.tables.process_columns import Row, SettingColumns, Sizes
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.row_blocks import make_varying_cells, sources_of
from dejavubench.analysis.tables.text_cells import ARM_CELL
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.records import Run

TITLE = "streams of several sources at level 3, without a model beside them"
"""Title of the table."""

SHOWN_COLUMNS = {
    "source rank": ("source",),
    "to ranks": ("sink_ranks",),
    "bytes": ("source_bytes",),
    "GB/s by itself": ("isolated_gb_per_s",),
    "GB/s with all": ("together_gb_per_s",),
    "share %": ("together_pct",),
}
"""Headings of the table for people after those that name an arm, with their columns."""


@dataclass
class SourceRow:
    """Streams of each source alone: one row for each point, arm at level 3 and source.

    Only runs with two to four sources have them, of destinations that are other ranks. Nothing is
    computed meanwhile.
    """

    run: Annotated[str, "Folder of the run."]
    point: Annotated[str, "Point of the sweep, such as p000."]
    sizes: Sizes
    arm: Annotated[str, "Name of the arm: a destination and a level."]
    source: Annotated[int, "Rank of the source."]
    sink_ranks: Annotated[str, "Ranks that it streams to, with commas."]
    source_bytes: Annotated[int, "Bytes that it streams."]
    isolated_gb_per_s: Annotated[float, "Its rate while the other sources stream nothing."]
    together_gb_per_s: Annotated[float, "Its rate while all sources stream."]
    together_pct: Annotated[float, "together_gb_per_s as a share of isolated_gb_per_s."]
    setting: SettingColumns = field(default_factory=SettingColumns)


def _make_rows(run_data: RunData) -> list[SourceRow]:
    """Return the rows of a run; none of a run with one source."""
    sinks_by_source = {info.rank: info.peers for info in list_sources(run_data.run)}
    return [
        _make_row(run_data.run, samples, source, sinks_by_source.get(source, []), times)
        for point in run_data.points.values()
        for samples in point.arms.values()
        if samples.info.level == DEFAULT_LEVEL and samples.why_failed is None
        for source, times in sorted(samples.sources_alone.items())
    ]


def _make_row(
    run: Run, samples: ArmSamples, source: int, sinks: Sequence[int], times: SourceAloneTimes
) -> SourceRow:
    # Bytes per ms / 10⁶ = GB/s.
    isolated_rate, together_rate = (
        times.nbytes / ms / 1e6 for ms in (times.isolated_ms, times.together_ms)
    )
    return SourceRow(
        run=run.path.name,
        point=samples.point_info.id,
        sizes=Sizes.of_point(samples.point_info),
        arm=samples.info.name,
        source=source,
        sink_ranks=", ".join(map(str, sinks)),
        source_bytes=times.nbytes,
        isolated_gb_per_s=isolated_rate,
        together_gb_per_s=together_rate,
        together_pct=100 * together_rate / isolated_rate,
        setting=SettingColumns.of_point(samples.point_info),
    )


def _make_blocks(rows: list[Row], source_rows: Sequence[SourceRow]) -> list[Block]:
    """Return the table for people: a line for each arm and source."""
    if not source_rows:
        return []
    leading_cells = [*make_varying_cells(rows), ARM_CELL]
    headings = [cell.heading for cell in leading_cells]
    columns = sources_of(leading_cells) | SHOWN_COLUMNS
    groups = group_by_arm(
        rows,
        leading_cells,
        (
            ((source_row.point, source_row.arm), _write_cells(source_row))
            for source_row in source_rows
        ),
    )
    return [Block(TITLE, [*headings, *SHOWN_COLUMNS], len(headings), groups, sources=columns)]


def _write_cells(source_row: SourceRow) -> list[str]:
    return [
        str(source_row.source),
        source_row.sink_ranks,
        format_nbytes(source_row.source_bytes),
        format_4_digits(source_row.isolated_gb_per_s),
        format_4_digits(source_row.together_gb_per_s),
        f"{source_row.together_pct:.0f}",
    ]


def _make_content(run_data: RunData) -> PartContent:
    rows = _make_rows(run_data)
    return PartContent(blocks=_make_blocks(run_data.reached_rows, rows), rows=rows)


SOURCES = RunPart(
    "sources", "streams of several sources", _make_content, row=SourceRow, is_long=True
)
