"""Predictions: a measured run, another link or other sizes → the overhead to expect, per level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from dejavubench.analysis.prediction.chunk_rounds import PhaseShape
from dejavubench.analysis.prediction.compute import Basis, ComputeTimes, compute_times
from dejavubench.analysis.prediction.contention import (
    estimate_prompt_rest_ms,
    estimate_step_rest_ms,
    find_busy_arms,
)
from dejavubench.analysis.prediction.inputs import MS_PER_S, ArmInputs, RunInputs
from dejavubench.analysis.prediction.request import (
    FASTEST_RATE,
    ChunkCosts,
    StreamedRequest,
    TimesMs,
)
from dejavubench.analysis.prediction.target import Target, compute_distance, keep_nearest
from dejavubench.records import PointInfo

NEAREST_LEVELS = {"0": (), "1": ("2",), "2": ("1",), "3": ()}
"""Levels whose costs stand in for those of a level that was not measured.

Level 3 stands in for none: it does not wait, so a wait's contention is not in its times.
"""

CHUNK_TIMES = ("helper_ms", "helper_ms_per_byte", "sink_ms", "sink_ms_per_byte", "latency_ms")
"""Fields of :class:`ChunkCosts` that are times."""

OWN_TIME_RATIO = 1.3
"""Time of messages over that of their bytes from which on the messages' own time is told."""


@dataclass(frozen=True)
class Prediction:
    """A request to predict, with one element per resample in each of its times.

    Attributes:
        level: that the request is streamed at.
        arm: the measured arm that its costs are from.
        basis: where its compute times come from.
        sources_per_link: sources whose bytes share a link.
        busy_arms: the arms that its contention is from and whose link was busy to the end.
    """

    request: StreamedRequest
    level: str
    arm: ArmInputs
    basis: Basis
    sources_per_link: float = 1.0
    busy_arms: tuple[ArmInputs, ...] = ()

    def predict_overhead_pct(self, rate: float) -> np.ndarray:
        """Return the overhead over a link of ``rate`` bytes/s, one element per resample."""
        return np.asarray(
            self.request.predict_overhead_pct(self.level, self._share_rate_per_ms(rate))
        )

    def predict_ms(self, rate: float) -> np.ndarray:
        """Return TOTAL over a link of ``rate`` bytes/s, one element per resample."""
        return np.asarray(self.request.predict_ms(self.level, self._share_rate_per_ms(rate)))

    def find_slowest_rate_near_zero(self, limit_pct: float) -> float | None:
        """Return the slowest link whose overhead is at most ``limit_pct``; None if there is none.

        It is in bytes per second.
        """
        slowest = take_medians(self.request).find_slowest_rate_near_zero(self.level, limit_pct)
        return None if slowest is None else MS_PER_S * self.sources_per_link * slowest

    def _share_rate_per_ms(self, rate: float) -> float:
        """Return one source's share of a link of ``rate`` bytes/s, in bytes per ms."""
        return rate / MS_PER_S / self.sources_per_link

    @property
    def is_borrowed(self) -> bool:
        """Whether its costs are those of another level."""
        return self.arm.level != self.level

    @property
    def remaining_pct(self) -> np.ndarray:
        """Overhead over an endless link: that of contention, messages and fixed times of chunks.

        One element per resample, as :meth:`predict_overhead_pct`.
        """
        return np.asarray(self.request.predict_overhead_pct(self.level, FASTEST_RATE))


def take_medians(request: StreamedRequest) -> StreamedRequest:
    """Return a request whose times are those of all rounds, not of resamples."""
    return _take_first_elements(request)


TimedT = TypeVar("TimedT", StreamedRequest, ChunkCosts)


def _take_first_elements(timed: TimedT) -> TimedT:
    changed_fields: dict[str, Any] = {}
    for field in fields(timed):
        field_value = getattr(timed, field.name)
        if isinstance(field_value, np.ndarray):
            changed_fields[field.name] = float(field_value[0])
        elif isinstance(field_value, ChunkCosts):
            changed_fields[field.name] = _take_first_elements(field_value)
    return replace(timed, **changed_fields)


