"""Bills of chunks → the evidence about an arm's chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dejavubench.analysis.answers.limits.evidence import ChunkFacts, LongestPart, PartKind
from dejavubench.analysis.breakdown.chunk_bill import LATENCY, QUEUE, Bill
from dejavubench.analysis.breakdown.overhead_parts import Phase


def collect_chunk_facts(bills: Sequence[Bill], phase: Phase) -> ChunkFacts | None:
    """Join the bills of both phases: times by kind of part, of which the longest is described."""
    ms_by_kind: dict[PartKind, dict[str, float]] = defaultdict(dict)
    part_names: dict[tuple[str, PartKind], list[str]] = defaultdict(list)
    chunk_us: dict[tuple[str, PartKind], float] = {}
    for bill in bills:
        has_gather = any(PartKind.GATHER in part.name for part in bill.parts)
        for part in bill.parts:
            if part.name in (LATENCY, QUEUE):
                continue
            kind = PartKind.of_part(part.name)
            # Without a gather, the copies to the host are of single extents.
            if kind is PartKind.COPY and not has_gather:
                kind = PartKind.MOVE
            # Single chunks of the other phase still tell latency from rate.
            counted_ms = part.sum_ms if phase in ("total", bill.phase) else 0.0
            ms_by_kind[kind][bill.phase] = ms_by_kind[kind].get(bill.phase, 0.0) + counted_ms
            part_names[bill.phase, kind].append(part.name)
            if part.median_us is not None:
                chunk_us[bill.phase, kind] = chunk_us.get((bill.phase, kind), 0.0) + part.median_us
    total_ms = {kind: sum(ms_by_phase.values()) for kind, ms_by_phase in ms_by_kind.items()}
    if not any(total_ms.values()):
        return None
    longest_kind = max(total_ms, key=lambda kind: total_ms[kind])
    longest_ms = ms_by_kind[longest_kind]
    chunk_nbytes = {
        bill.phase: bill.extent_count * bill.extent_nbytes / bill.chunk_count
        for bill in bills
        if bill.chunk_count
    }
    extent_us = [bill.extent_us for bill in bills if bill.extent_us is not None]
    return ChunkFacts(
        longest_part=LongestPart(
            # Names of one phase alone: those of the other would repeat them.
            name=" + ".join(part_names[next(iter(longest_ms)), longest_kind]),
            kind=longest_kind,
            share=total_ms[longest_kind] / sum(total_ms.values()),
            prompt_us=chunk_us.get(("prompt", longest_kind)),
            token_us=chunk_us.get(("tokens", longest_kind)),
            in_prompt=longest_ms.get("prompt", 0.0) > longest_ms.get("tokens", 0.0),
        ),
        prompt_nbytes=chunk_nbytes.get("prompt"),
        token_nbytes=chunk_nbytes.get("tokens"),
        extent_count=sum(bill.extent_count for bill in bills if phase in ("total", bill.phase)),
        extent_us=extent_us[-1] if extent_us else None,
    )
