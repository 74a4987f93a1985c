"""The two measured numbers that say what limits an arm, as text."""

from __future__ import annotations

from dejavubench.analysis.answers.limits.evidence import Evidence, MovingSide
from dejavubench.analysis.number_texts import (
    format_count,
    format_ms,
    format_nbytes,
    format_rate,
    format_signed_percent,
)
from dejavubench.units import format_count_of

SLOW_GB_PER_S = 0.1
"""Rates below it are written in MB/s."""

NEARLY_ALL_SHARE = 0.9
"""Share of stall and drain from which both are called by the name of one."""


def is_only_drain(evidence: Evidence) -> bool:
    """Return whether the model stands still for nearly nothing but the drain."""
    return evidence.cost.drain_ms >= NEARLY_ALL_SHARE * evidence.cost.stalled_ms


def _describe_stall(evidence: Evidence) -> str:
    stalled_part = _format_part_of_cost(evidence, evidence.cost.stalled_cost_ms)
    return f"{stalled_part} are {_name_stall(evidence)}"


def _name_stall(evidence: Evidence) -> str:
    if is_only_drain(evidence):
        return "drain"
    return (
        "stall"
        if evidence.cost.drain_ms <= (1 - NEARLY_ALL_SHARE) * evidence.cost.stalled_ms
        else "stall and drain"
    )


def _format_part_of_cost(evidence: Evidence, part_ms: float) -> str:
    """Write a part and the cost with the same decimals, so that a reader can subtract them."""
    total_ms = evidence.cost.total_ms
    return f"of {format_ms(total_ms)} ms of cost, {format_ms(part_ms, total_ms)} ms"


def describe_rates(evidence: Evidence) -> str:
    """Write the stream's own time against the request's, or the stall against the least time."""
    stream = evidence.stream
    if stream.is_overlapped and stream.alone_ms is not None:
        speed_text = _format_speed(stream.nbytes, stream.alone_ms)
        ceiling_text = ""
        if stream.ceiling and stream.ceiling_gb_per_s:
            ceiling_text = f" ({stream.ceiling}: {_format_rate(stream.ceiling_gb_per_s)})"
        stream_text = (
            f"the stream alone takes {format_ms(stream.alone_ms)} ms{speed_text}{ceiling_text}"
        )
        return f"{stream_text}, a request {format_ms(evidence.cost.request_ms)} ms"
    least_ms = stream.least_ms or 0.0
    speed_text = _format_speed(stream.nbytes, least_ms) + (
        f" of {stream.ceiling}" if stream.ceiling else " alone"
    )
    return f"{_describe_stall(evidence)}; the bytes take {format_ms(least_ms)} ms{speed_text}"


def _format_speed(nbytes_moved: float, time_ms: float) -> str:
    return f" at {_format_rate(nbytes_moved / time_ms / 1e6)}"


def _format_rate(gb_per_s: float) -> str:
    if gb_per_s < SLOW_GB_PER_S:
        return f"{1e3 * gb_per_s:.3g} MB/s"
    return f"{format_rate(gb_per_s, 2)} GB/s"


def describe_part(evidence: Evidence) -> str:
    """Name the longest part of the chunks, and the time of one chunk in it."""
    assert evidence.chunks is not None
    longest_part = evidence.chunks.longest_part
    fixed_us = evidence.chunks.fixed_us
    share_text = f"{longest_part.name} is {100 * longest_part.share:.0f} % of the chunks' own time"
    if evidence.stream.is_overlapped and evidence.falls_behind:
        return f"{describe_rates(evidence)}; {share_text}"
    text = f"{_describe_stall(evidence)}; {share_text}"
    # Beside the model only the last chunk of a request is waited for: one of a token.
    in_prompt = (
        longest_part.in_prompt
        and not evidence.stream.is_overlapped
        and not evidence.chunks.is_mostly_fixed
    )
    chunk = evidence.chunks.single_chunk(in_prompt)
    if chunk is None:
        return text
    part_us, chunk_nbytes = chunk
    text += f", {format_ms(part_us / 1e3)} ms per {format_nbytes(chunk_nbytes)}"
    if evidence.chunks.is_mostly_fixed:
        return f"{text}, of it {format_ms((fixed_us or 0.0) / 1e3)} ms whatever the size"
    return f"{text} ({_format_rate(chunk_nbytes / part_us / 1e3)})"


