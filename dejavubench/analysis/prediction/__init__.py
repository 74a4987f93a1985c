"""Predicted time of a request over a link: the model of time, and its inputs from a run."""

from dejavubench.analysis.prediction.link_sessions import (
    count_in_interval,
    fastest_above,
    find_ceiling,
    split_nbytes,
    typical_request,
)
from dejavubench.analysis.prediction.request import NEAR_ZERO_PCT, PREDICTED_LEVELS, StreamedRequest

__all__ = [
    "NEAR_ZERO_PCT",
    "PREDICTED_LEVELS",
    "StreamedRequest",
    "count_in_interval",
    "fastest_above",
    "find_ceiling",
    "split_nbytes",
    "typical_request",
]
