"""Restart of a killed run's request: its records and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated

from dejavubench.records import Restart


@dataclass
class RestartTotals:
    """Restart of a killed run's request; missing unless the run restarts one."""

    resumed_run: Annotated[str | None, "Folder of the killed run."] = None
    resumed_at_token: Annotated[int | None, "First new token that was computed here, from 0."] = (
        None
    )
    restored_bytes: Annotated[int | None, "Bytes that all sources read, checked and put back."] = (
        None
    )
    restore_ms: Annotated[float | None, "Time of putting them back, on the slowest source."] = None
    anew_ms: Annotated[float | None, "Time of computing the earlier steps again instead."] = None


def make_columns(restarts: Sequence[Restart]) -> RestartTotals:
    """Return the columns of one iteration: sums of bytes, times of the slowest source."""
    recompute_times = [restart.anew_ms for restart in restarts if restart.anew_ms is not None]
    return RestartTotals(
        resumed_run=restarts[0].of,
        resumed_at_token=restarts[0].first,
        restored_bytes=sum(restart.nbytes for restart in restarts),
        restore_ms=max(restart.restore_ms for restart in restarts),
        anew_ms=max(recompute_times, default=None),
    )


def compute_token_ms(restarts: Sequence[Restart]) -> float:
    """Return the time of one step: the slowest source of each step, median over the steps."""
    # [source, step] turned to [step, source]: all sources wait for the slowest at each step.
    return median(map(max, zip(*(restart.step_ms for restart in restarts), strict=True)))


def drain_ms(restarts: Sequence[Restart]) -> float:
    """Return the wait for the last byte, on the slowest source."""
    return max(restart.drain_ms for restart in restarts)
