"""The two measured numbers that say what limits an arm, as text."""

from __future__ import annotations

from dejavubench.analysis.answers.evidence import Evidence
from dejavubench.analysis.number_texts import format_count, ms, nbytes, rate, signed_percent

SLOW_GB_PER_S = 0.1
"""Rates below it are written in MB/s."""

NEARLY_ALL = 0.9
"""Share of a wait from which it is called by one name: wait, or drain."""


def only_drain(e: Evidence) -> bool:
    """Whether nearly all of the model's wait is the one at the end."""
    return e.cost.drain >= NEARLY_ALL * e.cost.lost


def _lost_text(e: Evidence) -> str:
    return f"{_part_of_cost(e, e.cost.waiting)} are {_kind_of_wait(e)}"


def _kind_of_wait(e: Evidence) -> str:
    if only_drain(e):
        return "drain"
    return "wait" if e.cost.drain <= (1 - NEARLY_ALL) * e.cost.lost else "wait and drain"


def _part_of_cost(e: Evidence, part_ms: float) -> str:
    return f"of {ms(e.cost.total)} ms of cost, {ms(part_ms)}"


def rates(e: Evidence) -> str:
    stream = e.stream
    if stream.overlapped and stream.alone_ms is not None:
        text = _speed(stream.nbytes, stream.alone_ms)
        bound = ""
        if stream.ceiling and stream.ceiling_gb_per_s:
            bound = f" ({stream.ceiling}: {_rate(stream.ceiling_gb_per_s)})"
        took = f"the stream alone takes {ms(stream.alone_ms)} ms{text}{bound}"
        return f"{took}, a request {ms(e.cost.request)} ms"
    least = stream.least_ms or 0.0
    text = _speed(stream.nbytes, least) + (f" of {stream.ceiling}" if stream.ceiling else " alone")
    return f"{_lost_text(e)}; the bytes take {ms(least)} ms{text}"


def _speed(size: float, time: float) -> str:
    return f" at {_rate(size / time / 1e6)}"


def _rate(gb_per_s: float) -> str:
    if gb_per_s < SLOW_GB_PER_S:
        return f"{1e3 * gb_per_s:.3g} MB/s"
    return f"{rate(gb_per_s, 2)} GB/s"


def part(e: Evidence) -> str:
    """Name the largest part of the chunks, and the time of one chunk in it."""
    assert e.chunks is not None
    largest, fixed = e.chunks.largest, e.chunks.fixed_us
    share = f"{largest.name} is {100 * largest.share:.0f} % of the chunks' own time"
    if e.stream.overlapped and e.behind:
        return f"{rates(e)}; {share}"
    words = f"{_lost_text(e)}; {share}"
    # Beside the model only the last chunk of a request is waited for: one of a token.
    in_prompt = largest.in_prompt and not e.stream.overlapped and not e.chunks.mostly_fixed
    each = e.chunks.each(in_prompt)
    if each is None:
        return words
    us, size = each
    words += f", {ms(us / 1e3)} ms per {nbytes(size)}"
    if e.chunks.mostly_fixed:
        return f"{words}, of it {ms((fixed or 0.0) / 1e3)} ms whatever the size"
    return f"{words} ({_rate(size / us / 1e3)})"


def extents(e: Evidence) -> str:
    count, each = e.stream.copies, e.stream.naive_us
    if e.chunks is not None:
        count, each = e.chunks.extents, e.chunks.extent_us
    text = f" at {each:.3g} µs each" if each is not None else ""
    packed = ""
    if each is None and e.cost.packed is not None:
        packed = f", and the same bytes packed cost {ms(e.cost.packed)} ms"
    return f"{_lost_text(e)}; {format_count(round(count))} extents{text}{packed}"


def _phases(e: Evidence) -> str:
    texts = [
        f"{phase} {signed_percent(percent)} %"
        for phase, percent in (("prompt", e.cost.prompt_pct), ("tokens", e.cost.tokens_pct))
        if percent is not None
    ]
    # The table of parts divides by TOTAL; its percentages are smaller.
    return f" ({', '.join(texts)} of that phase)" if texts else ""


def _slower(e: Evidence) -> str:
    return f"{_part_of_cost(e, e.cost.slowed)} are the model itself running slower{_phases(e)}"


def sending(e: Evidence) -> str:
    return f"{_slower(e)} while kernels send chunks ({e.stream.sending_kernels})"


def gathering(e: Evidence) -> str:
    return f"{_slower(e)} while a kernel gathers chunks"


def other_programs(e: Evidence) -> str:
    busy, machine = e.machine.busy_cores or 0.0, e.machine
    words = (
        f"{_slower(e)}; other processes took {machine.other_cores:.2f} and this job {busy:.2f} of "
        f"{machine.cores} cores"
    )
    if machine.other_ms is not None and machine.other_ms > 0:
        words += (
            f", {ms(machine.other_ms)} ms of CPU time per iteration more than without streaming"
        )
    return words


def describe_wait(e: Evidence) -> str:
    return (
        f"{_slower(e)}; some thread waited for a core {e.machine.waited_pct:.1f} % of the time, "
        f"without streaming {e.machine.waited_without_pct:.1f} %"
    )


def copies(e: Evidence) -> str:
    return (
        f"{_slower(e)}; the stream's copies take at least {ms(e.copies_ms)} ms of a memory that "
        f"tokens read at {e.machine.read_pct:.0f} % of its rate"
    )


def whereabouts(e: Evidence) -> str:
    """Say in which part of the request a cost of unknown cause lies."""
    if e.cost.mostly_waiting:
        if e.chunks is not None:
            return part(e)
        return f"{_lost_text(e)}; the records have no times of chunks"
    lost = ""
    if e.cost.lost >= (1 - NEARLY_ALL) * e.cost.total:
        lost = f"; {ms(e.cost.waiting)} are {_kind_of_wait(e)}"
    return f"{_slower(e)}{lost}"