def find_nearest_arms(
    run: RunInputs, mode: str, level_name: str, target: PointInfo
) -> list[ArmInputs]:
    """Return the measured arms that a level is predicted from: those with the nearest sizes.

    There are several if the run has several links.
    """
    arms = run.arms_of(mode, (level_name, *NEAREST_LEVELS[level_name]))
    return keep_nearest(arms, lambda arm: compute_distance(arm.point.info, target))


def predict(
    run: RunInputs,
    mode: str,
    level_name: str,
    target: Target,
    known_times: ComputeTimes | None = None,
) -> Prediction | None:
    """Return the request of a level to predict; None if the run tells nothing of the level.

    Args:
        known_times: the compute times, if they are known; None to take them from the run.
    """
    arms = find_nearest_arms(run, mode, level_name, target.point)
    if not arms:
        return None
    # On the fastest link, the time of a message is least that of its bytes.
    arm = max(arms, key=lambda arm: arm.link.rate)
    point = target.point
    phase_times = known_times or compute_times(run.points, arm.point, point)
    # Every worker has its share of the layers, of the heads, and of the bytes.
    worker_share = 1 / target.worker_count
    step_nbytes = worker_share * target.position_nbytes
    request = StreamedRequest(
        layer_count=max(1, round(point.layer_num / point.pipeline_para_size)),
        step_count=target.step_count,
        prompt_ms=worker_share * phase_times.prompt_ms,
        token_ms=worker_share * phase_times.token_ms,
        prompt_nbytes=point.input_len * step_nbytes,
        step_nbytes=step_nbytes,
        flush_interval=target.flush_interval,
        burst_nbytes=target.burst_nbytes,
        prompt_rest_ms=estimate_prompt_rest_ms(
            run, mode, level_name, target, phase_times.prompt_ms
        ),
        token_rest_ms=estimate_step_rest_ms(run, mode, level_name, target),
        layer_lead_share=_find_layer_lead_share(run, mode, arm),
    )
    if level_name == "0":
        request = _add_messages(request, arm, target)
    else:
        costs_by_link = [_make_costs(arm_of_link, target) for arm_of_link in arms]
        request = replace(request, costs=_compute_mean_costs(costs_by_link))
    return Prediction(
        request,
        level_name,
        arm,
        phase_times.basis,
        max(1.0, target.sources_per_sink),
        tuple(find_busy_arms(run, mode, level_name, target)),
    )


def _find_layer_lead_share(run: RunInputs, mode: str, arm: ArmInputs) -> TimesMs:
    """Return how early layers are ready, from the arm or another one of its point; 0 if unknown.

    Only levels that stream layer by layer stamp each layer.
    """
    arms_of_point = [other for other in run.arms if other.point is arm.point and other.mode == mode]
    for candidate_arm in (arm, *arms_of_point):
        if "layer_lead_share" in candidate_arm.medians:
            return candidate_arm.medians["layer_lead_share"]
    return 0.0


def _fit_line(arm: ArmInputs, part: str) -> tuple[TimesMs, TimesMs]:
    """Return the fixed time and the time per byte of a part, from the prompt's and steps' chunks.

    Neither is negative.
    """
    chunks = arm.chunks
    medians = arm.medians
    if f"{part}_prompt" not in medians:
        return 0.0, 0.0
    prompt_ms = medians[f"{part}_prompt"]
    if chunks.step is None:
        return 0.0, prompt_ms / chunks.prompt.nbytes
    step_ms = medians[f"{part}_tokens"]
    added_nbytes = chunks.prompt.nbytes - chunks.step.nbytes
    # Chunks of about one size cannot tell the two apart.
    if abs(added_nbytes) < 0.1 * chunks.step.nbytes:
        return step_ms, 0.0
    ms_per_byte = np.clip((prompt_ms - step_ms) / added_nbytes, 0.0, step_ms / chunks.step.nbytes)
    return step_ms - ms_per_byte * chunks.step.nbytes, ms_per_byte


