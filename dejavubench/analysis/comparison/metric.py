"""Names of the times that a comparison can be about. The command line reads them for its help."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Metric(StrEnum):
    """A time that a comparison can be about."""

    TOTAL = "total"
    PROMPT = "prompt"
    TOKEN = "token"
    P99 = "p99"


MEANINGS: Mapping[Metric, str] = {
    Metric.TOTAL: "time of the whole request (TOTAL)",
    Metric.PROMPT: "time of the prompt phase",
    Metric.TOKEN: "median time of one decode step",
    Metric.P99: "99th percentile of single decode steps",
}
"""Each metric in words, as reports title it."""
