"""Cells of tables for people: their headings, the columns that they show, and their texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dejavubench.analysis.number_texts import (
    format_4_digits,
    format_count,
    format_ms,
    format_ms_interval,
    format_nbytes,
    format_or_dash,
    format_percent_with_interval,
    format_rate,
)
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS, SETTING_COLUMNS, Row
from dejavubench.analysis.tables.text_tables import Block
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.records.destination_info import NO_STREAMING

SIZE_HEADINGS = {
    "model": "model",
    "data_type": "data type",
    "kv_layout": "KV layout",
    "ubatch_size": "batch",
    "input_len": "prompt",
    "output_len": "new tokens",
    "tensor_para_size": "tensor parallel",
    "pipeline_para_size": "pipeline depth",
    "sinks": "sinks",
    "handed_over": "tokens before hand-over",
}
"""Headings of the sizes of a point, in tables and captions."""

SETTING_HEADINGS = {
    "threads": "threads",
    "staging_mib": "staging MiB",
    "staging_slots": "staging slots",
    "confine": "confined",
}
"""Headings of the settings of a point, where a sweep varies them."""

HEADINGS = SIZE_HEADINGS | SETTING_HEADINGS
"""Headings of all that may tell points apart."""


def format_setting(value: object) -> str:
    """Return a setting as tables and captions show it; a switch is yes or no."""
    return {"True": "yes", "False": "no"}.get(str(value), str(value))  # pandas has its own bool


@dataclass(frozen=True)
class Cell:
    """A column of a table for people.

    Attributes:
        columns: names of the columns that it is made from.
        write: makes the text of one row.
    """

    heading: str
    columns: tuple[str, ...]
    write: Callable[[Row], str]


# ---- texts that are made from several columns ----


def _format_overhead(row: Row) -> str:
    overhead = row.overhead
    if not row.is_streaming:
        return format_noise(row) if row.arm != NO_STREAMING else "baseline"
    if overhead.overhead_pct is None:
        return overhead.baseline or "–"
    interval = overhead.overhead_low_pct, overhead.overhead_high_pct
    return format_percent_with_interval(overhead.overhead_pct, *interval)


def format_noise(row: Row) -> str:
    """Write a row's noise floor with its interval; a dash without one."""
    overhead = row.overhead
    if overhead.noise_floor_pct is None:
        return "–"
    interval = overhead.noise_floor_low_pct, overhead.noise_floor_high_pct
    return f"noise {format_percent_with_interval(overhead.noise_floor_pct, *interval)}"


def _format_token_overhead(row: Row) -> str:
    overhead = row.overhead
    if (
        not row.is_streaming
        and row.arm != NO_STREAMING
        and overhead.token_noise_floor_pct is not None
    ):
        # The second baseline shows the noise that the other rows must exceed.
        interval = overhead.token_noise_floor_low_pct, overhead.token_noise_floor_high_pct
        return f"noise {format_percent_with_interval(overhead.token_noise_floor_pct, *interval)}"
    if overhead.token_overhead_pct is None:
        return "–"
    interval = overhead.token_overhead_low_pct, overhead.token_overhead_high_pct
    return format_percent_with_interval(overhead.token_overhead_pct, *interval)


def has_alone(row: Row) -> bool:
    """Return whether the row is of the level whose chunks were timed alone."""
    return row.level == DEFAULT_LEVEL


def _format_alone(row: Row) -> str:
    return format_rate(row.rates.alone_gb_per_s if has_alone(row) else None, 2)


def format_ceiling_share(row: Row) -> str:
    """Write the share of its ceiling that an arm reached; a dash if either is unknown."""
    if row.rates.ceiling_share_pct is None or not has_alone(row):
        return "–"
    return f"{row.rates.ceiling_share_pct:.0f} % of {row.rates.ceiling}"


def _format_copies(row: Row) -> str:
    streaming = row.streaming
    if streaming.copies_per_prompt is None:
        return "–"
    return (
        f"{format_count(streaming.copies_per_prompt)} / {format_count(streaming.copies_per_token)}"
    )


def _format_cpu(row: Row) -> str:
    cpu_times = (row.cpu.cpu_model_s, row.cpu.cpu_helper_s, row.cpu.cpu_sink_s)
    return " / ".join(format_or_dash(seconds, ".2f") for seconds in cpu_times)


def _format_hidden(row: Row) -> str:
    share = row.rates.hidden_pct
    if share is None:
        return "–"
    return f"{share:.0f}" if share >= 0 else "nothing"


def _format_verdict(row: Row) -> str:
    overhead = row.overhead
    return "–" if overhead.verdict is None else f"{overhead.verdict} (≤ {overhead.target_pct:g} %)"


def _format_resident(row: Row) -> str:
    return f"{row.swap.resident_caches} of {row.sizes.pipeline_para_size}"


# ---- the cells ----


