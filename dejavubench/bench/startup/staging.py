"""The most staging memory that a rank will use, as its first record states it."""

from __future__ import annotations

from dejavubench.bench.plan.destinations import entry_of
from dejavubench.bench.startup.context import RunContext
from dejavubench.dejavulib.device_receiver import DeviceReceiver
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.receiver import CacheReceiver


def staging_nbytes(context: RunContext) -> tuple[int, int]:
    """Return the bytes on the host, and on this rank's device."""
    return _on_source(context) if context.ranks.is_source else _on_sink(context)


def _on_sink(context: RunContext) -> tuple[int, int]:
    slot, on_cuda = context.experiment.staging_mib << 20, context.devices.on_cuda
    streams = max(sum(map(len, context.side(point).remote())) for point in context.schedule.points)
    remote = [entry for entry in context.schedule.destinations.values() if entry.remote]
    host = any(entry.uses_host_slots(on_cuda) for entry in remote)
    device = any(entry.uses_device_memory(on_cuda) for entry in remote)
    each = slot * streams
    return (
        each * CacheReceiver.SLOTS if host else 0,
        each * DeviceReceiver.SLOTS if device else 0,
    )


def _on_source(context: RunContext) -> tuple[int, int]:
    experiment, schedule, on_cuda = context.experiment, context.schedule, context.devices.on_cuda
    entries = schedule.destinations.values()
    ring = (experiment.staging_mib << 20) * experiment.staging_slots
    host = ring if any(entry.uses_host_slots(on_cuda) for entry in entries) else 0
    device = 0
    # Chunks for host memory are gathered on the device first, in slots of their own.
    if on_cuda and not all(entry.device_memory for entry in entries):
        device += ring
        host += _bounce_nbytes(context)
    if any(entry.uses_device_memory(on_cuda) for entry in entries):
        device += ring
    return host, device


def _bounce_nbytes(context: RunContext) -> int:
    """Return the bytes that single extents from the device arrive in, if some arm moves them so."""
    unbuffered = any(
        arm.level and not LEVELS[arm.level].buffered and not entry_of(arm).device_memory
        for arm in context.schedule.streaming
    )
    if not unbuffered:
        return 0
    return max(
        context.side(point).local()[0][0].schedule.step_nbytes(0)
        for point in context.schedule.points
    )
