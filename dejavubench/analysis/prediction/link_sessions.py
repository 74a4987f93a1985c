"""Inputs of the link figure's lines: the request of one level from the rows of its sessions.

The lines are those of an ideal link: chunks cost nothing beside their bytes, and messages of level
0 the time that the probe of small messages took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dejavubench.analysis.prediction.request import LEAVES_PCT, LEVELS, StreamedRequest
from dejavubench.records import Ceiling, PointInfo, Run


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
        # Sessions differ in compute times by noise; sizes are equal by `require_comparable`.
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
