"""Part of a report: the tails of single tokens, one line for each arm with measured tokens."""

from __future__ import annotations

from dejavubench.analysis.number_texts import (
    format_ms,
    format_or_dash,
    format_percent_with_interval,
)
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import PartContent, RunPart
from dejavubench.analysis.tables.row_blocks import make_block, make_varying_cells
from dejavubench.analysis.tables.text_cells import Cell
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records.destination_info import NO_STREAMING

TITLE = "single tokens, over all rounds"
"""Title of the table."""


def _format_overhead(row: Row) -> str:
    tails = row.tails
    if row.is_streaming:
        interval = tails.p99_overhead_low_pct, tails.p99_overhead_high_pct
        value = tails.p99_overhead_pct
        prefix = ""
    elif row.arm == NO_STREAMING:
        return "baseline"
    else:
        interval = tails.p99_noise_low_pct, tails.p99_noise_high_pct
        value = tails.p99_noise_pct
        prefix = "noise "
    return "–" if value is None else prefix + format_percent_with_interval(value, *interval)


TAIL_CELLS = (
    Cell("tokens", ("token_samples",), lambda row: format_or_dash(row.tails.token_samples, ",d")),
    Cell("p50 ms", ("token_p50_ms",), lambda row: format_ms(row.tails.token_p50_ms)),
    Cell("p90 ms", ("token_p90_ms",), lambda row: format_ms(row.tails.token_p90_ms)),
    Cell("p99 ms", ("token_p99_ms",), lambda row: format_ms(row.tails.token_p99_ms)),
    Cell("max ms", ("token_max_ms",), lambda row: format_ms(row.tails.token_max_ms)),
    Cell(
        "p99 overhead %",
        (
            *("p99_overhead_pct", "p99_overhead_low_pct", "p99_overhead_high_pct"),
            *("p99_noise_pct", "p99_noise_low_pct", "p99_noise_high_pct"),
        ),
        _format_overhead,
    ),
)
"""Cells of the table of single tokens."""


def _make_blocks(rows: list[Row]) -> list[Block]:
    """Return the table of runs that stream; without streaming there is nothing to compare."""
    timed_rows = [row for row in rows if row.tails.token_samples]
    if not any(row.is_streaming for row in timed_rows):
        return []
    return [make_block(TITLE, timed_rows, make_varying_cells(rows), TAIL_CELLS)]


TAILS = RunPart(
    "tails",
    "single tokens",
    lambda run_data: PartContent(blocks=_make_blocks(run_data.reached_rows)),
    is_long=True,
)
