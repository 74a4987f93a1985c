"""The clocks of a run's hosts, brought to that of rank 0's host, with the error of that.

The trace alone uses it. No table subtracts times of two hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dejavubench.records import End, HostClock, RankInfo, Run


@dataclass(frozen=True)
class RankClock:
    """One rank's clock.

    Attributes:
        host: the rank's host.
        reference: host of rank 0.
        start, end: the measured offsets; None where there is none.
    """

    rank: int
    host: str
    reference: str
    start: HostClock | None
    end: HostClock | None

    @property
    def is_reference(self) -> bool:
        """Whether this is the clock of rank 0's host, to which the others are converted."""
        return self.host == self.reference

    @property
    def is_known(self) -> bool:
        """Whether its times can be placed beside those of rank 0."""
        return self.is_reference or self.start is not None

    @property
    def error_ns(self) -> int:
        """The larger error of both measurements."""
        # The worse of both bounds the times between them.
        errors = [offset.error_ns for offset in (self.start, self.end) if offset is not None]
        return 0 if self.is_reference else max(errors, default=0)

    def to_common(self, at_ns: int) -> int:
        """Return a time of this rank by the clock of rank 0's host."""
        if self.is_reference or self.start is None:
            return at_ns
        offset_ns = float(self.start.offset_ns)
        if self.end is not None and self.end.at_ns > self.start.at_ns:
            # The drift is taken as even, so the offset lies on a line between both measurements.
            passed_share = (at_ns - self.start.at_ns) / (self.end.at_ns - self.start.at_ns)
            offset_ns += passed_share * (self.end.offset_ns - self.start.offset_ns)
        return at_ns + round(offset_ns)

    def __str__(self) -> str:
        if self.is_reference:
            return f"host {self.host}"
        if not self.is_known:
            return f"host {self.host}, clock not measured"
        return f"host {self.host}, clock ±{self.error_ns / 1e3:.3g} µs"

    def facts(self) -> dict[str, Any]:
        """Return the clock as the trace's metadata describes it."""
        if self.is_reference:
            explanation = "offset 0: ranks of one host read one clock, CLOCK_MONOTONIC"
        elif self.end is None:
            explanation = (
                "offset measured at the start of the run only: the drift since is not known"
            )
        else:
            explanation = "offset measured at start and end of the run, taken as even in between"
        facts = {
            "rank": self.rank,
            "hostname": self.host,
            "reference": self.reference,
            "said": explanation,
        }
        for name, offset in (("start", self.start), ("end", self.end)):
            if offset is not None and not self.is_reference:
                facts[name] = {"offset_ns": offset.offset_ns, "error_ns": offset.error_ns}
        return facts


def clocks_of(run: Run) -> dict[int, RankClock]:
    """Return the clock of each rank.

    Raises:
        RecordError: a rank's environment has a value of another type.
    """
    infos = {info.rank: info for _, info in run.records_of(RankInfo)}
    end_clocks = {rank: end_record.facts.clock for rank, end_record in run.records_of(End)}
    reference = infos[0].host if 0 in infos else ""
    return {
        rank: RankClock(rank, info.host, reference, info.facts.clock, end_clocks.get(rank))
        for rank, info in sorted(infos.items())
    }
