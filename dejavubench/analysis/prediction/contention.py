"""How much longer the model's own work takes beside streaming, at other sizes and levels.

That time is the **rest**: what streaming added, less the waits for chunks. The rest of the prompt
needs a level that streams beside the prompt. The rest of a step needs a level that waits for its
chunks, or one that does not: after a wait the model's thread wakes up, and at level 3 chunks move
beside the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dejavubench.analysis.prediction.compute import nearest_two, on_line
from dejavubench.analysis.prediction.inputs import ArmInputs, RunInputs
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS, TimesMs
from dejavubench.analysis.prediction.target import Target, distance
from dejavubench.dejavulib.levels import LEVELS, Level


def prompt_rest_ms(run: RunInputs, mode: str, level_name: str, target: Target) -> TimesMs:
    """Return how much longer the prompt takes beside streaming, stall apart; 0 if unknown."""

    def growth(arm: ArmInputs) -> float:
        return _byte_ratio(arm, target) * target.point.input_len / arm.point.info.input_len

    arms = _arms_alike(run, mode, level_name, lambda level: level.layerwise)
    return _rest_at(run, arms, target, _prompt_rest, growth)


def token_rest_ms(run: RunInputs, mode: str, level_name: str, target: Target) -> TimesMs:
    """Return how much longer a decode step takes beside streaming, stall apart; 0 if unknown."""

    def growth(arm: ArmInputs) -> float:
        return _byte_ratio(arm, target)

    arms = _arms_alike(run, mode, level_name, lambda level: level.overlapped)
    return _rest_at(run, arms, target, _token_rest, growth)


def busy_arms(run: RunInputs, mode: str, level_name: str, target: Target) -> list[ArmInputs]:
    """Return the arms that a level's contention is taken from and whose link was busy to the end.

    Their contention is that of a busy link, which a faster link may not have.
    """
    if not LEVELS[level_name].overlapped:
        return []
    arms = _arms_alike(run, mode, level_name, lambda level: level.overlapped)
    return [arm for arm in _arms_for(arms, target) if arm.is_link_busy]


def _arms_alike(
    run: RunInputs, mode: str, level_name: str, trait: Callable[[Level], bool]
) -> list[ArmInputs]:
    """Return the arms of a level or, if it was not measured, of the highest one with its trait."""
    has_trait = trait(LEVELS[level_name])
    alike = [name for name in reversed(PREDICTED_LEVELS) if trait(LEVELS[name]) == has_trait]
    return run.arms_of(mode, (level_name, *(name for name in alike if name != level_name)))


def _prompt_rest(arm: ArmInputs) -> np.ndarray:
    medians = arm.medians
    added = medians["prompt_added"]
    return added if LEVELS[arm.level].overlapped else added - medians["prompt_stall"]


def _token_rest(arm: ArmInputs) -> np.ndarray:
    medians = arm.medians
    added = medians["tokens_added"]
    if not LEVELS[arm.level].overlapped:
        added = added - medians.get("steps", 0.0)
    return added / max(1, arm.point.steps)


def _byte_ratio(arm: ArmInputs, target: Target) -> float:
    """Return how many times as many bytes a step of one worker has."""
    info = arm.point.info
    position_nbytes = info.streamed_nbytes / (info.input_len + arm.point.steps)
    return target.position_nbytes / target.workers / position_nbytes


def _arms_for(arms: Sequence[ArmInputs], target: Target) -> list[ArmInputs]:
    """Return the arms that a rest is taken from: one, or two around the target's prompt length."""
    if not arms:
        return []
    nearest = min(arms, key=lambda arm: distance(arm.point.info, target.point))
    if distance(nearest.point.info, target.point) == (0, 0.0):
        return [nearest]
    pair = nearest_two((arm.point for arm in arms), target.point)
    if pair is None:
        return [nearest]
    shorter, longer = pair
    if not shorter.info.input_len <= target.point.input_len <= longer.info.input_len:
        return [nearest]
    by_point = {arm.point.info.id: arm for arm in arms}
    return [by_point[shorter.info.id], by_point[longer.info.id]]


def _rest_at(
    run: RunInputs,
    arms: Sequence[ArmInputs],
    target: Target,
    rest: Callable[[ArmInputs], np.ndarray],
    growth: Callable[[ArmInputs], float],
) -> TimesMs:
    """Return a rest at the target's sizes.

    Between two measured prompt lengths it lies on a line. Otherwise it is that of the nearest
    point. On a CPU it is in proportion to the bytes that move, which take cores and memory from the
    model. On a GPU it does not grow: it is the time of the thread that launches kernels.
    """
    match _arms_for(arms, target):
        case []:
            return 0.0
        case [nearest]:
            return rest(nearest) * (1.0 if run.on_gpu else growth(nearest))
        case [shorter, longer]:
            lengths = [arm.point.info.input_len for arm in (shorter, longer)]
            return on_line(rest(shorter), rest(longer), [*lengths, target.point.input_len])
    raise AssertionError("a rest is taken from two arms at most")