def _make_size_cell(name: str) -> Cell:
    return Cell(SIZE_HEADINGS[name], (name,), lambda row: str(getattr(row.sizes, name)))


def _make_setting_cell(name: str) -> Cell:
    return Cell(
        SETTING_HEADINGS[name], (name,), lambda row: format_setting(getattr(row.setting, name))
    )


SIZE_CELLS = {name: _make_size_cell(name) for name in POINT_COLUMNS}
SETTING_CELLS = {name: _make_setting_cell(name) for name in SETTING_COLUMNS}
POINT_CELL = Cell("point", ("point",), lambda row: row.point or "–")
ARM_CELL = Cell("arm", ("arm",), lambda row: row.arm)
STATISTIC_CELL = Cell("statistic", ("statistic",), lambda row: str(row.cpu.statistic))
TIME_CELLS = (
    Cell("prompt ms", ("prompt_ms",), lambda row: format_ms(row.times.prompt_ms)),
    Cell("token ms", ("token_ms",), lambda row: format_ms(row.times.token_ms)),
    Cell("total ms", ("total_ms",), lambda row: format_ms(row.times.total_ms)),
    Cell("rounds", ("samples",), lambda row: format_or_dash(row.times.samples, "d")),
)
SPREAD_CELLS = (
    Cell(
        "total [ ] ms",
        ("total_low_ms", "total_high_ms"),
        lambda row: format_ms_interval(row.times.total_low_ms, row.times.total_high_ms),
    ),
    Cell("total IQR ms", ("total_iqr_ms",), lambda row: format_ms(row.times.total_iqr_ms)),
)
OVERHEAD_CELLS = (
    Cell(
        "overhead %",
        (
            *("overhead_pct", "overhead_low_pct", "overhead_high_pct", "baseline"),
            *("noise_floor_pct", "noise_floor_low_pct", "noise_floor_high_pct"),
        ),
        _format_overhead,
    ),
    Cell("verdict", ("verdict", "target_pct"), _format_verdict),
    Cell("verified", ("verified",), lambda row: row.verified or "–"),
)
PATH_CELL = Cell("path (≥ share of bytes)", ("path",), lambda row: row.conditions.path or "–")
STREAM_CELLS = (
    Cell("stall ms", ("stall_ms",), lambda row: format_ms(row.streaming.stall_ms)),
    Cell(
        "largest lag",
        ("largest_lag_bytes",),
        lambda row: format_nbytes(row.streaming.largest_lag_bytes),
    ),
    Cell("bytes", ("streamed_bytes",), lambda row: format_nbytes(row.streaming.streamed_bytes)),
    Cell("copies per prompt / token", ("copies_per_prompt", "copies_per_token"), _format_copies),
    Cell("GB/s alone", ("alone_gb_per_s",), _format_alone),
    Cell("share of ceiling", ("ceiling_share_pct", "ceiling"), format_ceiling_share),
    Cell("hosts", ("hosts",), lambda row: row.hosts or "–"),
    PATH_CELL,
    Cell("durability", ("durability",), lambda row: row.durability or "–"),
)
REST_CELLS = (
    *SPREAD_CELLS,
    Cell(
        "token overhead %",
        (
            *("token_overhead_pct", "token_overhead_low_pct", "token_overhead_high_pct"),
            *("token_noise_floor_pct", "token_noise_floor_low_pct", "token_noise_floor_high_pct"),
        ),
        _format_token_overhead,
    ),
    Cell("drain ms", ("drain_ms",), lambda row: format_ms(row.times.drain_ms)),
    Cell(
        "GB/s over total", ("total_gb_per_s",), lambda row: format_rate(row.rates.total_gb_per_s, 3)
    ),
    Cell("hidden %", ("hidden_pct",), _format_hidden),
    Cell("CPU s model / helper / sink", ("cpu_model_s", "cpu_helper_s", "cpu_sink_s"), _format_cpu),
)
HANDOVER_CELLS = (
    Cell("hand-over ms", ("handover_ms",), lambda row: format_ms(row.handover.handover_ms)),
    Cell("sinks' wait ms", ("sink_waited_ms",), lambda row: format_ms(row.handover.sink_waited_ms)),
    Cell("first token ms", ("sink_first_ms",), lambda row: format_ms(row.handover.sink_first_ms)),
    Cell("token ms", ("sink_token_ms",), lambda row: format_ms(row.handover.sink_token_ms)),
    Cell("floor ms", ("handover_floor_ms",), lambda row: format_ms(row.handover.handover_floor_ms)),
)
SWAP_CELLS = (
    Cell("caches in place", ("resident_caches",), _format_resident),
    Cell(
        "brought back",
        ("brought_back_bytes",),
        lambda row: format_nbytes(row.swap.brought_back_bytes),
    ),
    Cell("bring-back ms", ("bring_ms",), lambda row: format_ms(row.swap.bring_ms)),
    Cell("model's wait ms", ("swap_wait_ms",), lambda row: format_ms(row.swap.swap_wait_ms)),
)
RESTART_CELLS = (
    Cell("resumed run", ("resumed_run",), lambda row: row.restart.resumed_run or "–"),
    Cell("first new token", ("resumed_at_token",), lambda row: str(row.restart.resumed_at_token)),
    Cell("restored", ("restored_bytes",), lambda row: format_nbytes(row.restart.restored_bytes)),
    Cell("restore ms", ("restore_ms",), lambda row: format_ms(row.restart.restore_ms)),
    Cell("recompute ms", ("anew_ms",), lambda row: format_ms(row.restart.anew_ms)),
    Cell("token ms", ("token_ms",), lambda row: format_ms(row.times.token_ms)),
    Cell("drain ms", ("drain_ms",), lambda row: format_ms(row.times.drain_ms)),
    Cell("verified", ("verified",), lambda row: row.verified or "–"),
)
EVENT_CELLS = (
    Cell(
        "prompt ms by events",
        ("prompt_event_ms",),
        lambda row: format_ms(row.events.prompt_event_ms),
    ),
    Cell(
        "token ms by events", ("token_event_ms",), lambda row: format_ms(row.events.token_event_ms)
    ),
)
MODEL_CELLS = (
    Cell(
        "prompt TFLOP/s",
        ("prompt_tflop_per_s",),
        lambda row: format_4_digits(row.speed.prompt_tflop_per_s),
    ),
    Cell(
        "% of matmul",
        ("prompt_share_pct",),
        lambda row: format_or_dash(row.speed.prompt_share_pct, ".1f"),
    ),
    Cell("token GB/s", ("token_gb_per_s",), lambda row: format_4_digits(row.speed.token_gb_per_s)),
    Cell(
        "% of memory-read",
        ("token_share_pct",),
        lambda row: format_or_dash(row.speed.token_share_pct, ".1f"),
    ),
)
TITLES = {
    "handover": "hand-over, and the sinks after it",
    "swap": "swapping, per iteration",
    "streaming": "streaming, per iteration",
    "rest": "spread, drain and CPU, per iteration",
    "model": "the model against the machine",
}
SHOWN_CELLS: dict[str, tuple[Cell, ...]] = {
    "every table": (POINT_CELL, *SIZE_CELLS.values(), *SETTING_CELLS.values(), ARM_CELL),
    "times": TIME_CELLS + OVERHEAD_CELLS + SPREAD_CELLS,
    "text logs": (STATISTIC_CELL,),
    "restart": RESTART_CELLS,
    TITLES["handover"]: HANDOVER_CELLS,
    TITLES["swap"]: SWAP_CELLS,
    TITLES["streaming"]: STREAM_CELLS,
    TITLES["rest"]: REST_CELLS,
    TITLES["model"]: EVENT_CELLS + MODEL_CELLS,
}
"""Cells by the table that shows them."""


