"""Parts of a report with one line for each point and arm: times, scenarios, streaming, model."""

from __future__ import annotations

from dejavubench.analysis.numbers import stats
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.analysis.tables.report_part import PartContent, RunData, RunPart
from dejavubench.analysis.tables.row_blocks import (
    describe_common_sizes,
    make_block,
    make_varying_cells,
)
from dejavubench.analysis.tables.text_cells import (
    EVENT_CELLS,
    HANDOVER_CELLS,
    MODEL_CELLS,
    OVERHEAD_CELLS,
    PATH_CELL,
    REST_CELLS,
    RESTART_CELLS,
    SPREAD_CELLS,
    STREAM_CELLS,
    SWAP_CELLS,
    TIME_CELLS,
    TITLES,
)
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.records import Note, NoteKind
from dejavubench.records.destination_info import NO_STREAMING

HOW_TIMES_ARE_MADE = NoteKind("times", "info")
"""Kind of the note on how the numbers of the table of times are made."""

MEDIAN_TIMES = "A time is that of the slowest source, the median over rounds."
INTERVALS = "Brackets hold 95 % bootstrap intervals."
RANGES = "Brackets hold the range of the rounds."
PAIRED_SENTENCE = (
    "Overheads are paired: each round is divided by the geometric mean of its none and none#2."
)
RESTART_TIMES = (
    "Times are of one iteration on the slowest source. The recompute time is that of the earlier "
    "steps without streaming, in this process."
)


def _explain_times(rows: list[Row]) -> Note:
    if any(row.restart.resumed_run for row in rows):
        return HOW_TIMES_ARE_MADE.note(RESTART_TIMES)
    round_counts = [row.times.samples for row in rows if row.times.samples]
    brackets = (
        RANGES if round_counts and min(round_counts) < stats.COVERING_ROUND_COUNT else INTERVALS
    )
    pairing = [PAIRED_SENTENCE] if any(row.is_streaming for row in rows) else []
    return HOW_TIMES_ARE_MADE.note(" ".join([MEDIAN_TIMES, brackets, *pairing]))


def _make_times_tables(rows: list[Row]) -> list[Block]:
    if not rows:
        return []
    point_cells = make_varying_cells(rows)
    title = describe_common_sizes(rows)
    if restart_rows := _select_restarts(rows):
        return [make_block(title, restart_rows, point_cells, RESTART_CELLS)]
    if not any(row.is_streaming for row in rows):
        return [make_block(title, rows, point_cells, TIME_CELLS + SPREAD_CELLS)]
    has_verdicts = any(row.overhead.verdict for row in rows)
    overhead_cells = tuple(
        cell for cell in OVERHEAD_CELLS if has_verdicts or cell.heading != "verdict"
    )
    return [make_block(title, rows, point_cells, TIME_CELLS + overhead_cells)]


def _select_restarts(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.restart.resumed_run]


def _select_streaming(rows: list[Row]) -> list[Row]:
    """Return the rows of arms that stream in rounds; a restarted request has no rounds."""
    return [] if _select_restarts(rows) else [row for row in rows if row.is_streaming and row.ok]


def _make_handover_table(rows: list[Row]) -> list[Block]:
    handover = [row for row in _select_streaming(rows) if row.handover.handover_ms is not None]
    title = TITLES["handover"]
    return (
        [make_block(title, handover, make_varying_cells(rows), HANDOVER_CELLS)] if handover else []
    )


def _make_swap_table(rows: list[Row]) -> list[Block]:
    swap_rows = [row for row in _select_streaming(rows) if row.swap.resident_caches is not None]
    return (
        [make_block(TITLES["swap"], swap_rows, make_varying_cells(rows), SWAP_CELLS)]
        if swap_rows
        else []
    )


def _make_stream_tables(rows: list[Row]) -> list[Block]:
    streaming_rows = _select_streaming(rows)
    point_cells = make_varying_cells(rows)
    if not streaming_rows:
        return []
    has_paths = any(row.conditions.path for row in streaming_rows)  # older records have none
    cells = [cell for cell in STREAM_CELLS if has_paths or cell is not PATH_CELL]
    return [
        make_block(TITLES["streaming"], streaming_rows, point_cells, cells),
        make_block(TITLES["rest"], [row for row in rows if row.ok], point_cells, REST_CELLS),
    ]


def _make_model_table(rows: list[Row]) -> list[Block]:
    """Return one line per point, of the first baseline; its ceilings are in the notes."""
    baselines = [
        row for row in rows if row.arm == NO_STREAMING and row.speed.prompt_tflop_per_s is not None
    ]
    if not baselines:
        return []
    events = EVENT_CELLS if any(row.events.prompt_event_ms is not None for row in baselines) else ()
    return [make_block(TITLES["model"], baselines, make_varying_cells(rows), events + MODEL_CELLS)]


# ---- the parts ----


def _make_times_content(run_data: RunData) -> PartContent:
    blocks = _make_times_tables(run_data.reached_rows)
    # Without a table there is no time to explain.
    notes = [_explain_times(run_data.rows)] if blocks else []
    return PartContent(blocks=blocks, notes=notes)


TIMES = RunPart("times", "times and overheads", _make_times_content, (HOW_TIMES_ARE_MADE,))
HANDOVER = RunPart(
    "hand-over",
    "hand-over",
    lambda run_data: PartContent(blocks=_make_handover_table(run_data.reached_rows)),
)
SWAP = RunPart(
    "swap", "swapping", lambda run_data: PartContent(blocks=_make_swap_table(run_data.reached_rows))
)
STREAMING = RunPart(
    "streaming",
    "streaming",
    lambda run_data: PartContent(blocks=_make_stream_tables(run_data.reached_rows)),
    is_long=True,
)
MODEL = RunPart(
    "model",
    TITLES["model"],
    lambda run_data: PartContent(blocks=_make_model_table(run_data.reached_rows)),
    is_long=True,
)
