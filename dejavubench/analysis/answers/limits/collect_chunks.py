"""Bills of chunks → the evidence about an arm's chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dejavubench.analysis.answers.limits.evidence import ChunkFacts, LongestPart, PartKind
from dejavubench.analysis.breakdown.chunk_bill import LATENCY, QUEUE, Bill
from dejavubench.analysis.breakdown.overhead_parts import Phase


def gather_chunks(bills: Sequence[Bill], phase: Phase) -> ChunkFacts | None:
    """Join the bills of both phases: times by kind of part, of which the largest is described."""
    sums: dict[PartKind, dict[str, float]] = defaultdict(dict)
    part_names: dict[tuple[str, PartKind], list[str]] = defaultdict(list)
    singles: dict[tuple[str, PartKind], float] = {}
    for bill in bills:
        gathers = any(PartKind.GATHER in part.name for part in bill.parts)
        for part in bill.parts:
            if part.name in (LATENCY, QUEUE):
                continue
            kind = PartKind.of_part(part.name)
            # Without a gather, the copies to the host are of single extents.
            if kind is PartKind.COPY and not gathers:
                kind = PartKind.MOVE
            # Single chunks of the other phase still tell latency from rate.
            counted_ms = part.sum_ms if phase in ("total", bill.phase) else 0.0
            sums[kind][bill.phase] = sums[kind].get(bill.phase, 0.0) + counted_ms
            part_names[bill.phase, kind].append(part.name)
            if part.median_us is not None:
                singles[bill.phase, kind] = singles.get((bill.phase, kind), 0.0) + part.median_us
    totals = {kind: sum(phases.values()) for kind, phases in sums.items()}
    if not any(totals.values()):
        return None
    largest = max(totals, key=lambda kind: totals[kind])
    sizes = {
        bill.phase: bill.extents * bill.extent_nbytes / bill.chunks for bill in bills if bill.chunks
    }
    extent_us = [bill.extent_us for bill in bills if bill.extent_us is not None]
    return ChunkFacts(
        largest=LongestPart(
            # Names of one phase alone: those of the other would repeat them.
            name=" + ".join(next(part_names[bill_phase, largest] for bill_phase in sums[largest])),
            kind=largest,
            share=totals[largest] / sum(totals.values()),
            prompt_us=singles.get(("prompt", largest)),
            token_us=singles.get(("tokens", largest)),
            in_prompt=sums[largest].get("prompt", 0.0) > sums[largest].get("tokens", 0.0),
        ),
        prompt_nbytes=sizes.get("prompt"),
        token_nbytes=sizes.get("tokens"),
        extents=sum(bill.extents for bill in bills if phase in ("total", bill.phase)),
        extent_us=extent_us[-1] if extent_us else None,
    )
