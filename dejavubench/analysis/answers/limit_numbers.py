"""The two measured numbers that say what limits an arm, as text."""

from __future__ import annotations

from dejavubench.analysis.answers.evidence import Evidence, MovingSide
from dejavubench.analysis.number_texts import (
    format_count,
    ms_text,
    nbytes_text,
    rate_text,
    signed_percent,
)

SLOW_GB_PER_S = 0.1
"""Rates below it are written in MB/s."""

NEARLY_ALL = 0.9
"""Share of a wait from which it is called by one name: wait, or drain."""


def only_drain(evidence: Evidence) -> bool:
    """Whether nearly all of the model's wait is the one at the end."""
    return evidence.cost.drain >= NEARLY_ALL * evidence.cost.lost


def _lost_text(evidence: Evidence) -> str:
    return f"{_part_of_cost(evidence, evidence.cost.waiting)} are {_kind_of_wait(evidence)}"


def _kind_of_wait(evidence: Evidence) -> str:
    if only_drain(evidence):
        return "drain"
    return (
        "wait" if evidence.cost.drain <= (1 - NEARLY_ALL) * evidence.cost.lost else "wait and drain"
    )


def _part_of_cost(evidence: Evidence, part_ms: float) -> str:
    return f"of {ms_text(evidence.cost.total)} ms of cost, {ms_text(part_ms)}"


def describe_rates(evidence: Evidence) -> str:
    """Write the stream's own time against the request's, or the wait against the least time."""
    stream = evidence.stream
    if stream.overlapped and stream.alone_ms is not None:
        text = _speed(stream.nbytes, stream.alone_ms)
        bound = ""
        if stream.ceiling and stream.ceiling_gb_per_s:
            bound = f" ({stream.ceiling}: {_rate(stream.ceiling_gb_per_s)})"
        took = f"the stream alone takes {ms_text(stream.alone_ms)} ms{text}{bound}"
        return f"{took}, a request {ms_text(evidence.cost.request)} ms"
    least_ms = stream.least_ms or 0.0
    text = _speed(stream.nbytes, least_ms) + (
        f" of {stream.ceiling}" if stream.ceiling else " alone"
    )
    return f"{_lost_text(evidence)}; the bytes take {ms_text(least_ms)} ms{text}"


def _speed(nbytes_moved: float, time_ms: float) -> str:
    return f" at {_rate(nbytes_moved / time_ms / 1e6)}"


def _rate(gb_per_s: float) -> str:
    if gb_per_s < SLOW_GB_PER_S:
        return f"{1e3 * gb_per_s:.3g} MB/s"
    return f"{rate_text(gb_per_s, 2)} GB/s"


def describe_part(evidence: Evidence) -> str:
    """Name the largest part of the chunks, and the time of one chunk in it."""
    assert evidence.chunks is not None
    largest = evidence.chunks.largest
    fixed_us = evidence.chunks.fixed_us
    share = f"{largest.name} is {100 * largest.share:.0f} % of the chunks' own time"
    if evidence.stream.overlapped and evidence.falls_behind:
        return f"{describe_rates(evidence)}; {share}"
    words = f"{_lost_text(evidence)}; {share}"
    # Beside the model only the last chunk of a request is waited for: one of a token.
    in_prompt = (
        largest.in_prompt and not evidence.stream.overlapped and not evidence.chunks.mostly_fixed
    )
    chunk = evidence.chunks.single_chunk(in_prompt)
    if chunk is None:
        return words
    us, size = chunk
    words += f", {ms_text(us / 1e3)} ms per {nbytes_text(size)}"
    if evidence.chunks.mostly_fixed:
        return f"{words}, of it {ms_text((fixed_us or 0.0) / 1e3)} ms whatever the size"
    return f"{words} ({_rate(size / us / 1e3)})"


