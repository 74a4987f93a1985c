"""Rules that name what limits an arm: condition, the two numbers that say so, what to try.

The first rule whose condition holds is the answer. Every condition needs measured facts; if none
holds, the limit is not known. docs/method/answers.md gives the reason for each rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dejavubench.analysis.answers.limits.evidence import Evidence, PartKind
from dejavubench.analysis.answers.limits.evidence_texts import (
    describe_copies,
    describe_cpu_wait,
    describe_extents,
    describe_gathering,
    describe_part,
    describe_parts,
    describe_polling_helper,
    describe_polling_sink,
    describe_programs,
    describe_rates,
    describe_sending,
    is_only_drain,
)
from dejavubench.analysis.answers.limits.rule_conditions import (
    arithmetic_suffers,
    is_extent_bound,
    is_memory_bound,
    is_rate_bound,
    is_short_of_cores,
    is_slowed_by_programs,
    longest_part_is,
    longest_part_scales,
    side_polls,
)


@dataclass(frozen=True)
class Limit:
    """Answer to what limits an arm.

    Attributes:
        name: such as ``link rate``.
        evidence_text: the two measured numbers that say so.
        remedy: what to try; empty where nothing is to be done.
    """

    name: str
    evidence_text: str
    remedy: str


@dataclass(frozen=True)
class Rule:
    """A limit that can be told from evidence.

    Attributes:
        holds: condition over the evidence.
        describe_evidence: writes the two numbers of the evidence that say so.
    """

    name: str
    holds: Callable[[Evidence], bool]
    describe_evidence: Callable[[Evidence], str]
    remedy: str


NOT_LOOKED_FOR = "not looked for"
"""Name of the limit of an arm without a shown cost: there is nothing to explain."""

NOT_KNOWN = "not known"
"""Name of the limit of a cost that no rule explains."""


# ---- the rules ----

FASTER_LINK = "a faster link or destination, or fewer bytes (a smaller data type)"
"""Advice for a cost that the bytes themselves take on a link."""

FASTER_DISK = "a faster disk, or --durability page-cache if a power cut may lose data"
"""Advice for a cost of the disk: the page cache completes a chunk before the disk has it."""

LARGER_CHUNKS = "fewer, larger chunks (--flush-interval 4)"
"""Advice for a time that each chunk pays, whatever its size."""

LONGER_EXTENTS = "a layout with longer extents (--kv-layout nhd)"
"""Advice for a time that each extent pays: ``nhd`` has the fewest extents in a chunk of steps."""

OVERLAP = "--level 3, which streams beside the model"
"""Advice for every arm whose model stands still until its chunks have left."""

LONGER_REQUESTS = "longer requests, which pay the drain once"
"""Advice for a stream that keeps up with the model, and whose cost is the end of the request."""

WIRE_KINDS = (PartKind.WIRE, PartKind.COPY)
"""Kinds of parts that a link bounds. The bus to the host is the link of a copy from a GPU."""

DISK_KINDS = (PartKind.DISK,)
"""Kind of part that a disk bounds."""

RULES: tuple[Rule, ...] = (
    Rule(
        "disk rate",
        lambda evidence: evidence.stream.on_storage and is_rate_bound(evidence),
        describe_rates,
        FASTER_DISK,
    ),
    Rule(
        "memory bandwidth",
        lambda evidence: (
            evidence.stream.is_local and not evidence.stream.on_gpu and is_rate_bound(evidence)
        ),
        describe_rates,
        "fewer bytes (a smaller data type)",
    ),
    Rule("link rate", is_rate_bound, describe_rates, FASTER_LINK),
    Rule(
        "descriptors/extents",
        is_extent_bound,
        describe_extents,
        f"--level 1 or above, which packs them; {LONGER_EXTENTS}",
    ),
    Rule(
        "disk rate",
        longest_part_scales(DISK_KINDS, is_mostly_fixed=False),
        describe_part,
        FASTER_DISK,
    ),
    Rule(
        "disk latency",
        longest_part_scales(DISK_KINDS, is_mostly_fixed=True),
        describe_part,
        f"{LARGER_CHUNKS}; {FASTER_DISK}",
    ),
    Rule(
        "disk, rate or latency",
        longest_part_scales(DISK_KINDS, is_mostly_fixed=None),
        describe_part,
        FASTER_DISK,
    ),
    Rule(
        "link rate",
        longest_part_scales(WIRE_KINDS, is_mostly_fixed=False),
        describe_part,
        FASTER_LINK,
    ),
    Rule(
        "link latency",
        longest_part_scales(WIRE_KINDS, is_mostly_fixed=True),
        describe_part,
        f"{LARGER_CHUNKS}; a core of its own for the sink",
    ),
    Rule(
        "link, rate or latency",
        longest_part_scales(WIRE_KINDS, is_mostly_fixed=None),
        describe_part,
        FASTER_LINK,
    ),
    Rule("gather", longest_part_is(PartKind.GATHER), describe_part, LONGER_EXTENTS),
    Rule("descriptors/extents", longest_part_is(PartKind.POST), describe_part, LARGER_CHUNKS),
    Rule(
        "sink",
        longest_part_is(PartKind.SINK),
        describe_part,
        f"a core of its own for the sink; {LONGER_EXTENTS}",
    ),
    Rule(
        "GPU SMs",
        lambda evidence: (
            evidence.stream.sending_kernels is not None and arithmetic_suffers(evidence)
        ),
        describe_sending,
        "a destination that copy engines serve, such as host",
    ),
    Rule(
        "GPU SMs",
        lambda evidence: evidence.stream.has_gathering_kernel and arithmetic_suffers(evidence),
        describe_gathering,
        f"{LONGER_EXTENTS}, which copy engines can gather",
    ),
    Rule(
        "polling",
        side_polls(lambda machine: machine.sink),
        describe_polling_sink,
        "a sink that sleeps while it waits, or a core of its own for it (fewer --threads)",
    ),
    Rule(
        "polling",
        side_polls(lambda machine: machine.helper),
        describe_polling_helper,
        "a helper that sleeps while it waits, or a core of its own for it (fewer --threads)",
    ),
    Rule(
        "shared cores",
        is_slowed_by_programs,
        describe_programs,
        "ending the other programs, or more cores",
    ),
    Rule(
        "shared cores",
        is_short_of_cores,
        describe_cpu_wait,
        "cores of their own for the helper and the sink",
    ),
    Rule(
        "memory bandwidth",
        is_memory_bound,
        describe_copies,
        "a sink on another host, or fewer bytes (a smaller data type)",
    ),
)
"""In order: the first that holds is the answer. Rates come first, because chunks that wait for a
slow link look slow in each part."""


def find_limit(evidence: Evidence) -> Limit:
    """Return the limit of an arm with a shown cost; it may be not known."""
    for rule in RULES:
        if rule.holds(evidence):
            return Limit(
                rule.name, rule.describe_evidence(evidence), _choose_remedy(rule, evidence)
            )
    return Limit(NOT_KNOWN, describe_parts(evidence), "")


def _choose_remedy(rule: Rule, evidence: Evidence) -> str:
    """Return the remedy of a rule, after what the arm's level makes possible."""
    # Packing comes before overlapping: its rule names the levels that pack.
    if not evidence.stream.is_overlapped and rule.describe_evidence is not describe_extents:
        return f"{OVERLAP}; {rule.remedy}"
    is_drain_bound = evidence.cost.is_mostly_stalled and is_only_drain(evidence)
    if evidence.stream.is_overlapped and is_drain_bound and not evidence.falls_behind:
        return f"{LONGER_REQUESTS}; {rule.remedy}"
    return rule.remedy