def describe_extents(evidence: Evidence) -> str:
    """Write the stall and the number of extents, with the time of one if it is known."""
    extent_count = evidence.stream.copy_count
    extent_us = evidence.stream.naive_us
    statistic = "each, by a probe"
    if evidence.chunks is not None:
        extent_count = evidence.chunks.extent_count
        extent_us = evidence.chunks.extent_us
        # A few slow extents can take most of the stall: the product is then less than the stall.
        statistic = "each in the median chunk"
    time_text = f" at {extent_us:.3g} µs {statistic}" if extent_us is not None else ""
    packed_text = ""
    if extent_us is None and evidence.cost.packed_ms is not None:
        packed_text = f", and the same bytes packed cost {format_ms(evidence.cost.packed_ms)} ms"
    count_text = f"{format_count(round(extent_count))} extents"
    return f"{_describe_stall(evidence)}; {count_text}{time_text}{packed_text}"


def _format_phases(evidence: Evidence) -> str:
    texts = [
        f"{phase} {format_signed_percent(percent)} %"
        for phase, percent in (
            ("prompt", evidence.cost.prompt_pct),
            ("tokens", evidence.cost.tokens_pct),
        )
        if percent is not None
    ]
    # The table of parts divides by TOTAL; its percentages are smaller.
    return f" ({', '.join(texts)} of that phase)" if texts else ""


def _describe_rest(evidence: Evidence) -> str:
    # From the numbers as they are printed: a reader adds them up.
    total_text = format_ms(evidence.cost.total_ms)
    stalled_text = format_ms(evidence.cost.stalled_cost_ms, evidence.cost.total_ms)
    rest_text = _format_part_of_cost(evidence, float(total_text) - float(stalled_text))
    return f"{rest_text} are the model itself running slower{_format_phases(evidence)}"


def describe_sending(evidence: Evidence) -> str:
    """Write the slower phase, and which kernels send chunks beside the model."""
    return (
        f"{_describe_rest(evidence)} while kernels send chunks ({evidence.stream.sending_kernels})"
    )


def describe_gathering(evidence: Evidence) -> str:
    """Write the slower phase beside the kernel that gathers."""
    return f"{_describe_rest(evidence)} while a kernel gathers chunks"


def describe_polling_sink(evidence: Evidence) -> str:
    """Write the CPU time that the sink took beside the model, beside the slower phase."""
    return _describe_polling(evidence, "sink", evidence.machine.sink)


def describe_polling_helper(evidence: Evidence) -> str:
    """Write the CPU time that the helper took beside the model, beside the slower phase."""
    return _describe_polling(evidence, "helper", evidence.machine.helper)


def _describe_polling(evidence: Evidence, side_name: str, side: MovingSide | None) -> str:
    assert side is not None
    machine = evidence.machine
    granted_cores_text = format_count_of(machine.core_count or 0, "core")
    return (
        f"{_describe_rest(evidence)}; the {side_name} took {format_ms(side.cpu_ms)} ms of CPU time "
        f"per request, of which its bytes need {format_ms(side.needed_ms)} ms at most; the model "
        f"alone takes {machine.model_core_count:.2f} of {granted_cores_text}"
    )


def describe_programs(evidence: Evidence) -> str:
    """Write the cores that other programs and this job took, beside the slower phase."""
    machine = evidence.machine
    busy_core_count = machine.busy_core_count or 0.0
    text = (
        f"{_describe_rest(evidence)}; other processes took {machine.other_core_count:.2f} and this "
        f"job {busy_core_count:.2f} of {machine.core_count} cores"
    )
    if machine.other_ms is not None and machine.other_ms > 0:
        more_ms_text = format_ms(machine.other_ms)
        text += (
            f"; the other processes, kernel threads included, took {more_ms_text} ms more CPU time "
            "per iteration than without streaming"
        )
    return text


def describe_cpu_wait(evidence: Evidence) -> str:
    """Write the shares of time that threads waited for a core, with streaming and without."""
    return (
        f"{_describe_rest(evidence)}; some thread waited for a core "
        f"{evidence.machine.cpu_wait_pct:.1f} % of the time, without streaming "
        f"{evidence.machine.baseline_cpu_wait_pct:.1f} %"
    )


def describe_copies(evidence: Evidence) -> str:
    """Write the least time of the stream's copies in the memory that the tokens read."""
    return (
        f"{_describe_rest(evidence)}; the stream's copies take at least "
        f"{format_ms(evidence.copies_ms)} ms of a memory that tokens read at "
        f"{evidence.machine.read_pct:.0f} % of its rate"
    )


def describe_parts(evidence: Evidence) -> str:
    """Describe the part of the request in which a cost of unknown cause lies."""
    if evidence.cost.is_mostly_stalled:
        if evidence.chunks is not None:
            return describe_part(evidence)
        return f"{_describe_stall(evidence)}; the records have no times of chunks"
    if evidence.cost.stalled_ms < (1 - NEARLY_ALL_SHARE) * evidence.cost.total_ms:
        return _describe_rest(evidence)
    stalled_text = format_ms(evidence.cost.stalled_cost_ms, evidence.cost.total_ms)
    return f"{_describe_rest(evidence)}; {stalled_text} ms are {_name_stall(evidence)}"
