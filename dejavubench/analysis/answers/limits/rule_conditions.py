"""Conditions of the rules that name what limits an arm. Each needs measured facts.

docs/method/answers.md gives the reason for each bound.
"""

from __future__ import annotations

from collections.abc import Callable

from dejavubench.analysis.answers.limits.evidence import (
    MAJORITY,
    Evidence,
    MachineFacts,
    MovingSide,
    PartKind,
)
from dejavubench.analysis.facts.host_rounds import MOST_OTHER_CORES

CPU_WAIT_RISE_PCT = 2.0
"""Least rise of the time in which some thread waits for a core, in percent of all time. A smaller
one could slow the model by 2 % at most."""

POLLING_CORE_COUNT = 0.25
"""Cores that a side takes beyond its work from which it counts as polling. One that sleeps between
two looks takes an eighth of a core at most."""

FULL_SHARE = 0.9
"""Share of the granted cores from which programs take them from each other. Below it, a thread
that wakes up finds an idle core."""

MEMORY_BOUND_PCT = 70.0
"""Percent of the probe's read rate from which a model's tokens are bound by memory. Below it, the
copies find a rate that the model leaves."""

PROMPT_OVER_TOKENS = 3.0
"""Ratio of the slow-downs of prompt and tokens that points at the GPU's multiprocessors: a prompt
is bound by arithmetic, a token by memory."""


def is_rate_bound(evidence: Evidence) -> bool:
    """Return whether the bytes take most of the time at the rate of link, disk or memory."""
    least_ms = evidence.stream.least_ms
    # Without a ceiling the stream alone may be slow for any reason: its chunks say which.
    if least_ms is None or (
        evidence.stream.ceiling_gb_per_s is None and evidence.chunks is not None
    ):
        return False
    if evidence.stream.is_overlapped:
        # Beside the model, bytes cost nothing until the stream takes as long as the request.
        return evidence.falls_behind and least_ms >= MAJORITY * evidence.cost.request_ms
    is_mostly_fixed = evidence.chunks is not None and evidence.chunks.is_mostly_fixed is True
    return (
        evidence.cost.is_mostly_stalled
        and least_ms >= MAJORITY * evidence.cost.stalled_cost_ms
        and not is_mostly_fixed
    )


def longest_part_is(*kinds: PartKind) -> Callable[[Evidence], bool]:
    """Return a condition: the model stalls, and such a part is the longest of its chunks."""
    return lambda evidence: (
        evidence.cost.is_mostly_stalled
        and evidence.chunks is not None
        and evidence.chunks.longest_part.kind in kinds
    )


def longest_part_scales(
    kinds: tuple[PartKind, ...], is_mostly_fixed: bool | None
) -> Callable[[Evidence], bool]:
    """Return a condition: such a part is the longest, and its time is mostly fixed, or is not."""
    is_longest = longest_part_is(*kinds)
    return lambda evidence: (
        is_longest(evidence)
        and evidence.chunks is not None
        and evidence.chunks.is_mostly_fixed is is_mostly_fixed
    )


def is_extent_bound(evidence: Evidence) -> bool:
    """Return whether moving extents one by one takes most of the stall."""
    if not (evidence.stream.is_naive and evidence.cost.is_mostly_stalled):
        return False
    if evidence.chunks is not None:
        return evidence.chunks.longest_part.kind is PartKind.MOVE
    if (
        evidence.cost.packed_ms is not None
        and evidence.cost.packed_ms <= MAJORITY * evidence.cost.total_ms
    ):
        return True
    copy_us = evidence.stream.naive_us
    if copy_us is None:
        return False
    return evidence.stream.copy_count * copy_us / 1e3 >= MAJORITY * evidence.cost.stalled_cost_ms


def arithmetic_suffers(evidence: Evidence) -> bool:
    """Return whether a GPU's model slows most in the phase that arithmetic bounds."""
    prompt_pct = evidence.cost.prompt_pct
    tokens_pct = evidence.cost.tokens_pct or 0.0
    if not (evidence.stream.on_gpu and evidence.cost.is_mostly_rest) or prompt_pct is None:
        return False
    return prompt_pct > 0 and prompt_pct >= PROMPT_OVER_TOKENS * max(0.0, tokens_pct)


def side_polls(
    read_side: Callable[[MachineFacts], MovingSide | None],
) -> Callable[[Evidence], bool]:
    """Return a condition: the model runs slower, as a side takes its cores only to look for bytes.

    It took as much CPU time beyond its work as the rest of the cost, or half of that. The cores
    that it took and those that the model needs are more than there are.
    """

    def holds(evidence: Evidence) -> bool:
        machine = evidence.machine
        side = read_side(machine)
        if side is None or machine.model_core_count is None or not machine.core_count:
            return False
        if evidence.stream.on_gpu or not evidence.cost.is_mostly_rest:
            return False
        polling_core_count = side.polled_ms / (evidence.cost.request_ms + evidence.cost.total_ms)
        if (
            polling_core_count < POLLING_CORE_COUNT
            or machine.model_core_count + polling_core_count <= machine.core_count
        ):
            return False
        return side.polled_ms >= MAJORITY * evidence.cost.rest_ms

    return holds


def is_slowed_by_programs(evidence: Evidence) -> bool:
    """Return whether other programs took nearly all cores, or most of the rest as CPU time."""
    machine = evidence.machine
    if (
        machine.other_core_count is None
        or not machine.core_count
        or evidence.stream.on_gpu
        or not evidence.cost.is_mostly_rest
    ):
        return False
    busy_core_count = machine.other_core_count + (machine.busy_core_count or 0.0)
    # A program that shares the model's core alone leaves other cores idle.
    has_taken_rest = (
        machine.other_ms is not None and machine.other_ms >= MAJORITY * evidence.cost.rest_ms
    )
    # Less would mark no round as disturbed, so a reader would look for the programs in vain.
    return machine.other_core_count >= MOST_OTHER_CORES and (
        has_taken_rest or busy_core_count >= FULL_SHARE * machine.core_count
    )


def is_short_of_cores(evidence: Evidence) -> bool:
    """Return whether threads wait for a core that do not without streaming."""
    cpu_wait_pct = evidence.machine.cpu_wait_pct
    baseline_pct = evidence.machine.baseline_cpu_wait_pct
    if (
        cpu_wait_pct is None
        or baseline_pct is None
        or evidence.stream.on_gpu
        or not evidence.cost.is_mostly_rest
    ):
        return False
    return cpu_wait_pct - baseline_pct >= CPU_WAIT_RISE_PCT


def is_memory_bound(evidence: Evidence) -> bool:
    """Return whether memory bounds tokens and the stream's copies could explain the whole cost."""
    read_pct = evidence.machine.read_pct
    reads_at_memory_rate = read_pct is not None and read_pct >= MEMORY_BOUND_PCT
    if (
        evidence.copies_ms is None
        or not reads_at_memory_rate
        or evidence.stream.on_gpu
        or not evidence.cost.is_mostly_rest
    ):
        return False
    return evidence.copies_ms >= evidence.cost.rest_ms
