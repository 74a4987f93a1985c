"""Whether each point fits on a host: memory, GPU memory and what its type can run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dejavubench.config.plan import Plan
from dejavubench.config.points import Point
from dejavubench.config.rules.sizes import NO_FP32_ON_CUDA
from dejavubench.errors import UsageError
from dejavubench.machine import gpu
from dejavubench.machine.gpu import CudaDevice
from dejavubench.machine.memory import measure_available_nbytes
from dejavubench.planning.devices import number_devices
from dejavubench.planning.memory import Memory, estimate_memory
from dejavubench.units import format_binary_nbytes, format_count_of

STAGING_SHARE = 0.5
"""Share of the available memory that staging may take: MPI libraries abort without memory."""


@dataclass(frozen=True)
class HostResources:
    """The memory and GPUs that a host has to give.

    Attributes:
        memory_nbytes: bytes of host memory that are available.
        devices: its CUDA devices.
    """

    memory_nbytes: int
    devices: tuple[CudaDevice, ...] = ()

    @classmethod
    def here(cls, plan: Plan) -> HostResources:
        """Return this host's resources. The CUDA driver is asked only if the plan needs it."""
        devices = gpu.list_cuda_devices() if plan.experiment.device == "cuda" else ()
        return cls(measure_available_nbytes(), devices)


def find_skip_reasons(
    plan: Plan, host: HostResources, source_count: int | None = None, sink_count: int | None = None
) -> dict[str, str]:
    """Return why points cannot run on a host, and what they would need: point's id → reason.

    Args:
        plan: the plan whose points are examined.
        host: the memory and GPUs of the host.
        source_count, sink_count: how many of the ranks are on the host; None: all.
    """
    source_count = plan.source_count if source_count is None else source_count
    sink_count = plan.sink_count if sink_count is None else sink_count
    by_point = {
        point.id: _find_reason(plan, point, host, source_count, sink_count) for point in plan.points
    }
    return {point_id: reason for point_id, reason in by_point.items() if reason is not None}


def _find_reason(
    plan: Plan, point: Point, host: HostResources, source_count: int, sink_count: int
) -> str | None:
    """Return why a point cannot run with these ranks on the host; None if it can."""
    on_cuda = plan.experiment.device == "cuda"
    if point.problem is not None:
        return point.problem
    if on_cuda and point.data_type == "fp32":
        return NO_FP32_ON_CUDA
    needs = estimate_memory(plan, point)
    name = point.spec.name
    if on_cuda and (shortage := _find_shortage(plan, needs, host, source_count, sink_count)):
        return f"{name} needs {shortage}"
    if (needed_nbytes := needs.host_nbytes(source_count, sink_count)) > host.memory_nbytes:
        return (
            f"{name} needs {format_binary_nbytes(needed_nbytes)} of memory; "
            f"{format_binary_nbytes(host.memory_nbytes)} are available"
        )
    staging_nbytes = source_count * needs.staging.host_nbytes
    if staging_nbytes > STAGING_SHARE * host.memory_nbytes:
        settings = point.settings
        return (
            f"--staging-slots {settings.staging_slots} × "
            f"--staging-mib {settings.staging_mib} take "
            f"{format_binary_nbytes(staging_nbytes)} for "
            f"{format_count_of(source_count, 'source')}: more than half of the "
            f"{format_binary_nbytes(host.memory_nbytes)} that are available"
        )
    return None


def _find_shortage(
    plan: Plan, needs: Memory, host: HostResources, source_count: int, sink_count: int
) -> str | None:
    """Return which GPU of the host has too little memory for its ranks, and how much they need."""
    if not host.devices:
        needs_device = source_count or (sink_count and needs.sink.device_nbytes)
        return "a CUDA device; none is found on this host" if needs_device else None
    assigned_devices = number_devices(plan, source_count, sink_count, len(host.devices))
    for device_number, needed_nbytes in needs.nbytes_by_device(assigned_devices).items():
        device = host.devices[device_number]
        if needed_nbytes > device.nbytes:
            return (
                f"{format_binary_nbytes(needed_nbytes)} of GPU memory; "
                f"{device.name} has {format_binary_nbytes(device.nbytes)}"
            )
    return None


def refuse_if_none_runs(plan: Plan, skip_reasons: Mapping[str, str]) -> None:
    """Refuse a run of which nothing is left. In a sweep, points that cannot run are skipped.

    Raises:
        UsageError: every point has a reason not to run; the message is the first one's.
    """
    if len(skip_reasons) == len(plan.starts):
        raise UsageError(next(iter(skip_reasons.values())))
