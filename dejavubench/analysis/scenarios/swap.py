"""Swapping of caches that take turns: its series and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dejavubench.analysis.numbers.stats import median_of, whole_median_of
from dejavubench.records import Swapping


@dataclass
class SwapSamples:
    """Series of an arm that swaps; empty for other arms.

    Attributes:
        nbytes: bytes by round that all sources brought back.
        bring_ms, wait_ms: values by round, of the slowest source.
        resident_cache_count: caches that were in place; None unless the arm swaps.
    """

    nbytes: dict[int, float] = field(default_factory=dict)
    bring_ms: dict[int, float] = field(default_factory=dict)
    wait_ms: dict[int, float] = field(default_factory=dict)
    resident_cache_count: int | None = None

    def add(self, round_number: int, record: Swapping) -> None:
        """Add a round's record of one source."""
        self.resident_cache_count = record.resident
        # Bytes add up over sources, which bring caches back side by side: times do not.
        self.nbytes[round_number] = self.nbytes.get(round_number, 0) + record.nbytes
        for series, ms in ((self.bring_ms, record.bring_ms), (self.wait_ms, record.wait_ms)):
            series[round_number] = max(ms, series.get(round_number, 0.0))

    def make_columns(self) -> SwapTotals:
        """Return the columns of swapping: medians over rounds."""
        return SwapTotals(
            resident_caches=self.resident_cache_count,
            brought_back_bytes=whole_median_of(self.nbytes),
            bring_ms=median_of(self.bring_ms),
            swap_wait_ms=median_of(self.wait_ms),
        )


@dataclass
class SwapTotals:
    """Swapping of caches; missing unless the arm swaps."""

    resident_caches: Annotated[int | None, "Caches that stay in place."] = None
    brought_back_bytes: Annotated[int | None, "Bytes that all sources brought back."] = None
    bring_ms: Annotated[float | None, "Time of bringing them back, on the slowest source."] = None
    swap_wait_ms: Annotated[
        float | None, "Time that the model waited for caches; part of stall_ms."
    ] = None
