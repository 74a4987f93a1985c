"""How much longer the model's own work takes beside streaming, at other sizes and levels.

That time is the **rest**: what streaming added, less the stall. The rest of the prompt needs a
level that streams beside the prompt. The rest of a step needs a level that waits for its chunks, or
one that does not: after a wait the model's thread wakes up, and at level 3 chunks move beside the
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dejavubench.analysis.prediction.compute import find_nearest_two, interpolate
from dejavubench.analysis.prediction.inputs import ArmInputs, RunInputs
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS, TimesMs
from dejavubench.analysis.prediction.target import Target, compute_distance
from dejavubench.dejavulib.levels import LEVELS, Level


@dataclass(frozen=True)
class RestOfPhase:
    """How the rest of the prompt, or that of a decode step, is taken from measured arms.

    Attributes:
        streams_beside: whether a level streams beside the phase. The rests of levels that do are
            alike, and so are the rests of levels that do not.
        rest_ms: the rest of one arm.
        byte_ratio: how many times as many bytes one worker moves in the phase of a target.
    """

    streams_beside: Callable[[Level], bool]
    rest_ms: Callable[[ArmInputs], np.ndarray]
    byte_ratio: Callable[[ArmInputs, Target], float]


def _compute_prompt_rest_ms(arm: ArmInputs) -> np.ndarray:
    added_ms = arm.medians["prompt_added"]
    return added_ms if LEVELS[arm.level].overlapped else added_ms - arm.medians["prompt_stall"]


def _compute_step_rest_ms(arm: ArmInputs) -> np.ndarray:
    added_ms = arm.medians["tokens_added"]
    if not LEVELS[arm.level].overlapped:
        added_ms = added_ms - arm.medians.get("steps", 0.0)
    return added_ms / max(1, arm.point.steps)


def _compute_prompt_byte_ratio(arm: ArmInputs, target: Target) -> float:
    return _compute_step_byte_ratio(arm, target) * target.point.input_len / arm.point.info.input_len


def _compute_step_byte_ratio(arm: ArmInputs, target: Target) -> float:
    info = arm.point.info
    position_nbytes = info.streamed_nbytes / (info.input_len + arm.point.steps)
    return target.position_nbytes / target.workers / position_nbytes


PROMPT = RestOfPhase(
    lambda level: level.layerwise, _compute_prompt_rest_ms, _compute_prompt_byte_ratio
)
"""The rest of the whole prompt."""

STEP = RestOfPhase(lambda level: level.overlapped, _compute_step_rest_ms, _compute_step_byte_ratio)
"""The rest of one decode step."""


def estimate_rest_beside_streaming_ms(
    phase: RestOfPhase, run: RunInputs, mode: str, level_name: str, target: Target
) -> TimesMs:
    """Return how much longer a phase takes beside streaming, stall apart; 0 if unknown.

    Between two measured prompt lengths it lies on a line. Otherwise it is that of the nearest
    point. On a CPU it is in proportion to the bytes that move, which take cores and memory from the
    model. On a GPU it does not grow: it is the time of the thread that launches kernels.
    """
    match _choose_arms(_find_arms_of_level(run, mode, level_name, phase.streams_beside), target):
        case []:
            return 0.0
        case [nearest_arm]:
            growth = 1.0 if run.on_gpu else phase.byte_ratio(nearest_arm, target)
            return phase.rest_ms(nearest_arm) * growth
        case [shorter_arm, longer_arm]:
            return interpolate(
                phase.rest_ms(shorter_arm),
                phase.rest_ms(longer_arm),
                [
                    shorter_arm.point.info.input_len,
                    longer_arm.point.info.input_len,
                    target.point.input_len,
                ],
            )
    raise AssertionError("a rest is taken from two arms at most")


def find_busy_arms(run: RunInputs, mode: str, level_name: str, target: Target) -> list[ArmInputs]:
    """Return the arms that a level's contention is taken from and whose link was busy to the end.

    Their contention is that of a busy link, which a faster link may not have.
    """
    if not LEVELS[level_name].overlapped:
        return []
    arms = _find_arms_of_level(run, mode, level_name, STEP.streams_beside)
    return [arm for arm in _choose_arms(arms, target) if arm.is_link_busy]


def _find_arms_of_level(
    run: RunInputs, mode: str, level_name: str, streams_beside: Callable[[Level], bool]
) -> list[ArmInputs]:
    """Return the arms of a level or, if it was not measured, of the highest one that is alike."""
    is_beside = streams_beside(LEVELS[level_name])
    level_names = [
        level_name,
        *(name for name in reversed(PREDICTED_LEVELS) if streams_beside(LEVELS[name]) == is_beside),
    ]
    return run.arms_of(mode, level_names)


def _choose_arms(arms: Sequence[ArmInputs], target: Target) -> list[ArmInputs]:
    """Return the arms that a rest is taken from: one, or two around the target's prompt length."""
    if not arms:
        return []
    nearest_arm = min(arms, key=lambda arm: compute_distance(arm.point.info, target.point))
    if compute_distance(nearest_arm.point.info, target.point) == (0, 0.0):
        return [nearest_arm]
    two_points = find_nearest_two((arm.point for arm in arms), target.point)
    if two_points is None:
        return [nearest_arm]
    shorter_point, longer_point = two_points
    if not shorter_point.info.input_len <= target.point.input_len <= longer_point.info.input_len:
        return [nearest_arm]
    arms_by_point = {arm.point.info.id: arm for arm in arms}
    return [arms_by_point[shorter_point.info.id], arms_by_point[longer_point.info.id]]
