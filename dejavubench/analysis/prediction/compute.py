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

LEAST_SHARE = 0.3
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
    points: Sequence[PointInputs], known: PointInputs, target: PointInfo
) -> ComputeTimes:
    """Return the compute times of a target.

    They are measured if the target has the sizes of ``known``. If the run has several prompt
    lengths of the same model and batch, they lie on the line through the two nearest. Otherwise
    they are those of ``known``, scaled: the prompt's by its arithmetic, a token's by the bytes that
    it reads.
    """
    prompt_ms, token_ms = _times(known)
    wanted = least_work(target, target.weight_nbytes)
    if wanted == known.work:
        return ComputeTimes(prompt_ms, token_ms, Basis.MEASURED)
    prompts = wanted.prompt_flop / known.work.prompt_flop
    tokens = _reads(wanted) / _reads(known.work)
    pair = nearest_two(points, target)
    if pair is None:
        return ComputeTimes(prompt_ms * prompts, token_ms * tokens, Basis.SCALED)
    one, other = pair
    flop, reads = (
        [work.prompt_flop for work in (one.work, other.work, wanted)],
        [_reads(work) for work in (one.work, other.work, wanted)],
    )
    first, last = _times(one), _times(other)
    between = one.info.input_len < target.input_len < other.info.input_len
    return ComputeTimes(
        # Far below the measured lengths, a line can fall to nothing.
        np.maximum(on_line(first[0], last[0], flop), LEAST_SHARE * prompts * prompt_ms),
        np.maximum(on_line(first[1], last[1], reads), LEAST_SHARE * tokens * token_ms),
        Basis.INTERPOLATED if between else Basis.EXTRAPOLATED,
    )


def on_line(first: TimesMs, last: TimesMs, places: Sequence[float]) -> TimesMs:
    """Return the value at the last of three places, given those at the first two."""
    begin, end, wanted = places
    share = (wanted - begin) / (end - begin)
    return (1 - share) * first + share * last


def nearest_two(
    points: Iterable[PointInputs], target: PointInfo
) -> tuple[PointInputs, PointInputs] | None:
    """Return the two points nearest to a target that differ in the prompt's length alone.

    The shorter comes first. None if there are fewer.
    """
    lengths = {
        each.info.input_len: each
        for each in points
        if all(getattr(each.info, key) == getattr(target, key) for key in _OTHER_SIZES)
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
    return point.medians["prompt"], point.medians["tokens"] / max(1, point.steps)


def _reads(work: Work) -> float:
    return work.token_nbytes or 1.0
