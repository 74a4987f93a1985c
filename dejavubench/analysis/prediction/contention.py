"""How much longer the model's own work takes beside streaming: the rest, at other sizes and levels.

The rest of the prompt needs a level that streams beside the prompt. The rest of a step needs a
level that waits for its chunks, or one that does not: after a wait the model's thread wakes up, and
at level 3 chunks move beside the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dejavubench.analysis.prediction.compute import nearest_two, on_line
from dejavubench.analysis.prediction.inputs import ArmInputs, RunInputs
from dejavubench.analysis.prediction.request import LEVELS, TimesMs
from dejavubench.analysis.prediction.target import Target, distance
from dejavubench.dejavulib.levels import LEVELS as SWITCHES


def prompt_rest_ms(run: RunInputs, mode: str, level: str, target: Target) -> TimesMs:
    """Return how much longer the prompt takes beside streaming, its wait apart; 0 if unknown."""
    beside = SWITCHES[level].layerwise
    alike = [other for other in LEVELS if SWITCHES[other].layerwise == beside]
    arms = run.of(mode, (level, *(other for other in reversed(alike) if other != level)))

    def grown(arm: ArmInputs) -> float:
        return _more_bytes(arm, target) * target.point.input_len / arm.point.info.input_len

    return _at(run, arms, target, _prompt_rest, grown)


def token_rest_ms(run: RunInputs, mode: str, level: str, target: Target) -> TimesMs:
    """Return the same of one decode step."""
    waits = not SWITCHES[level].overlapped
    alike = [other for other in LEVELS if (not SWITCHES[other].overlapped) == waits]
    arms = run.of(mode, (level, *(other for other in reversed(alike) if other != level)))
    return _at(run, arms, target, _token_rest, lambda arm: _more_bytes(arm, target))


def _prompt_rest(arm: ArmInputs) -> np.ndarray:
    added, values = arm.medians["prompt_added"], arm.medians
    return added if SWITCHES[arm.level].overlapped else added - values["tail"]


def _token_rest(arm: ArmInputs) -> np.ndarray:
    added, values = arm.medians["tokens_added"], arm.medians
    if not SWITCHES[arm.level].overlapped:
        added = added - values.get("steps", 0.0)
    return added / max(1, arm.point.steps)


def _more_bytes(arm: ArmInputs, target: Target) -> float:
    """Return how many times as many bytes a step of one worker has."""
    info = arm.point.info
    known = info.streamed_nbytes / (info.input_len + arm.point.steps)
    return target.position_nbytes / target.workers / known


def _at(
    run: RunInputs,
    arms: list[ArmInputs],
    target: Target,
    rest: Callable[[ArmInputs], np.ndarray],
    grown: Callable[[ArmInputs], float],
) -> TimesMs:
    """Return a rest at the target's sizes.

    Between two measured prompt lengths it lies on a line. Otherwise it is that of the nearest
    point. On a CPU it is in proportion to the bytes that move, which take cores and memory from the
    model. On a GPU it does not grow: it is the time of the thread that launches kernels.
    """
    if not arms:
        return 0.0
    by_point = {arm.point.info.id: arm for arm in arms}
    nearest = min(arms, key=lambda arm: distance(arm.point.info, target.point))
    if distance(nearest.point.info, target.point) == (0, 0.0):
        return rest(nearest) * (1.0 if run.on_gpu else grown(nearest))
    pair = nearest_two((arm.point for arm in arms), target.point)
    if pair is not None:
        shorter, longer = (each.info.input_len for each in pair)
        if shorter <= target.point.input_len <= longer:
            one, other = (rest(by_point[each.info.id]) for each in pair)
            return on_line(one, other, [shorter, longer, target.point.input_len])
    return rest(nearest) * (1.0 if run.on_gpu else grown(nearest))
