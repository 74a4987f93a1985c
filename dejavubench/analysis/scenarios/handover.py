"""Hand-over of requests to the sinks: its series and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

from dejavubench.analysis.numbers.stats import median_of
from dejavubench.records import Handover, HandoverAtSink


@dataclass
class HandoverSamples:
    """Series of an arm whose sinks go on with the requests; empty for other arms.

    Attributes:
        handover_ms: value by round, from the end of the sources' last computation until a sink's
            first token was reported to them.
        waited_ms, first_ms, token_ms: values by round on the slowest sink; ``token_ms`` is one
            later step.
    """

    handover_ms: dict[int, float] = field(default_factory=dict)
    waited_ms: dict[int, float] = field(default_factory=dict)
    first_ms: dict[int, float] = field(default_factory=dict)
    token_ms: dict[int, float] = field(default_factory=dict)

    def add_source(self, round_number: int, record: Handover) -> None:
        """Add a round's record of the source that hands over."""
        self.handover_ms[round_number] = record.ms

    def add_sink(self, round_number: int, record: HandoverAtSink) -> None:
        """Add a round's record of one sink."""
        times = [(self.waited_ms, record.waited_ms), (self.first_ms, record.first_ms)]
        if record.token_ms:
            times.append((self.token_ms, median(record.token_ms)))
        # A request goes on when the slowest of its sinks does.
        for series, ms in times:
            series[round_number] = max(ms, series.get(round_number, 0.0))

    def make_columns(self, left_nbytes: float | None, link_gb_per_s: float | None) -> HandoverTimes:
        """Return the columns of hand-over: medians over rounds, in milliseconds.

        Args:
            left_nbytes: bytes that a source had still to stream after its last computation.
            link_gb_per_s: rate of the raw loop over the link.
        """
        times = HandoverTimes(
            handover_ms=median_of(self.handover_ms),
            sink_waited_ms=median_of(self.waited_ms),
            sink_first_ms=median_of(self.first_ms),
            sink_token_ms=median_of(self.token_ms),
        )
        step_ms = times.sink_token_ms
        if left_nbytes is not None and link_gb_per_s and step_ms is not None:
            # Bytes / (GB/s) / 10⁶ = ms.
            times.handover_floor_ms = left_nbytes / link_gb_per_s / 1e6 + step_ms
        return times


@dataclass
class HandoverTimes:
    """Hand-over of requests to the sinks; missing unless the sinks go on with them."""

    handover_ms: Annotated[
        float | None,
        "Time from the end of the sources' last computation to the first token of a sink.",
    ] = None
    sink_waited_ms: Annotated[
        float | None, "Time until the slowest sink had its whole cache and the tokens so far."
    ] = None
    sink_first_ms: Annotated[
        float | None, "Time from then until the slowest sink's first token."
    ] = None
    sink_token_ms: Annotated[float | None, "Time of one later decode step on the slowest sink."] = (
        None
    )
    handover_floor_ms: Annotated[
        float | None,
        "Least time of the hand-over: the bytes that were left at its beginning, at "
        "ceiling_gb_per_s, and one decode step of the sinks.",
    ] = None
