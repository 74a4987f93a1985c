"""Ceilings of a run: rates that the machine reached, which bound the rates of streams."""

from __future__ import annotations

from dejavubench.analysis.facts.source_ranks import list_sources
from dejavubench.records import Ceiling, Run


def sum_ceilings(
    run: Run, name: str, point_id: str, durability: str | None, unit: str = "GB/s"
) -> tuple[float, int] | None:
    """Return a ceiling, summed over the best of each rank that measured it, and their number.

    A ceiling measured at this point precedes one of the whole run. The disk's counts only for its
    own durability.
    """
    ceilings = [
        (rank, ceiling)
        for rank, ceiling in run.records_of(Ceiling)
        if ceiling.name == name
        and ceiling.unit == unit
        and ceiling.durability in (None, durability)
    ]
    for ceiling_point in (point_id, None):
        best_by_rank: dict[int, float] = {}
        for rank, ceiling in ceilings:
            if ceiling.point == ceiling_point:
                # A ceiling is the best rate: anything slower was disturbed.
                best_by_rank[rank] = max(best_by_rank.get(rank, 0.0), ceiling.value)
        # Ranks measure side by side, so their rates add up.
        if best_by_rank:
            return sum(best_by_rank.values()), len(best_by_rank)
    return None


def share_of_ceiling(
    run: Run, name: str, point_id: str, rate: float, unit: str = "GB/s"
) -> float | None:
    """Return ``rate`` in percent of a ceiling; None unless every source measured the ceiling."""
    ceiling = sum_ceilings(run, name, point_id, None, unit)
    return (
        100 * rate / ceiling[0]
        if ceiling is not None and ceiling[1] == len(list_sources(run))
        else None
    )
