"""Rules that name what limits an arm: condition, the two numbers that say so, what to try.

The first rule whose condition holds is the answer. Every condition needs measured facts; if none
holds, the limit is not known. docs/method/answers.md gives the reason for each rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dejavubench.analysis.answers import limit_numbers as numbers
from dejavubench.analysis.answers.evidence import MOST, Evidence, PartKind

WAITED_PCT = 2.0
"""Rise of the time in which some thread waits for a core, in percent of the time, that counts."""

OTHERS_CORES = 0.2
"""Cores of other processes that count; a round is marked as disturbed from there on."""

BUSY = 0.9
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


NOTHING = "nothing measurable"
NOT_KNOWN = "not known"


# ---- conditions ----


def _rate_bound(e: Evidence) -> bool:
    """The bytes take most of the time at the rate of the link, of the disk, or of memory."""
    least = e.stream.least_ms
    # Without a ceiling the stream alone may be slow for any reason: its chunks say which.
    if least is None or (e.stream.ceiling_gb_per_s is None and e.chunks is not None):
        return False
    if e.stream.overlapped:
        # Beside the model, bytes cost nothing until the stream takes as long as the request.
        return e.behind and least >= MOST * e.cost.request
    fixed = e.chunks is not None and e.chunks.mostly_fixed is True
    return e.cost.mostly_waiting and least >= MOST * e.cost.waiting and not fixed


def _largest(*kinds: PartKind) -> Callable[[Evidence], bool]:
    """Return a condition: the model waits, and such a part is the longest of its chunks."""
    return lambda e: (
        e.cost.mostly_waiting and e.chunks is not None and e.chunks.largest.kind in kinds
    )


def _by(kinds: tuple[PartKind, ...], fixed: bool | None) -> Callable[[Evidence], bool]:
    """Return a condition: the same, and the part takes longer for more bytes, or does not."""
    largest = _largest(*kinds)
    return lambda e: largest(e) and e.chunks is not None and e.chunks.mostly_fixed is fixed


def _extents(e: Evidence) -> bool:
    """Extents move one by one, and that takes most of the wait."""
    if not (e.stream.naive and e.cost.mostly_waiting):
        return False
    if e.chunks is not None:
        return e.chunks.largest.kind is PartKind.MOVE
    if e.cost.packed is not None and e.cost.packed <= MOST * e.cost.total:
        return True
    each = e.stream.naive_us
    return each is not None and e.stream.copies * each / 1e3 >= MOST * e.cost.waiting


def _arithmetic_suffers(e: Evidence) -> bool:
    """The model runs slower on a GPU, and most of all in the phase that arithmetic bounds."""
    prompt, tokens = e.cost.prompt_pct, e.cost.tokens_pct
    if not (e.stream.on_gpu and e.cost.mostly_slowed) or prompt is None:
        return False
    return prompt > 0 and prompt >= PROMPT_OVER_TOKENS * max(0.0, tokens or 0.0)


def _other_programs(e: Evidence) -> bool:
    """The model runs slower, and other programs took nearly all cores, or as much CPU time."""
    machine = e.machine
    if (
        machine.other_cores is None
        or not machine.cores
        or e.stream.on_gpu
        or not e.cost.mostly_slowed
    ):
        return False
    busy = machine.other_cores + (machine.busy_cores or 0.0)
    # A program that shares the model's core alone leaves other cores idle.
    added = machine.other_ms is not None and machine.other_ms >= MOST * e.cost.slowed
    return machine.other_cores >= OTHERS_CORES and (added or busy >= BUSY * machine.cores)


def _shared_cores(e: Evidence) -> bool:
    """The model runs slower, and threads wait for a core that do not without streaming."""
    waited, without = e.machine.waited_pct, e.machine.waited_without_pct
    if waited is None or without is None or e.stream.on_gpu or not e.cost.mostly_slowed:
        return False
    return waited - without >= WAITED_PCT


def _memory(e: Evidence) -> bool:
    """Tokens are bound by memory, and the stream's own copies could explain the whole cost."""
    reads = e.machine.read_pct is not None and e.machine.read_pct >= READS_PCT
    if e.copies_ms is None or not reads or e.stream.on_gpu or not e.cost.mostly_slowed:
        return False
    return e.copies_ms >= e.cost.slowed


