"""What a link of a given speed should make a request take, level by level: bytes, compute times and a rate, no more.

The model's compute is that of ``none``; a layer's keys and values are in place when its share of the prompt is over.
The link carries one chunk after the other, at one rate. docs/METHOD.md derives it and says what it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dejavubench.records import Ceiling, PointInfo, Run

RATE_OF_MODE = {"mpi": "mpi-windowed", "tcp": "tcp-raw"}
"""By destination the ceiling that says how fast the link is."""

MESSAGE_OF_MODE = {"mpi": "mpi-message", "tcp": "tcp-message"}
"""And the one that says what a message of level 0 takes, however small."""

LEVELS = ("0", "1", "2", "3")
"""Levels with a prediction. Of 0-batched there is none: what it costs to issue a message is not measured."""

LEAVES_PCT = 5.0
"""The overhead at which it is said to leave zero."""

SLOWEST, FASTEST = 1e-3, 1e12
"""Bytes per millisecond between which a link is looked for."""


@dataclass(frozen=True)
class Request:
    """One request of all of a microbatch's sequences, as one source computes it without streaming.

    Attributes:
        prompt_ms, token_ms: of the prompt and of each of the ``steps`` decode steps.
        prompt_nbytes, step_nbytes: of their keys and values, all layers.
        messages: of the whole request at level 0; message_ms: what each takes beside its bytes.
    """

    layers: int
    steps: int
    prompt_ms: float
    token_ms: float
    prompt_nbytes: float
    step_nbytes: float
    messages: float = 0.0
    message_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.prompt_ms + self.steps * self.token_ms

    def predicted_ms(self, level: str, rate: float) -> float:
        """TOTAL at a level of :data:`LEVELS` on a link of ``rate`` bytes per millisecond."""
        if level == "3":
            return self._streamed_ms(rate, self.steps)
        each_step = self.token_ms + self.step_nbytes / rate
        if level == "2":
            return self._streamed_ms(rate, 0) + self.steps * each_step
        whole = self.prompt_ms + self.prompt_nbytes / rate + self.steps * each_step
        return whole + (self.messages * self.message_ms if level == "0" else 0.0)

    def _streamed_ms(self, rate: float, steps: int) -> float:
        """When the link has carried the prompt and so many steps, each layer and each step from when it is ready."""
        idle = 0.0  # since then the link is
        for layer in range(1, self.layers + 1):
            idle = (
                max(idle, self.prompt_ms * layer / self.layers)
                + self.prompt_nbytes / self.layers / rate
            )
        for step in range(1, steps + 1):
            idle = max(idle, self.prompt_ms + step * self.token_ms) + self.step_nbytes / rate
        return idle

    def overhead_pct(self, level: str, rate: float) -> float:
        """Of TOTAL over the same without streaming."""
        return 100 * (self.predicted_ms(level, rate) / self.total_ms - 1)

    def leaves_zero(self, level: str) -> float | None:
        """The slowest link, in bytes per millisecond, with no more overhead than :data:`LEAVES_PCT`; None: no link."""
        if self.overhead_pct(level, FASTEST) > LEAVES_PCT:
            return None
        slow, fast = SLOWEST, FASTEST
        while fast / slow > 1.0001:
            middle = math.sqrt(slow * fast)
            slow, fast = (
                (middle, fast) if self.overhead_pct(level, middle) > LEAVES_PCT else (slow, middle)
            )
        return fast


def typical(rows: Sequence[Mapping[Any, Any]]) -> Request | None:
    """From rows of one level, one for each session: the medians of what each was predicted from.

    None where that level has no prediction, or its messages were not timed.
    """
    level, first = rows[0]["level"], rows[0]
    timed = [
        row["message_us"]
        for row in rows
        if row["message_us"] is not None and not math.isnan(row["message_us"])
    ]
    if level not in LEVELS or (level == "0" and not timed):
        return None
    return Request(
        layers=first["layers"],
        steps=first["steps"],
        prompt_ms=median(row["none_prompt_ms"] for row in rows),
        token_ms=median(row["none_token_ms"] for row in rows),
        prompt_nbytes=first["prompt_bytes"],
        step_nbytes=first["step_bytes"],
        messages=median(row["messages"] for row in rows) if level == "0" else 0.0,
        message_ms=median(timed) / 1e3 if level == "0" else 0.0,
    )


def split_nbytes(point: PointInfo) -> tuple[float, float, int]:
    """Bytes of the prompt's keys and values, of one step's, and how many steps are streamed."""
    steps = (point.handed_over or point.output_len) - 1
    step_nbytes = point.streamed_nbytes / (point.input_len + steps)
    return point.input_len * step_nbytes, step_nbytes, steps


def measured(run: Run, name: str, point: str) -> float | None:
    """A ceiling of the source at a point: the median of its samples, for what is typical is asked, not the best."""
    found = [
        item for _, item in run.of(Ceiling) if item.name == name and item.point in (point, None)
    ]
    return median(value for item in found for value in item.samples) if found else None


def fastest_above(rates: Sequence[float], lows: Sequence[float]) -> float | None:
    """The fastest link measured whose overhead's interval, from ``lows`` on, is wholly above :data:`LEAVES_PCT`.

    The overhead has not left zero's neighbourhood at that rate, whatever the noise; None where it has at all of them.
    """
    return max(
        (rate for rate, low in zip(rates, lows, strict=True) if low > LEAVES_PCT), default=None
    )


def in_interval(rows: Sequence[Mapping[Any, Any]]) -> int:
    """How many points' intervals hold what is predicted of their own session."""
    return sum(
        row["overhead_low_pct"] <= row["predicted_overhead_pct"] <= row["overhead_high_pct"]
        for row in rows
    )
