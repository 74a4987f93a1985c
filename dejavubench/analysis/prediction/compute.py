"""Compute times at other sizes: measured where they can be, else scaled by the work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dejavubench.analysis.breakdown.least_work import Work, compute_least_work
from dejavubench.analysis.prediction.inputs import PointInputs
from dejavubench.analysis.prediction.request import TimesMs
from dejavubench.records import PointInfo

LEAST_LINE_SHARE = 0.3
"""Least part of the time scaled by the work that a line may give."""

_SIZES_BESIDE_LENGTH = ("model", "data_type", "kv_layout", "ubatch_size", "output_len")


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
    points: Sequence[PointInputs], measured_point: PointInputs, target: PointInfo
) -> ComputeTimes:
    """Return the compute times of a target.

    They are measured if the target has the sizes of ``measured_point``. If the run has several
    prompt lengths of the same model and batch, they lie on the line through the two nearest.
    Otherwise they are those of ``measured_point``, scaled: the prompt's by its arithmetic, a
    token's by the bytes that it reads.
    """
    prompt_ms, token_ms = _read_phase_times_ms(measured_point)
    target_work = compute_least_work(target, target.weight_nbytes)
    if target_work == measured_point.work:
        return ComputeTimes(prompt_ms, token_ms, Basis.MEASURED)
    flop_ratio = target_work.prompt_flop / measured_point.work.prompt_flop
    read_ratio = _read_nbytes(target_work) / _read_nbytes(measured_point.work)
    two_points = find_nearest_two(points, target)
    if two_points is None:
        return ComputeTimes(prompt_ms * flop_ratio, token_ms * read_ratio, Basis.SCALED)
    shorter_point, longer_point = two_points
    works = (shorter_point.work, longer_point.work, target_work)
    shorter_prompt_ms, shorter_token_ms = _read_phase_times_ms(shorter_point)
    longer_prompt_ms, longer_token_ms = _read_phase_times_ms(longer_point)
    prompt_on_line = interpolate(
        shorter_prompt_ms, longer_prompt_ms, [work.prompt_flop for work in works]
    )
    token_on_line = interpolate(
        shorter_token_ms, longer_token_ms, [_read_nbytes(work) for work in works]
    )
    is_between = shorter_point.info.input_len < target.input_len < longer_point.info.input_len
    return ComputeTimes(
        # Far below the measured lengths, a line can fall to nothing.
        np.maximum(prompt_on_line, LEAST_LINE_SHARE * flop_ratio * prompt_ms),
        np.maximum(token_on_line, LEAST_LINE_SHARE * read_ratio * token_ms),
        Basis.INTERPOLATED if is_between else Basis.EXTRAPOLATED,
    )


def interpolate(first_ms: TimesMs, last_ms: TimesMs, abscissas: Sequence[float]) -> TimesMs:
    """Return the value at the last of three abscissas, given those at the first two."""
    first_abscissa, last_abscissa, abscissa = abscissas
    # The work is not known, or does not grow with what the two differ in.
    if first_abscissa == last_abscissa:
        return (first_ms + last_ms) / 2
    share = (abscissa - first_abscissa) / (last_abscissa - first_abscissa)
    return (1 - share) * first_ms + share * last_ms


def find_nearest_two(
    points: Iterable[PointInputs], target: PointInfo
) -> tuple[PointInputs, PointInputs] | None:
    """Return the two points nearest to a target that differ in the prompt's length alone.

    The shorter comes first. None if there are fewer.
    """
    points_by_length = {
        point.info.input_len: point
        for point in points
        if all(getattr(point.info, key) == getattr(target, key) for key in _SIZES_BESIDE_LENGTH)
    }
    nearest_lengths = sorted(
        points_by_length, key=lambda length: abs(math.log(length / target.input_len))
    )[:2]
    # Around the target, if it lies between two.
    shorter_lengths = [length for length in points_by_length if length < target.input_len]
    longer_lengths = [length for length in points_by_length if length > target.input_len]
    if shorter_lengths and longer_lengths:
        nearest_lengths = [max(shorter_lengths), min(longer_lengths)]
    if len(nearest_lengths) < 2:
        return None
    shorter_length, longer_length = sorted(nearest_lengths)
    return points_by_length[shorter_length], points_by_length[longer_length]


def _read_phase_times_ms(point: PointInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of prompt and token, in ms, with one element per resample."""
    return point.medians["prompt"], point.medians["tokens"] / max(1, point.step_count)


def _read_nbytes(work: Work) -> float:
    """Return the bytes that a token reads; 1 for a request without steps, so that ratios exist."""
    return work.token_nbytes or 1.0
