"""Predicted time of a request over a link, level by level, from bytes, compute times and a rate.

The model's compute is that of ``none``. A layer's keys and values are in place when its share of
the prompt is over. The link carries one chunk after the other, at one rate. docs/METHOD.md derives
the prediction and names what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dejavubench.records import Ceiling, PointInfo, Run

LEVELS = ("0", "1", "2", "3")
"""Levels with a prediction. 0-batched has none: the cost of issuing a message is not measured."""

LEAVES_PCT = 5.0
"""Overhead up to which it counts as near zero."""

SLOWEST, FASTEST = 1e-3, 1e12
"""Bytes per millisecond between which a link is looked for."""


@dataclass(frozen=True)
class StreamedRequest:
    """One microbatch's request, as one source computes it without streaming.

    Attributes:
        steps: number of decode steps.
        prompt_ms, token_ms: time of the prompt, and of each decode step.
        prompt_nbytes, step_nbytes: keys and values of all layers, of the prompt and of one step.
        messages: number of messages of the whole request at level 0.
        message_ms: time of each message beside that of its bytes.
        flush_interval: steps whose keys and values move as one, when the last of them is over.
    """

    layers: int
    steps: int
    prompt_ms: float
    token_ms: float
    prompt_nbytes: float
    step_nbytes: float
    messages: float = 0.0
    message_ms: float = 0.0
    flush_interval: int = 1

    @property
    def total_ms(self) -> float:
        return self.prompt_ms + self.steps * self.token_ms

    def predicted_ms(self, level: str, rate: float) -> float:
        """TOTAL at a level of :data:`LEVELS` on a link of ``rate`` bytes per millisecond."""
        # Level 3 overlaps prompt and steps with the link, level 2 only the prompt, levels 0 and 1
        # nothing.
        if level == "3":
            return self._streamed_ms(rate, self.steps)
        each_step = self.token_ms + self.step_nbytes / rate
        if level == "2":
            return self._streamed_ms(rate, 0) + self.steps * each_step
        # Level 0 moves the same bytes as level 1, and pays for each message beside.
        in_turn = self.prompt_ms + self.prompt_nbytes / rate + self.steps * each_step
        return in_turn + (self.messages * self.message_ms if level == "0" else 0.0)

    def _streamed_ms(self, rate: float, steps: int) -> float:
        """Return when the link has carried prompt and steps, each as soon as it is ready."""
        idle = 0.0  # time from which the link is idle
        for layer in range(1, self.layers + 1):
            # A layer leaves once it is computed and the link has carried the layers before.
            idle = (
                max(idle, self.prompt_ms * layer / self.layers)
                + self.prompt_nbytes / self.layers / rate
            )
        # Steps of a group leave together, when the last of them is over.
        for first in range(0, steps, self.flush_interval):
            # The last group may be shorter.
            together = min(self.flush_interval, steps - first)
            ready = self.prompt_ms + (first + together) * self.token_ms
            idle = max(idle, ready) + together * self.step_nbytes / rate
        return idle

    def overhead_pct(self, level: str, rate: float) -> float:
        """Return the overhead of TOTAL over that without streaming."""
        # Over the compute alone, as measured overheads are over `none`.
        return 100 * (self.predicted_ms(level, rate) / self.total_ms - 1)

    def leaves_zero(self, level: str) -> float | None:
        """Return the slowest link, in bytes per millisecond, whose overhead is near zero.

        None if no link is fast enough.
        """
        # Level 0 pays for messages on any link.
        if self.overhead_pct(level, FASTEST) > LEAVES_PCT:
            return None
        # Overhead never rises with the rate, so halving finds the border. Rates span decades, so
        # the middle is geometric.
        slow, fast = SLOWEST, FASTEST
        while fast / slow > 1.0001:
            middle = math.sqrt(slow * fast)
            slow, fast = (
                (middle, fast) if self.overhead_pct(level, middle) > LEAVES_PCT else (slow, middle)
            )
        return fast


def typical(rows: Sequence[Mapping[Any, Any]]) -> StreamedRequest | None:
    """Return the request of one level, from the medians over its rows, one for each session.

    None if the level has no prediction, or its messages were not timed.
    """
    level, first = rows[0]["level"], rows[0]
    timed = [
        row["message_us"]
        for row in rows
        if row["message_us"] is not None and not math.isnan(row["message_us"])
    ]
    if level not in LEVELS or (level == "0" and not timed):
        return None
    return StreamedRequest(
        layers=first["layers"],
        steps=first["steps"],
        # Connectors differ in compute times by noise; sizes are equal by `require_comparable`.
        prompt_ms=median(row["none_prompt_ms"] for row in rows),
        token_ms=median(row["none_token_ms"] for row in rows),
        prompt_nbytes=first["prompt_bytes"],
        step_nbytes=first["step_bytes"],
        messages=median(row["messages"] for row in rows) if level == "0" else 0.0,
        message_ms=median(timed) / 1e3 if level == "0" else 0.0,
        flush_interval=first["flush_interval"],
    )


def split_nbytes(point: PointInfo) -> tuple[float, float, int]:
    """Return the bytes of the prompt's cache and of one step's, and the number of steps."""
    # The last new token is never written: P + T − 1 positions, P of them the prompt's.
    steps = (point.handed_over or point.output_len) - 1
    step_nbytes = point.streamed_nbytes / (point.input_len + steps)
    return point.input_len * step_nbytes, step_nbytes, steps


def find_ceiling(run: Run, name: str, point: str) -> float | None:
    """Return a ceiling of the source at a point: the median of its samples, not the best."""
    pairs = [
        item
        for _, item in run.records_of(Ceiling)
        if item.name == name and item.point in (point, None)
    ]
    return median(value for item in pairs for value in item.samples) if pairs else None


def fastest_above(rates: Sequence[float], lows: Sequence[float]) -> float | None:
    """Return the fastest measured link whose overhead is above :data:`LEAVES_PCT` for certain.

    Args:
        lows: lower ends of the intervals of the overheads at ``rates``.

    Returns:
        None if no link's whole interval is above.
    """
    return max(
        (rate for rate, low in zip(rates, lows, strict=True) if low > LEAVES_PCT), default=None
    )


def in_interval(rows: Sequence[Mapping[Any, Any]]) -> int:
    """Return the number of points whose interval holds the prediction for their session."""
    return sum(
        row["overhead_low_pct"] <= row["predicted_overhead_pct"] <= row["overhead_high_pct"]
        for row in rows
    )
