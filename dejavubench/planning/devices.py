"""Which GPU of its host each rank uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dejavubench.config.plan import Plan
from dejavubench.machine.gpu import CudaDevice
from dejavubench.units import format_count_of


@dataclass(frozen=True)
class DeviceNumbers:
    """The numbers of the CUDA devices that the ranks of one host use, in order of rank.

    Attributes:
        sinks: empty if all that arrives is kept in host memory.
    """

    sources: tuple[int, ...]
    sinks: tuple[int, ...] = ()


def number_devices(
    plan: Plan, source_count: int, sink_count: int, device_count: int
) -> DeviceNumbers:
    """Give every rank of a host the next of its devices, in turn.

    With a loopback the sinks share the devices of their sources.
    """
    device_of_rank = tuple(rank % device_count for rank in range(source_count + sink_count))
    if not any(arm.fills_sink_devices for arm in plan.unskipped_arms):
        return DeviceNumbers(device_of_rank[:source_count])
    # Counting the sinks from device 0 again puts each of them on its own source's device.
    if any(arm.is_loopback for arm in plan.unskipped_arms):
        return DeviceNumbers(
            device_of_rank[:source_count], tuple(rank % device_count for rank in range(sink_count))
        )
    return DeviceNumbers(device_of_rank[:source_count], device_of_rank[source_count:])


def explain_too_few_devices(
    plan: Plan,
    devices: Sequence[CudaDevice],
    source_count: int | None = None,
    sink_count: int | None = None,
) -> str | None:
    """Return why ranks of this host would share a GPU although each of them needs one.

    Args:
        devices: the CUDA devices of this host.
        source_count, sink_count: how many of the ranks are on this host; None: all.
    """
    ranks_here = (plan.source_count if source_count is None else source_count) + (
        plan.sink_count if sink_count is None else sink_count
    )
    if plan.experiment.device != "cuda" or ranks_here <= len(devices):
        return None
    counts = f"{format_count_of(ranks_here, 'rank')} and {format_count_of(len(devices), 'GPU')}"
    arms_between_gpus = [
        arm for arm in plan.unskipped_arms if arm.to_device and not arm.is_loopback
    ]
    if not arms_between_gpus:
        if not plan.experiment.handoff or plan.experiment.nccl_loopback:
            return None
        return (
            f"--handoff needs one GPU per rank: this host has {counts}. --nccl-loopback lets ranks "
            "share one"
        )
    first_arm = min(arms_between_gpus, key=lambda arm: arm.mode)
    loopback = next(
        (
            arm.transport.loopback
            for arm in arms_between_gpus
            if arm.transport and arm.transport.loopback
        ),
        None,
    )
    advice = (
        f". --{loopback.option.replace('_', '-')} lets a source and its sink share one"
        if loopback
        else ""
    )
    return f"--streaming {first_arm.mode} needs one GPU per rank: this host has {counts}{advice}"
