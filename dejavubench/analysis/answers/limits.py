"""Rules that name what limits an arm: condition, the two numbers that say so, what to try.

The first rule whose condition holds is the answer. Every condition needs measured facts; if none
holds, the limit is not known. docs/method/answers.md gives the reason for each rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dejavubench.analysis.answers.evidence import (
    MOST,
    Evidence,
    MachineFacts,
    MovingSide,
    PartKind,
)
from dejavubench.analysis.answers.limit_numbers import (
    describe_copies,
    describe_extents,
    describe_gathering,
    describe_part,
    describe_parts,
    describe_polling_helper,
    describe_polling_sink,
    describe_programs,
    describe_rates,
    describe_sending,
    describe_wait,
    only_drain,
)

WAITED_PCT = 2.0
"""Rise of the time in which some thread waits for a core, in percent of the time, that counts."""

OTHERS_CORES = 0.2
"""Cores of other processes that count; a round is marked as disturbed from there on."""

POLLING_CORES = 0.25
"""Cores that a side takes beyond its work from which it counts as polling. One that sleeps between
two looks takes an eighth of a core at most."""

FULL_SHARE = 0.9
"""Share of the cores from which programs take them from each other."""

READS_PCT = 70.0
"""Share of the memory's read rate from which a model's tokens are bound by memory."""

PROMPT_OVER_TOKENS = 3.0
"""Ratio of the slow-downs of prompt and tokens that points at the GPU's multiprocessors: a prompt
is bound by arithmetic, a token by memory."""


@dataclass(frozen=True)
class Limit:
    """Answer to what limits an arm.

    Attributes:
        name: such as ``link rate``.
        numbers: the two measured numbers that say so.
        remedy: what to try; empty where nothing is to be done.
    """

    name: str
    numbers: str
    remedy: str


@dataclass(frozen=True)
class Rule:
    """A limit that can be told from evidence.

    Attributes:
        holds: condition over the evidence.
        numbers: writes the two numbers of the evidence that say so.
    """

    name: str
    holds: Callable[[Evidence], bool]
    numbers: Callable[[Evidence], str]
    remedy: str


NOT_LOOKED_FOR = "not looked for"
NOT_KNOWN = "not known"
"""Names of the limit where no cost is shown, and where no rule applies."""


# ---- conditions ----


def _is_rate_bound(evidence: Evidence) -> bool:
    """Return whether the bytes take most of the time at the rate of link, disk or memory."""
    least_ms = evidence.stream.least_ms
    # Without a ceiling the stream alone may be slow for any reason: its chunks say which.
    if least_ms is None or (
        evidence.stream.ceiling_gb_per_s is None and evidence.chunks is not None
    ):
        return False
    if evidence.stream.overlapped:
        # Beside the model, bytes cost nothing until the stream takes as long as the request.
        return evidence.falls_behind and least_ms >= MOST * evidence.cost.request
    fixed = evidence.chunks is not None and evidence.chunks.mostly_fixed is True
    return evidence.cost.mostly_waiting and least_ms >= MOST * evidence.cost.waiting and not fixed


def _largest_part_is(*kinds: PartKind) -> Callable[[Evidence], bool]:
    """Return a condition: the model waits, and such a part is the longest of its chunks."""
    return lambda evidence: (
        evidence.cost.mostly_waiting
        and evidence.chunks is not None
        and evidence.chunks.largest.kind in kinds
    )


def _largest_part_scales(
    kinds: tuple[PartKind, ...], fixed: bool | None
) -> Callable[[Evidence], bool]:
    """Return a condition: the same, and the part takes longer for more bytes, or does not."""
    largest = _largest_part_is(*kinds)
    return lambda evidence: (
        largest(evidence) and evidence.chunks is not None and evidence.chunks.mostly_fixed is fixed
    )


def _is_extent_bound(evidence: Evidence) -> bool:
    """Return whether moving extents one by one takes most of the wait."""
    if not (evidence.stream.naive and evidence.cost.mostly_waiting):
        return False
    if evidence.chunks is not None:
        return evidence.chunks.largest.kind is PartKind.MOVE
    if evidence.cost.packed is not None and evidence.cost.packed <= MOST * evidence.cost.total:
        return True
    copy_us = evidence.stream.naive_us
    if copy_us is None:
        return False
    return evidence.stream.copies * copy_us / 1e3 >= MOST * evidence.cost.waiting


def _arithmetic_suffers(evidence: Evidence) -> bool:
    """Return whether a GPU's model slows most in the phase that arithmetic bounds."""
    prompt_pct = evidence.cost.prompt_pct
    tokens_pct = evidence.cost.tokens_pct or 0.0
    if not (evidence.stream.on_gpu and evidence.cost.mostly_slowed) or prompt_pct is None:
        return False
    return prompt_pct > 0 and prompt_pct >= PROMPT_OVER_TOKENS * max(0.0, tokens_pct)


