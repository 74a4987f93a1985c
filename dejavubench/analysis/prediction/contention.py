"""How much longer the model's own work takes beside streaming, at other sizes and levels.

That time is the **rest**: what streaming added, less the stall. It is small beside the noise of one
arm, so it is the median over the arms of a run whose rest has the same cause. The rest of the
prompt needs levels that stream beside the prompt. The rest of a step needs levels that wait for
their chunks, or levels that do not: after a wait the model's thread wakes up, and at level 3 chunks
move beside the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dejavubench.analysis.prediction.inputs import ArmInputs, RunInputs
from dejavubench.analysis.prediction.request import PREDICTED_LEVELS, TimesMs
from dejavubench.analysis.prediction.target import Target, compute_distance, keep_nearest
from dejavubench.dejavulib.levels import LEVELS, Level


def estimate_prompt_rest_ms(
    run: RunInputs, mode: str, level_name: str, target: Target, prompt_ms: TimesMs
) -> TimesMs:
    """Return how much longer the prompt takes beside streaming, stall apart; 0 if unknown.

    On a CPU it is in proportion to the bytes that move, which take cores and memory from the model.
    On a GPU it is the time of the thread that launches kernels, which the helper thread delays.

    Args:
        prompt_ms: the target's prompt without streaming.
    """
    arms = _find_arms_alike(run, mode, level_name, target, _streams_beside_prompt)
    if not arms:
        return 0.0
    if not run.on_gpu:
        return _compute_median(
            _compute_prompt_rest_ms(arm) * _compute_prompt_byte_ratio(arm, target) for arm in arms
        )
    if not _streams_beside_prompt(LEVELS[level_name]):
        return _compute_median(_compute_prompt_rest_ms(arm) for arm in arms)
    arms_of_level = [arm for arm in arms if arm.level == level_name]
    return _compute_launch_delay_ms(arms_of_level or arms, prompt_ms)


def estimate_step_rest_ms(run: RunInputs, mode: str, level_name: str, target: Target) -> TimesMs:
    """Return how much longer a step takes beside streaming, stall apart; 0 if unknown.

    On a CPU it is in proportion to the bytes that move. On a GPU it does not grow with them.
    """
    arms = _find_arms_alike(run, mode, level_name, target, _streams_beside_steps)
    if not arms:
        return 0.0
    return _compute_median(
        _compute_step_rest_ms(arm) * (1.0 if run.on_gpu else _compute_step_byte_ratio(arm, target))
        for arm in arms
    )


def find_busy_arms(run: RunInputs, mode: str, level_name: str, target: Target) -> list[ArmInputs]:
    """Return the arms that a level's contention is taken from and whose link was busy to the end.

    Their contention is that of a busy link, which a faster link may not have.
    """
    if not LEVELS[level_name].overlapped:
        return []
    arms = _find_arms_alike(run, mode, level_name, target, _streams_beside_steps)
    return [arm for arm in arms if arm.is_link_busy]


def _compute_launch_delay_ms(arms: Sequence[ArmInputs], prompt_ms: TimesMs) -> TimesMs:
    """Return how much longer a GPU's prompt takes while its kernels are launched more slowly.

    Launching takes about as long for any prompt. A prompt that the GPU computes within that time
    ends with the launches, and a longer one hides them. It has the rest of such a prompt, if one
    was measured.
    """
    shortest_length = min(arm.point.info.input_len for arm in arms)
    shortest_arms = [arm for arm in arms if arm.point.info.input_len == shortest_length]
    launch_ms = _compute_median(map(_compute_prompt_beside_streaming_ms, shortest_arms))
    # Single rounds decide nothing here: the first element is the median of all rounds.
    launched_arms = [arm for arm in arms if arm.point.medians["prompt"][0] < launch_ms[0]]
    computed_arms = [arm for arm in arms if arm not in launched_arms]
    launch_ms = _compute_median(
        map(_compute_prompt_beside_streaming_ms, launched_arms or shortest_arms)
    )
    hidden_ms = (
        _compute_median(map(_compute_prompt_rest_ms, computed_arms)) if computed_arms else 0.0
    )
    return np.maximum(launch_ms - prompt_ms, hidden_ms)


def _streams_beside_prompt(level: Level) -> bool:
    return level.layerwise


def _streams_beside_steps(level: Level) -> bool:
    return level.overlapped


def _compute_prompt_beside_streaming_ms(arm: ArmInputs) -> np.ndarray:
    """Return the prompt's time, stall apart."""
    return arm.point.medians["prompt"] + _compute_prompt_rest_ms(arm)


def _compute_prompt_rest_ms(arm: ArmInputs) -> np.ndarray:
    added_ms = arm.medians["prompt_added"]
    return added_ms if LEVELS[arm.level].overlapped else added_ms - arm.medians["prompt_stall"]


def _compute_step_rest_ms(arm: ArmInputs) -> np.ndarray:
    added_ms = arm.medians["tokens_added"]
    if not LEVELS[arm.level].overlapped:
        added_ms = added_ms - arm.medians.get("steps", 0.0)
    return added_ms / max(1, arm.point.step_count)


def _compute_prompt_byte_ratio(arm: ArmInputs, target: Target) -> float:
    """Return how many times as many bytes one worker moves in the prompt of a target."""
    return _compute_step_byte_ratio(arm, target) * target.point.input_len / arm.point.info.input_len


def _compute_step_byte_ratio(arm: ArmInputs, target: Target) -> float:
    """Return how many times as many bytes one worker moves in a step of a target."""
    info = arm.point.info
    position_nbytes = info.streamed_nbytes / (info.input_len + arm.point.step_count)
    return target.position_nbytes / target.worker_count / position_nbytes


def _compute_median(times_ms: Iterable[np.ndarray]) -> np.ndarray:
    """Return the median over arms, with one element per resample."""
    return np.median(list(times_ms), axis=0)


def _find_arms_alike(
    run: RunInputs,
    mode: str,
    level_name: str,
    target: Target,
    streams_beside: Callable[[Level], bool],
) -> list[ArmInputs]:
    """Return the arms of a destination whose levels are alike, of the model nearest to a target."""
    is_beside = streams_beside(LEVELS[level_name])
    arms = [
        arm
        for arm in run.arms
        if arm.mode == mode
        and arm.level in PREDICTED_LEVELS
        and streams_beside(LEVELS[arm.level]) == is_beside
    ]
    # Another prompt length is no other model.
    return keep_nearest(arms, lambda arm: compute_distance(arm.point.info, target.point)[0])