# ---- the tables ----


def make_varying_cells(rows: list[Row]) -> list[Cell]:
    """Return the cells that tell a run's points apart: id, sizes and settings that vary."""
    first_cells = [POINT_CELL] if len({row.point for row in rows}) > 1 else []
    cells = (*SIZE_CELLS.values(), *SETTING_CELLS.values())
    return [*first_cells, *(cell for cell in cells if len({cell.write(row) for row in rows}) > 1)]


def describe_common_sizes(rows: list[Row]) -> str:
    """Return in words the sizes that all points of a run have in common."""
    sizes = {name: {getattr(row.sizes, name) for row in rows} for name in POINT_COLUMNS}
    return ", ".join(
        f"{SIZE_HEADINGS[name]} {value}"
        for name, values in sizes.items()
        if len(values) == 1 and (value := next(iter(values)))
    )


def sources_of(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    """Return by heading the names of the columns that cells are made from."""
    return {cell.heading: cell.columns for cell in cells}


def make_block(
    title: str, rows: Sequence[Row], point_cells: Sequence[Cell], cells: Sequence[Cell]
) -> Block:
    """Make a table of rows, led by what varies and by the arm's name.

    Args:
        point_cells: from :func:`make_varying_cells`, of all rows of the run.
    """
    leading_cells = [*point_cells, ARM_CELL]
    columns = [*leading_cells, *cells]
    table = Block(
        title, [cell.heading for cell in columns], len(leading_cells), sources=sources_of(columns)
    )
    for _, point_rows in groupby(rows, key=lambda row: row.point):
        table.groups.append([])
        for row in point_rows:
            texts = [cell.write(row) for cell in cells] if row.ok else [row.status]
            texts += ["–"] * (len(cells) - len(texts))
            table.groups[-1].append([*(cell.write(row) for cell in leading_cells), *texts])
    return table
