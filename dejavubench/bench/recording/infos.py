"""Arms, points and destinations as they are recorded."""

from __future__ import annotations

from collections.abc import Sequence

from dejavubench.bench.recording.destination_infos import (
    describe_destination,
    describe_swap_destination,
)
from dejavubench.config.arms import Arm
from dejavubench.config.points import Point
from dejavubench.records import ArmInfo, PointInfo
from dejavubench.records.destination_info import DestinationInfo
from dejavubench.units import ITEMSIZE


def describe_arm(arm: Arm) -> ArmInfo:
    """Return an arm's record."""
    return ArmInfo(
        name=arm.name, mode=arm.mode, level=arm.level, durability=arm.durability, role=arm.role
    )


def describe_point(
    point: Point, skip_reason: str | None = None, swept_options: Sequence[str] = ()
) -> PointInfo:
    """Return a point's record.

    Args:
        skip_reason: why it does not run.
        swept_options: names of its settings that differ from point to point.
    """
    spec = point.spec
    # Sizes are written out, so that records stay readable when a model's spec changes.
    return PointInfo(
        id=point.id,
        model=spec.name,
        parameters=spec.parameter_count,
        layer_num=spec.layer_num,
        head_num=spec.head_num,
        size_per_head=spec.size_per_head,
        kv_head_num=spec.kv_heads,
        layer_weights=spec.layer_weight_count,
        head_weights=spec.head_weight_count,
        weight_nbytes=ITEMSIZE[point.data_type],
        vocab_size=spec.vocab_size,
        data_type=point.data_type,
        kv_layout=point.kv_layout,
        ubatch_size=point.ubatch_size,
        input_len=point.input_len,
        output_len=point.output_len,
        positions=point.positions,
        tensor_para_size=point.tensor_para_size,
        pipeline_para_size=point.pipeline_para_size,
        sinks="" if point.sinks is None else str(point.sinks),
        handed_over=point.handed_over or 0,
        streamed_nbytes=point.streamed_nbytes,
        skipped=skip_reason,
        **{name: getattr(point.settings, name) for name in swept_options},
    )


def describe_destinations(arms: Sequence[Arm], on_gpu: bool) -> dict[str, DestinationInfo]:
    """Return the facts on the arms' destinations that analysis needs, by mode."""
    return {
        arm.mode: describe_swap_destination(arm.transport)
        if arm.is_swapping
        else describe_destination(arm.transport, on_gpu)
        for arm in arms
        if arm.transport is not None
    }
