"""Inputs of the link figure's lines: the request of one level from the rows of its sessions.

The lines are those of an ideal link: chunks cost nothing beside their bytes, and messages of level
0 the time that the probe of small messages took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dejavubench.analysis.prediction.request import NEAR_ZERO_PCT, PREDICTED_LEVELS, StreamedRequest
from dejavubench.records import Ceiling, PointInfo, Run


def make_typical_request(rows: Sequence[Mapping[Any, Any]]) -> StreamedRequest | None:
    """Return the request of one level, from the medians over its rows, one for each session.

    None if the level has no prediction, or its messages were not timed.
    """
    first_row = rows[0]
    level_name = first_row["level"]
    message_us = [
        row["message_us"]
        for row in rows
        if row["message_us"] is not None and not math.isnan(row["message_us"])
    ]
    if level_name not in PREDICTED_LEVELS or (level_name == "0" and not message_us):
        return None
    return StreamedRequest(
        layer_count=first_row["layers"],
        step_count=first_row["steps"],
        # Sessions differ in compute times by noise; sizes are equal by `require_comparable`.
        prompt_ms=median(row["none_prompt_ms"] for row in rows),
        token_ms=median(row["none_token_ms"] for row in rows),
        prompt_nbytes=first_row["prompt_bytes"],
        step_nbytes=first_row["step_bytes"],
        message_count=median(row["messages"] for row in rows) if level_name == "0" else 0.0,
        message_ms=median(message_us) / 1e3 if level_name == "0" else 0.0,
        flush_interval=first_row["flush_interval"],
    )


def split_nbytes(point: PointInfo) -> tuple[float, float, int]:
    """Return the bytes of the prompt's cache and of one step's, and the number of steps."""
    # The last new token is never written: P + T − 1 positions, P of them the prompt's.
    step_count = (point.handed_over or point.output_len) - 1
    step_nbytes = point.streamed_nbytes / (point.input_len + step_count)
    return point.input_len * step_nbytes, step_nbytes, step_count


def find_ceiling(run: Run, name: str, point_id: str) -> float | None:
    """Return a ceiling of the source at a point: the median of its samples, not the best."""
    ceilings = [
        ceiling
        for _, ceiling in run.records_of(Ceiling)
        if ceiling.name == name and ceiling.point in (point_id, None)
    ]
    if not ceilings:
        return None
    return median(sample for ceiling in ceilings for sample in ceiling.samples)


def find_fastest_above(rates: Sequence[float], low_ends_pct: Sequence[float]) -> float | None:
    """Return the fastest measured link whose overhead is above :data:`NEAR_ZERO_PCT` for certain.

    Args:
        low_ends_pct: lower ends of the intervals of the overheads at ``rates``.

    Returns:
        None if no link's whole interval is above.
    """
    return max(
        (
            rate
            for rate, low_end_pct in zip(rates, low_ends_pct, strict=True)
            if low_end_pct > NEAR_ZERO_PCT
        ),
        default=None,
    )


def count_in_interval(rows: Sequence[Mapping[Any, Any]]) -> int:
    """Return the number of points whose interval holds the prediction for their session."""
    return sum(
        row["overhead_low_pct"] <= row["predicted_overhead_pct"] <= row["overhead_high_pct"]
        for row in rows
    )