def describe_extents(evidence: Evidence) -> str:
    """Write the time lost and the number of extents, with the time of one if it is known."""
    count = evidence.stream.copies
    extent_us = evidence.stream.naive_us
    statistic = "each, by a probe"
    if evidence.chunks is not None:
        count = evidence.chunks.extents
        extent_us = evidence.chunks.extent_us
        # A few slow extents can take most of the wait: the product is then less than the wait.
        statistic = "each in the median chunk"
    text = f" at {extent_us:.3g} µs {statistic}" if extent_us is not None else ""
    packed = ""
    if extent_us is None and evidence.cost.packed is not None:
        packed = f", and the same bytes packed cost {ms_text(evidence.cost.packed)} ms"
    return f"{_lost_text(evidence)}; {format_count(round(count))} extents{text}{packed}"


def _phases(evidence: Evidence) -> str:
    texts = [
        f"{phase} {signed_percent(percent)} %"
        for phase, percent in (
            ("prompt", evidence.cost.prompt_pct),
            ("tokens", evidence.cost.tokens_pct),
        )
        if percent is not None
    ]
    # The table of parts divides by TOTAL; its percentages are smaller.
    return f" ({', '.join(texts)} of that phase)" if texts else ""


def _slower(evidence: Evidence) -> str:
    slowed = _part_of_cost(evidence, evidence.cost.slowed)
    return f"{slowed} are the model itself running slower{_phases(evidence)}"


def describe_sending(evidence: Evidence) -> str:
    """Write the slower phase, and which kernels send chunks beside the model."""
    return f"{_slower(evidence)} while kernels send chunks ({evidence.stream.sending_kernels})"


def describe_gathering(evidence: Evidence) -> str:
    """Write the slower phase beside the kernel that gathers."""
    return f"{_slower(evidence)} while a kernel gathers chunks"


def describe_polling_sink(evidence: Evidence) -> str:
    """Write the CPU time that the sink took beside the model, beside the slower phase."""
    return _describe_polling(evidence, "sink", evidence.machine.sink)


def describe_polling_helper(evidence: Evidence) -> str:
    """Write the CPU time that the helper took beside the model, beside the slower phase."""
    return _describe_polling(evidence, "helper", evidence.machine.helper)


def _describe_polling(evidence: Evidence, name: str, side: MovingSide | None) -> str:
    assert side is not None
    cores = evidence.machine.cores or 0
    return (
        f"{_slower(evidence)}; the {name} took {ms_text(side.cpu_ms)} ms of CPU time per request, "
        f"of which its bytes need {ms_text(side.needed_ms)} at most; the model alone takes "
        f"{evidence.machine.model_cores:.2f} of {cores} core{'s' * (cores != 1)}"
    )


def describe_programs(evidence: Evidence) -> str:
    """Write the cores that other programs and this job took, beside the slower phase."""
    machine = evidence.machine
    busy_cores = machine.busy_cores or 0.0
    words = (
        f"{_slower(evidence)}; other processes took {machine.other_cores:.2f} and this job "
        f"{busy_cores:.2f} of {machine.cores} cores"
    )
    if machine.other_ms is not None and machine.other_ms > 0:
        more_ms = ms_text(machine.other_ms)
        words += f", {more_ms} ms of CPU time per iteration more than without streaming"
    return words


def describe_wait(evidence: Evidence) -> str:
    """Write the shares of time that threads waited for a core, with streaming and without."""
    return (
        f"{_slower(evidence)}; some thread waited for a core {evidence.machine.waited_pct:.1f} % "
        f"of the time, without streaming {evidence.machine.waited_without_pct:.1f} %"
    )


def describe_copies(evidence: Evidence) -> str:
    """Write the least time of the stream's copies in the memory that the tokens read."""
    return (
        f"{_slower(evidence)}; the stream's copies take at least {ms_text(evidence.copies_ms)} ms "
        f"of a memory that tokens read at {evidence.machine.read_pct:.0f} % of its rate"
    )


def describe_parts(evidence: Evidence) -> str:
    """Say in which part of the request a cost of unknown cause lies."""
    if evidence.cost.mostly_waiting:
        if evidence.chunks is not None:
            return describe_part(evidence)
        return f"{_lost_text(evidence)}; the records have no times of chunks"
    lost = ""
    if evidence.cost.lost >= (1 - NEARLY_ALL) * evidence.cost.total:
        lost = f"; {ms_text(evidence.cost.waiting)} are {_kind_of_wait(evidence)}"
    return f"{_slower(evidence)}{lost}"
