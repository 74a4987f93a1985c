"""Cells of tables for people: their headings, the columns that they show, and their texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dejavubench.analysis.number_texts import (
    format_4_digits,
    format_ms,
    format_ms_interval,
    format_nbytes,
    format_or_dash,
    format_rate,
)
from dejavubench.analysis.tables.cell_texts import (
    format_alone,
    format_ceiling_share,
    format_copies,
    format_cpu,
    format_hidden,
    format_overhead,
    format_resident,
    format_token_overhead,
    format_verdict,
)
from dejavubench.analysis.tables.headings import SETTING_HEADINGS, SIZE_HEADINGS, format_setting
from dejavubench.analysis.tables.process_columns import POINT_COLUMNS, SETTING_COLUMNS, Row


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
        "total interval ms",
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
        format_overhead,
    ),
    Cell("verdict", ("verdict", "target_pct"), format_verdict),
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
    Cell("copies per prompt / token", ("copies_per_prompt", "copies_per_token"), format_copies),
    Cell("GB/s alone", ("alone_gb_per_s",), format_alone),
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
        format_token_overhead,
    ),
    Cell("drain ms", ("drain_ms",), lambda row: format_ms(row.times.drain_ms)),
    Cell(
        "GB/s over total", ("total_gb_per_s",), lambda row: format_rate(row.rates.total_gb_per_s, 3)
    ),
    Cell("hidden %", ("hidden_pct",), format_hidden),
    Cell("CPU s model / helper / sink", ("cpu_model_s", "cpu_helper_s", "cpu_sink_s"), format_cpu),
)
HANDOVER_CELLS = (
    Cell("hand-over ms", ("handover_ms",), lambda row: format_ms(row.handover.handover_ms)),
    Cell("sinks' wait ms", ("sink_waited_ms",), lambda row: format_ms(row.handover.sink_waited_ms)),
    Cell("first token ms", ("sink_first_ms",), lambda row: format_ms(row.handover.sink_first_ms)),
    Cell("token ms", ("sink_token_ms",), lambda row: format_ms(row.handover.sink_token_ms)),
    Cell("floor ms", ("handover_floor_ms",), lambda row: format_ms(row.handover.handover_floor_ms)),
)
SWAP_CELLS = (
    Cell("caches in place", ("resident_caches",), format_resident),
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
