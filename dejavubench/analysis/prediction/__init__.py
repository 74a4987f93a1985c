"""Predicted time of a request over a link: the model of time, and its inputs from a run."""

from dejavubench.analysis.prediction.link_sessions import (
    fastest_above,
    find_ceiling,
    in_interval,
    split_nbytes,
    typical,
)
from dejavubench.analysis.prediction.request import LEAVES_PCT, LEVELS, StreamedRequest

__all__ = [
    "LEAVES_PCT",
    "LEVELS",
    "StreamedRequest",
    "fastest_above",
    "find_ceiling",
    "in_interval",
    "split_nbytes",
    "typical",
]
