"""Texts of cells that are made from several columns of a row."""

from __future__ import annotations

from dejavubench.analysis.number_texts import (
    format_count,
    format_or_dash,
    format_percent_with_interval,
    format_rate,
)
from dejavubench.analysis.tables.process_columns import Row
from dejavubench.dejavulib.levels import DEFAULT_LEVEL
from dejavubench.records.destination_info import NO_STREAMING


def format_overhead(row: Row) -> str:
    """Write an overhead with its interval; of the second baseline its noise."""
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


def format_token_overhead(row: Row) -> str:
    """Write the overhead of the tokens alone; of the second baseline its noise."""
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


def format_alone(row: Row) -> str:
    """Write the rate of the stream without the model, of the level that was timed so."""
    return format_rate(row.rates.alone_gb_per_s if has_alone(row) else None, 2)


def format_ceiling_share(row: Row) -> str:
    """Write the share of its ceiling that an arm reached; a dash if either is unknown."""
    if row.rates.ceiling_share_pct is None or not has_alone(row):
        return "–"
    return f"{row.rates.ceiling_share_pct:.0f} % of {row.rates.ceiling}"


def format_copies(row: Row) -> str:
    """Write the copies of a prompt and of a token."""
    streaming = row.streaming
    if streaming.copies_per_prompt is None:
        return "–"
    return (
        f"{format_count(streaming.copies_per_prompt)} / {format_count(streaming.copies_per_token)}"
    )


def format_cpu(row: Row) -> str:
    """Write the CPU seconds of the model, the helper thread and the sink."""
    cpu_times = (row.cpu.cpu_model_s, row.cpu.cpu_helper_s, row.cpu.cpu_sink_s)
    return " / ".join(format_or_dash(seconds, ".2f") for seconds in cpu_times)


def format_hidden(row: Row) -> str:
    """Write the hidden share of the streaming; "nothing" if the run grew by more."""
    share = row.rates.hidden_pct
    if share is None:
        return "–"
    return f"{share:.0f}" if share >= 0 else "nothing"


def format_verdict(row: Row) -> str:
    """Write the verdict with its target; a dash without one."""
    overhead = row.overhead
    return "–" if overhead.verdict is None else f"{overhead.verdict} (≤ {overhead.target_pct:g} %)"


def format_resident(row: Row) -> str:
    """Write how many of the caches are in place."""
    return f"{row.swap.resident_caches} of {row.sizes.pipeline_para_size}"
