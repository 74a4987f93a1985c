"""Compute times at other sizes: measured where they can be, else scaled by the work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dejavubench.analysis.breakdown.least_work import Work, least_work
from dejavubench.analysis.prediction.inputs import PointInputs
from dejavubench.analysis.prediction.request import TimesMs
from dejavubench.records import PointInfo

LEAST_LINE_SHARE = 0.3
"""Least part of the time scaled by the work that a line may give."""

_OTHER_SIZES = ("model", "data_type", "kv_layout", "ubatch_size", "output_len")


class Basis(StrEnum):
    """Origin of the compute times of a prediction."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    EXTRAPOLATED = "extrapolated"
    SCALED = "scaled"


@dataclass(frozen=True)
class ComputeTimes:
    """Times of one microbatch on one source that holds the whole model, and where they come from.

    Attributes:
        prompt_ms, token_ms: with one element per resample.
    """

    prompt_ms: TimesMs
    token_ms: TimesMs
    basis: Basis


def compute_times(
    points: Sequence[PointInputs], measured: PointInputs, target: PointInfo
) -> ComputeTimes:
    """Return the compute times of a target.

    They are measured if the target has the sizes of ``measured``. If the run has several prompt
    lengths of the same model and batch, they lie on the line through the two nearest. Otherwise
    they are those of ``measured``, scaled: the prompt's by its arithmetic, a token's by the bytes
    that it reads.
    """
    prompt_ms, token_ms = _times(measured)
    target_work = least_work(target, target.weight_nbytes)
    if target_work == measured.work:
        return ComputeTimes(prompt_ms, token_ms, Basis.MEASURED)
    flop_ratio = target_work.prompt_flop / measured.work.prompt_flop
    read_ratio = _read_nbytes(target_work) / _read_nbytes(measured.work)
    pair = nearest_two(points, target)
    if pair is None:
        return ComputeTimes(prompt_ms * flop_ratio, token_ms * read_ratio, Basis.SCALED)
    shorter, longer = pair
    works = (shorter.work, longer.work, target_work)
    shorter_prompt_ms, shorter_token_ms = _times(shorter)
    longer_prompt_ms, longer_token_ms = _times(longer)
    prompt_on_line = on_line(
        shorter_prompt_ms, longer_prompt_ms, [work.prompt_flop for work in works]
    )
    token_on_line = on_line(
        shorter_token_ms, longer_token_ms, [_read_nbytes(work) for work in works]
    )
    between = shorter.info.input_len < target.input_len < longer.info.input_len
    return ComputeTimes(
        # Far below the measured lengths, a line can fall to nothing.
        np.maximum(prompt_on_line, LEAST_LINE_SHARE * flop_ratio * prompt_ms),
        np.maximum(token_on_line, LEAST_LINE_SHARE * read_ratio * token_ms),
        Basis.INTERPOLATED if between else Basis.EXTRAPOLATED,
    )


def on_line(first: TimesMs, last: TimesMs, abscissas: Sequence[float]) -> TimesMs:
    """Return the value at the last of three abscissas, given those at the first two."""
    begin, end, abscissa = abscissas
    if begin == end:  # the work is not known, or does not grow with what the two differ in
        return (first + last) / 2
    share = (abscissa - begin) / (end - begin)
    return (1 - share) * first + share * last


def nearest_two(
    points: Iterable[PointInputs], target: PointInfo
) -> tuple[PointInputs, PointInputs] | None:
    """Return the two points nearest to a target that differ in the prompt's length alone.

    The shorter comes first. None if there are fewer.
    """
    lengths = {
        point.info.input_len: point
        for point in points
        if all(getattr(point.info, key) == getattr(target, key) for key in _OTHER_SIZES)
    }
    nearest = sorted(lengths, key=lambda length: abs(math.log(length / target.input_len)))[:2]
    # Around the target, if it lies between two.
    below = [length for length in lengths if length < target.input_len]
    above = [length for length in lengths if length > target.input_len]
    if below and above:
        nearest = [max(below), min(above)]
    if len(nearest) < 2:
        return None
    shorter, longer = sorted(nearest)
    return lengths[shorter], lengths[longer]


def _times(point: PointInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of prompt and token, in ms, with one element per resample."""
    return point.medians["prompt"], point.medians["tokens"] / max(1, point.steps)


def _read_nbytes(work: Work) -> float:
    """Return the bytes that a token reads; 1 for a request without steps, so that ratios exist."""
    return work.token_nbytes or 1.0