def _polls(side_of: Callable[[MachineFacts], MovingSide | None]) -> Callable[[Evidence], bool]:
    """Return a condition: the model runs slower, as a side takes its cores only to look for bytes.

    It took as much CPU time beyond its work as the model has lost, or half of that. The cores that
    it took and those that the model needs are more than there are.
    """

    def holds(evidence: Evidence) -> bool:
        machine, side = evidence.machine, side_of(evidence.machine)
        if side is None or machine.model_cores is None or not machine.cores:
            return False
        if evidence.stream.on_gpu or not evidence.cost.mostly_slowed:
            return False
        polling_cores = side.polled_ms / (evidence.cost.request + evidence.cost.total)
        if polling_cores < POLLING_CORES or machine.model_cores + polling_cores <= machine.cores:
            return False
        return side.polled_ms >= MOST * evidence.cost.slowed

    return holds


def _is_slowed_by_programs(evidence: Evidence) -> bool:
    """Return whether other programs took nearly all cores, or as much CPU time as was lost."""
    machine = evidence.machine
    if (
        machine.other_cores is None
        or not machine.cores
        or evidence.stream.on_gpu
        or not evidence.cost.mostly_slowed
    ):
        return False
    busy_cores = machine.other_cores + (machine.busy_cores or 0.0)
    # A program that shares the model's core alone leaves other cores idle.
    added = machine.other_ms is not None and machine.other_ms >= MOST * evidence.cost.slowed
    return machine.other_cores >= OTHERS_CORES and (
        added or busy_cores >= FULL_SHARE * machine.cores
    )


def _waits_for_cores(evidence: Evidence) -> bool:
    """Return whether threads wait for a core that do not without streaming."""
    waited_pct = evidence.machine.waited_pct
    baseline_pct = evidence.machine.waited_without_pct
    if (
        waited_pct is None
        or baseline_pct is None
        or evidence.stream.on_gpu
        or not evidence.cost.mostly_slowed
    ):
        return False
    return waited_pct - baseline_pct >= WAITED_PCT


def _is_memory_bound(evidence: Evidence) -> bool:
    """Return whether memory bounds tokens and the stream's copies could explain the whole cost."""
    read_pct = evidence.machine.read_pct
    reads_fast = read_pct is not None and read_pct >= READS_PCT
    if (
        evidence.copies_ms is None
        or not reads_fast
        or evidence.stream.on_gpu
        or not evidence.cost.mostly_slowed
    ):
        return False
    return evidence.copies_ms >= evidence.cost.slowed


# ---- the rules ----

FASTER_LINK = "a faster link or destination, or fewer bytes (a smaller data type)"
FASTER_DISK = "a faster disk, or --durability page-cache if a power cut may lose data"
LARGER_CHUNKS = "fewer, larger chunks (--flush-interval 4)"
LONGER_EXTENTS = "a layout with longer extents (--kv-layout nhd)"
OVERLAP = "--level 3, which streams beside the model"
LONGER_REQUESTS = "longer requests, which pay the drain once"
"""Advice of the rules: what to change so that the limit moves."""

WIRE = (PartKind.WIRE, PartKind.COPY)
DISK = (PartKind.DISK,)
"""Kinds of parts that the link, and the disk, bound."""