# ---- the rules ----

FASTER_LINK = "a faster link or destination, or fewer bytes (a smaller data type)"
FASTER_DISK = "a faster disk, or --durability page-cache if a power cut may lose data"
LARGER_CHUNKS = "fewer, larger chunks (--flush-interval 4)"
LONGER_EXTENTS = "a layout with longer extents (--kv-layout nhd)"
OVERLAP = "--level 3, which streams beside the model"
LONGER_REQUESTS = "longer requests, which pay the drain once"
WIRE, DISK = (PartKind.WIRE, PartKind.COPY), (PartKind.DISK,)

RULES: tuple[Rule, ...] = (
    Rule("disk rate", lambda e: e.stream.on_storage and _rate_bound(e), numbers.rates, FASTER_DISK),
    Rule(
        "memory bandwidth",
        lambda e: e.stream.local and not e.stream.on_gpu and _rate_bound(e),
        numbers.rates,
        "fewer bytes (a smaller data type)",
    ),
    Rule("link rate", _rate_bound, numbers.rates, FASTER_LINK),
    Rule(
        "descriptors/extents",
        _extents,
        numbers.extents,
        f"--level 1 or above, which packs them; {LONGER_EXTENTS}",
    ),
    Rule("disk rate", _by(DISK, fixed=False), numbers.part, FASTER_DISK),
    Rule("disk latency", _by(DISK, fixed=True), numbers.part, f"{LARGER_CHUNKS}; {FASTER_DISK}"),
    Rule("disk, rate or latency", _by(DISK, fixed=None), numbers.part, FASTER_DISK),
    Rule("link rate", _by(WIRE, fixed=False), numbers.part, FASTER_LINK),
    Rule(
        "link latency",
        _by(WIRE, fixed=True),
        numbers.part,
        f"{LARGER_CHUNKS}; a core of its own for the sink",
    ),
    Rule("link, rate or latency", _by(WIRE, fixed=None), numbers.part, FASTER_LINK),
    Rule("gather", _largest(PartKind.GATHER), numbers.part, LONGER_EXTENTS),
    Rule("descriptors/extents", _largest(PartKind.POST), numbers.part, LARGER_CHUNKS),
    Rule(
        "sink",
        _largest(PartKind.SINK),
        numbers.part,
        f"a core of its own for the sink; {LONGER_EXTENTS}",
    ),
    Rule(
        "GPU SMs",
        lambda e: e.stream.sending_kernels is not None and _arithmetic_suffers(e),
        numbers.sending,
        "a destination that copy engines serve, such as host",
    ),
    Rule(
        "GPU SMs",
        lambda e: e.stream.gathering_kernel and _arithmetic_suffers(e),
        numbers.gathering,
        f"{LONGER_EXTENTS}, which copy engines can gather",
    ),
    Rule(
        "shared cores",
        _other_programs,
        numbers.other_programs,
        "ending the other programs, or more cores",
    ),
    Rule(
        "shared cores",
        _shared_cores,
        numbers.describe_wait,
        "cores of their own for the helper and the sink",
    ),
    Rule(
        "memory bandwidth",
        _memory,
        numbers.copies,
        "a sink on another host, or fewer bytes (a smaller data type)",
    ),
)
"""In order: the first that holds is the answer. Rates come first, because chunks that wait for a
slow link look slow in each part."""


def limit_of(e: Evidence) -> Limit:
    """Return the limit of an arm with a shown cost; it may be not known."""
    for rule in RULES:
        if rule.holds(e):
            return Limit(rule.name, rule.numbers(e), _remedy(rule, e))
    return Limit(NOT_KNOWN, numbers.whereabouts(e), "")


def _remedy(rule: Rule, e: Evidence) -> str:
    """Return the remedy of a rule, after what the arm's level makes possible."""
    if not e.stream.overlapped and not e.stream.naive:
        return f"{OVERLAP}; {rule.remedy}"
    drained = e.cost.mostly_waiting and numbers.only_drain(e)
    if e.stream.overlapped and drained and not e.behind:
        return f"{LONGER_REQUESTS}; {rule.remedy}"
    return rule.remedy