def _make_costs(arm: ArmInputs, target: Target) -> ChunkCosts:
    """Return the time of a chunk beside its bytes; the latency is what no station explains."""
    medians = arm.medians
    link = arm.link
    helper_ms, helper_ms_per_byte = _fit_line(arm, "gather")
    if not arm.chunks.from_device:
        # A post can block while the link is busy, so only that of the small chunks counts. Chunks
        # from a device are packed by the device while the helper posts earlier ones.
        helper_ms = helper_ms + medians.get("post_tokens", medians["post_prompt"])
    sink_ms, sink_ms_per_byte = _fit_line(arm, "sink")
    chunk_shape = arm.chunks.step or arm.chunks.prompt
    stations_ms = helper_ms + sink_ms + chunk_shape.nbytes * (helper_ms_per_byte + sink_ms_per_byte)
    link_ms = max(0.0, chunk_shape.nbytes - link.burst_nbytes) / link.rate_per_ms
    latency_ms = np.maximum(medians.get("alone", 0.0) - stations_ms - link_ms, 0.0)
    return ChunkCosts(
        helper_ms=helper_ms,
        helper_ms_per_byte=helper_ms_per_byte,
        sink_ms=sink_ms,
        sink_ms_per_byte=sink_ms_per_byte,
        latency_ms=latency_ms + 2 * target.latency_ms,
        slot_nbytes=arm.staging.slot_nbytes,
        slot_count=arm.staging.slot_count,
        least_piece_count=target.sinks_per_source,
    )


def _compute_mean_costs(costs_by_link: Sequence[ChunkCosts]) -> ChunkCosts:
    """Return the mean times of chunks over links; the staging slots are those of the first."""
    means = {
        name: sum(getattr(costs, name) for costs in costs_by_link) / len(costs_by_link)
        for name in CHUNK_TIMES
    }
    return replace(costs_by_link[0], **means)


def _add_messages(request: StreamedRequest, arm: ArmInputs, target: Target) -> StreamedRequest:
    """Return the request with the messages of level 0, each with its time and its packets."""
    chunks = arm.chunks
    medians = arm.medians
    extents_ratio = _compute_extents_ratio(arm.point.info, target.point)
    latency_ms = 2 * target.latency_ms
    request = replace(
        request,
        prompt_message_count=extents_ratio * chunks.prompt.extent_count,
        prompt_message_ms=_compute_message_ms(arm, medians["tail"], chunks.prompt) + latency_ms,
        message_nbytes=arm.link.packet_nbytes,
    )
    if chunks.step is None or not request.step_count:
        return request
    group_count = math.ceil(request.step_count / target.flush_interval)
    return replace(
        request,
        message_count=group_count * extents_ratio * chunks.step.extent_count,
        message_ms=_compute_message_ms(arm, medians["steps"] / arm.point.step_count, chunks.step)
        + latency_ms,
    )


def _compute_message_ms(
    arm: ArmInputs, waited_ms: np.ndarray, phase_shape: PhaseShape
) -> np.ndarray:
    """Return the time of one message of a phase beside that of its bytes and packets."""
    nbytes = phase_shape.nbytes + phase_shape.extent_count * arm.link.packet_nbytes
    link_ms = nbytes / arm.link.rate_per_ms
    if arm.link.burst_nbytes:
        # A bucket fills while a message is answered, so the slower of the two is what was waited
        # for. Where that was the link, the probe tells the message's own time.
        is_message_time = waited_ms > OWN_TIME_RATIO * link_ms
        return np.where(is_message_time, waited_ms / phase_shape.extent_count, arm.link.message_ms)
    return np.maximum(waited_ms - link_ms, 0.0) / phase_shape.extent_count


def _compute_extents_ratio(measured: PointInfo, target: PointInfo) -> float:
    """Return how many times as many extents a target of the same layout has."""

    def count_extents(info: PointInfo) -> float:
        # In nhd all heads of a position lie together.
        head_count = 1 if info.kv_layout == "nhd" else info.kv_head_num or info.head_num
        worker_count = info.tensor_para_size * info.pipeline_para_size
        return info.layer_num * info.ubatch_size * head_count / worker_count

    return count_extents(target) / count_extents(measured)