RULES: tuple[Rule, ...] = (
    Rule(
        "disk rate",
        lambda evidence: evidence.stream.on_storage and _is_rate_bound(evidence),
        describe_rates,
        FASTER_DISK,
    ),
    Rule(
        "memory bandwidth",
        lambda evidence: (
            evidence.stream.local and not evidence.stream.on_gpu and _is_rate_bound(evidence)
        ),
        describe_rates,
        "fewer bytes (a smaller data type)",
    ),
    Rule("link rate", _is_rate_bound, describe_rates, FASTER_LINK),
    Rule(
        "descriptors/extents",
        _is_extent_bound,
        describe_extents,
        f"--level 1 or above, which packs them; {LONGER_EXTENTS}",
    ),
    Rule("disk rate", _largest_part_scales(DISK, fixed=False), describe_part, FASTER_DISK),
    Rule(
        "disk latency",
        _largest_part_scales(DISK, fixed=True),
        describe_part,
        f"{LARGER_CHUNKS}; {FASTER_DISK}",
    ),
    Rule(
        "disk, rate or latency", _largest_part_scales(DISK, fixed=None), describe_part, FASTER_DISK
    ),
    Rule("link rate", _largest_part_scales(WIRE, fixed=False), describe_part, FASTER_LINK),
    Rule(
        "link latency",
        _largest_part_scales(WIRE, fixed=True),
        describe_part,
        f"{LARGER_CHUNKS}; a core of its own for the sink",
    ),
    Rule(
        "link, rate or latency", _largest_part_scales(WIRE, fixed=None), describe_part, FASTER_LINK
    ),
    Rule("gather", _largest_part_is(PartKind.GATHER), describe_part, LONGER_EXTENTS),
    Rule("descriptors/extents", _largest_part_is(PartKind.POST), describe_part, LARGER_CHUNKS),
    Rule(
        "sink",
        _largest_part_is(PartKind.SINK),
        describe_part,
        f"a core of its own for the sink; {LONGER_EXTENTS}",
    ),
    Rule(
        "GPU SMs",
        lambda evidence: (
            evidence.stream.sending_kernels is not None and _arithmetic_suffers(evidence)
        ),
        describe_sending,
        "a destination that copy engines serve, such as host",
    ),
    Rule(
        "GPU SMs",
        lambda evidence: evidence.stream.gathering_kernel and _arithmetic_suffers(evidence),
        describe_gathering,
        f"{LONGER_EXTENTS}, which copy engines can gather",
    ),
    Rule(
        "polling",
        _polls(lambda machine: machine.sink),
        describe_polling_sink,
        "a sink that sleeps while it waits, or a core of its own for it (fewer --threads)",
    ),
    Rule(
        "polling",
        _polls(lambda machine: machine.helper),
        describe_polling_helper,
        "a helper that sleeps while it waits, or a core of its own for it (fewer --threads)",
    ),
    Rule(
        "shared cores",
        _is_slowed_by_programs,
        describe_programs,
        "ending the other programs, or more cores",
    ),
    Rule(
        "shared cores",
        _waits_for_cores,
        describe_wait,
        "cores of their own for the helper and the sink",
    ),
    Rule(
        "memory bandwidth",
        _is_memory_bound,
        describe_copies,
        "a sink on another host, or fewer bytes (a smaller data type)",
    ),
)
"""In order: the first that holds is the answer. Rates come first, because chunks that wait for a
slow link look slow in each part."""


def limit_of(evidence: Evidence) -> Limit:
    """Return the limit of an arm with a shown cost; it may be not known."""
    for rule in RULES:
        if rule.holds(evidence):
            return Limit(rule.name, rule.numbers(evidence), _remedy(rule, evidence))
    return Limit(NOT_KNOWN, describe_parts(evidence), "")


def _remedy(rule: Rule, evidence: Evidence) -> str:
    """Return the remedy of a rule, after what the arm's level makes possible."""
    # Packing comes before overlapping: its rule names the levels that pack.
    if not evidence.stream.overlapped and rule.numbers is not describe_extents:
        return f"{OVERLAP}; {rule.remedy}"
    drained = evidence.cost.mostly_waiting and only_drain(evidence)
    if evidence.stream.overlapped and drained and not evidence.falls_behind:
        return f"{LONGER_REQUESTS}; {rule.remedy}"
    return rule.remedy
