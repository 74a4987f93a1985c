"""Predicted time of a request over a link: the model of time, and its inputs from a run."""

from dejavubench.analysis.prediction.link_sessions import (
    count_in_interval,
    find_ceiling,
    find_fastest_above,
    make_typical_request,
    split_nbytes,
)
from dejavubench.analysis.prediction.request import NEAR_ZERO_PCT, PREDICTED_LEVELS, StreamedRequest

__all__ = [
    "NEAR_ZERO_PCT",
    "PREDICTED_LEVELS",
    "StreamedRequest",
    "count_in_interval",
    "find_ceiling",
    "find_fastest_above",
    "make_typical_request",
    "split_nbytes",
]
