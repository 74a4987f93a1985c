"""Findings of the checks, and the rows that equal findings of several ranks become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum


class Status(IntEnum):
    """The worth of a finding. The highest one of all findings is that of the whole examination.

    OK: nothing here spoils a measurement, or it is not needed.
    WARN: it disturbs measurements, or something of this machine is left unused.
    BAD: runs cannot work like this, or would measure something else than they say.
    """

    OK = 0
    WARN = 1
    BAD = 2


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        reading: the observation, numbers with their units.
        advice: what to do; empty if there is nothing to do.
    """

    status: Status
    reading: str
    advice: str = ""


def ok(reading: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(Status.OK, reading)


def warn(reading: str, advice: str) -> Finding:
    """Return a finding that may spoil a measurement."""
    return Finding(Status.WARN, reading, advice)


def bad(reading: str, advice: str) -> Finding:
    """Return a finding that keeps a run from working, or its numbers from meaning anything."""
    return Finding(Status.BAD, reading, advice)


@dataclass(frozen=True)
class FindingRow:
    """A finding of a named check, and the ranks that it holds for."""

    check: str
    finding: Finding
    ranks: tuple[int, ...]


def merge_rows(rows: Iterable[FindingRow]) -> list[FindingRow]:
    """Join rows that differ in their ranks alone. The first of equal rows gives the place."""
    rows_of_finding: dict[tuple[str, Finding], FindingRow] = {}
    for row in rows:
        # Equal text means equal numbers: a finding with a number of its own stays a row of its own.
        key = row.check, row.finding
        earlier_row = rows_of_finding.get(key)
        ranks = (
            row.ranks if earlier_row is None else tuple(sorted({*earlier_row.ranks, *row.ranks}))
        )
        rows_of_finding[key] = replace(row, ranks=ranks)
    return list(rows_of_finding.values())


def find_worst_status(rows: Iterable[FindingRow]) -> Status:
    """Return the highest status of all rows; OK if there are none."""
    return max((row.finding.status for row in rows), default=Status.OK)


def format_ranks(ranks: Sequence[int], rank_count: int) -> str:
    """Return ranks as a table shows them: ``all``, ``0``, ``0-2, 5``.

    Args:
        ranks: ascending.
        rank_count: number of ranks of the job.
    """
    if len(ranks) == rank_count:
        return "all"
    spans: list[list[int]] = []  # of consecutive ranks
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
